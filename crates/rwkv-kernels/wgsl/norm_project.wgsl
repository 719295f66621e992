// Layer norm, token shift and the products of its mixes, for one token: y_i = f_i(W_i mix_i(norm(x), previous)), where the
// state keeps what the norm made of the token before. A workgroup makes rows of one product: it finds mean and variance
// itself, from registers, and stages its own mix. The first weights are under way meanwhile.
#import stream/rows
#import activation
#import batch
#import grid

struct Segment {
    // 0: `weights`, 1: `pairs`; its rows there.
    stack: u32,
    first_row: u32,
    rows: u32,
    // Which mix, and where the results go, in elements.
    mix: u32,
    y: u32,
    // As in activation.wgsl.
    function_code: u32,
    // The workgroups that make it.
    first_workgroup: u32,
    workgroups: u32,
}

struct Params {
    page: Page,
    // Which of the state's two shift vectors.
    which: u32,
    epsilon: f32,
    count: u32,
    // Where the normed row goes, in elements of y.
    shifted: u32,
    segments: array<Segment, 8>,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> spans: array<Span>;
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;
// The norm's weight and bias, then the mixes.
@group(0) @binding(3) var<storage, read> vectors: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> state: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;
#ifdef PAIRS_F16
@group(2) @binding(0) var<storage, read> pairs: array<vec4<u32>>;
#endif

// 0: the mix weighs the previous token, 1: the current one.
override WEIGHS: u32 = 0u;
// Eights of elements of x, and how many a thread has.
override EIGHTS_OF_X: u32 = 1u;
override OWN: u32 = 1u;

// A thread has at most this many eights of x.
const MAX_OWN: u32 = 4u;

// Mean, sum of squares around it and number of elements of each subgroup.
override SUBGROUPS: u32 = 1u;
var<workgroup> moments: array<vec3<f32>, SUBGROUPS>;

var<private> function_code: u32;
var<private> results: u32;

fn emit(row: u32, sum: f32) {
    y[results + row] = apply_function(function_code, sum);
}

#ifdef PAIRS_F16
// Units of a row of `pairs`: 8 elements.
override PAIR_UNITS: u32 = 1u;
const PAIRS_AHEAD: u32 = 4u;

alias PairUnits = array<vec4<u32>, PAIRS_AHEAD>;

fn load_pairs(work: Work, team: Team, block: u32, start: u32) -> PairUnits {
    var raw: PairUnits;
    let row = work.base + min(block * team.teams + team.number, work.rows - 1u);
    for (var u = 0u; u < PAIRS_AHEAD; u++) {
        raw[u] = pairs[row * PAIR_UNITS + min(start + u * team.members + team.member, PAIR_UNITS - 1u)];
    }
    return raw;
}

// As `make_rows`, a row a team at a time, of `pairs`, with x as f32.
fn make_pair_rows(work: Work, lane: Lane, team: Team, first: PairUnits) {
    var raw = first;
    for (var block = work.block; block * team.teams < work.rows; block += work.stride) {
        var sum = 0.0;
        for (var start = 0u; start < PAIR_UNITS; start += PAIRS_AHEAD * team.members) {
            var next: PairUnits;
            if start + PAIRS_AHEAD * team.members < PAIR_UNITS {
                next = load_pairs(work, team, block, start + PAIRS_AHEAD * team.members);
            } else if (block + work.stride) * team.teams < work.rows {
                next = load_pairs(work, team, block + work.stride, 0u);
            }
            for (var u = 0u; u < PAIRS_AHEAD; u++) {
                let unit = start + u * team.members + team.member;
                if unit < PAIR_UNITS {
                    let near = bitcast<vec4<f32>>(staged[unit]);
                    let far = bitcast<vec4<f32>>(staged[PAIR_UNITS + unit]);
                    let packed = raw[u];
                    sum += dot(vec4(unpack2x16float(packed.x), unpack2x16float(packed.y)), near);
                    sum += dot(vec4(unpack2x16float(packed.z), unpack2x16float(packed.w)), far);
                }
            }
            raw = next;
        }
        sum = subgroupAdd(sum);
        let row = block * team.teams + team.number;
        if lane.index == 0u && row < work.rows {
            emit(row, sum);
        }
    }
}

// A team of its own for every subgroup.
fn pair_team(lane: Lane) -> Team {
    return Team(lane.index, lane.count, lane.group, lane.groups, 1u);
}
#endif

@compute @workgroup_size(WORKGROUP)
fn main(at: Invocation) {
    let lane = lane_of(at);
    let team = team_of(lane);
    let own = flat_workgroup(at);
    var index = 0u;
    while index + 1u < params.count && own >= params.segments[index + 1u].first_workgroup {
        index++;
    }
    let segment = params.segments[index];
    if own >= segment.first_workgroup + segment.workgroups {
        return;
    }
    function_code = segment.function_code;
    results = segment.y;
    let work = Work(segment.first_row, segment.rows, own - segment.first_workgroup, segment.workgroups, 0u);
    var first: Units;
#ifdef PAIRS_F16
    var first_pairs: PairUnits;
    if segment.stack != 0u {
        first_pairs = load_pairs(work, pair_team(lane), work.block, 0u);
    } else {
        first = load_step(work, team, work.block, 0u);
    }
#else
    first = load_step(work, team, work.block, 0u);
#endif

    // Everything is asked for at once. Past the end the last eight is repeated.
    let slot = spans[0].slot;
    let here = in_page(params.page, slot);
    let quads = EIGHTS_OF_X * 2u;
    let kept = select(0u, (slot - params.page.first_slot) * 2u + params.which, here) * quads;
    var current: array<vec4<f32>, 2u * MAX_OWN>;
    var previous: array<vec4<f32>, 2u * MAX_OWN>;
    var weight: array<vec4<f32>, 2u * MAX_OWN>;
    var bias: array<vec4<f32>, 2u * MAX_OWN>;
    var mix: array<vec4<f32>, 2u * MAX_OWN>;
    for (var j = 0u; j < OWN; j++) {
        let eight = min(at.thread + j * WORKGROUP, EIGHTS_OF_X - 1u);
        for (var k = 0u; k < 2u; k++) {
            let quad = 2u * eight + k;
            current[2u * j + k] = x[quad];
            weight[2u * j + k] = vectors[quad];
            bias[2u * j + k] = vectors[quads + quad];
            mix[2u * j + k] = vectors[(2u + segment.mix) * quads + quad];
            previous[2u * j + k] = state[kept + quad];
        }
    }
    // Mean and variance of each subgroup's elements, then of all (Chan, Golub and LeVeque 1979).
    var sum = 0.0;
    var number = 0.0;
    for (var j = 0u; j < OWN; j++) {
        if at.thread + j * WORKGROUP < EIGHTS_OF_X {
            let both = current[2u * j] + current[2u * j + 1u];
            sum += (both.x + both.y) + (both.z + both.w);
            number += 8.0;
        }
    }
    let group_number = subgroupAdd(number);
    let group_mean = subgroupAdd(sum) / max(group_number, 1.0);
    var square = 0.0;
    for (var j = 0u; j < OWN; j++) {
        if at.thread + j * WORKGROUP < EIGHTS_OF_X {
            let low = current[2u * j] - group_mean;
            let high = current[2u * j + 1u] - group_mean;
            square += dot(low, low) + dot(high, high);
        }
    }
    let group_square = subgroupAdd(square);
    if lane.index == 0u {
        moments[lane.group] = vec3(group_mean, group_square, group_number);
    }
    workgroupBarrier();
    let count = f32(8u * EIGHTS_OF_X);
    var mean = 0.0;
    for (var i = 0u; i < lane.groups; i++) {
        mean += moments[i].x * (moments[i].z / count);
    }
    var variance = 0.0;
    for (var i = 0u; i < lane.groups; i++) {
        let apart = moments[i].x - mean;
        variance += moments[i].y + moments[i].z * apart * apart;
    }
    let scale = 1.0 / sqrt(variance / count + params.epsilon);
    for (var j = 0u; j < OWN; j++) {
        let eight = at.thread + j * WORKGROUP;
        if eight < EIGHTS_OF_X {
            var mixed: array<vec4<f32>, 2>;
            for (var k = 0u; k < 2u; k++) {
                let i = 2u * j + k;
                let normed = (current[i] - mean) * scale * weight[i] + bias[i];
                var near = normed;
                var far = previous[i];
                if WEIGHS == 1u {
                    near = previous[i];
                    far = normed;
                }
                mixed[k] = near + (far - near) * mix[i];
                // The first workgroups write a part of the row each: other workgroups still read the state here.
                if here && own == j % (at.workgroups.x * at.workgroups.y) {
                    let place = params.shifted + 8u * eight + 4u * k;
                    y[place] = normed.x;
                    y[place + 1u] = normed.y;
                    y[place + 2u] = normed.z;
                    y[place + 3u] = normed.w;
                }
            }
#ifdef PAIRS_F16
            if segment.stack != 0u {
                staged[eight] = bitcast<vec4<u32>>(mixed[0]);
                staged[PAIR_UNITS + eight] = bitcast<vec4<u32>>(mixed[1]);
            } else {
                stage_eight(eight, mixed[0], mixed[1]);
            }
#else
            stage_eight(eight, mixed[0], mixed[1]);
#endif
        }
    }
    workgroupBarrier();
    if !here {
        return;
    }
#ifdef PAIRS_F16
    if segment.stack != 0u {
        make_pair_rows(work, lane, pair_team(lane), first_pairs);
    } else {
        make_rows(work, lane, team, at.thread, first);
    }
#else
    make_rows(work, lane, team, at.thread, first);
#endif
}
