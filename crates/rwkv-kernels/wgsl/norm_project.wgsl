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
// Eights of elements of x, and how many a thread has: at most four.
override EIGHTS_OF_X: u32 = 1u;
override OWN: u32 = 1u;


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

struct PairUnits {
    a: vec4<u32>,
    b: vec4<u32>,
    c: vec4<u32>,
    d: vec4<u32>,
}

fn load_pair(row: u32, unit: u32) -> vec4<u32> {
    return pairs[row * PAIR_UNITS + min(unit, PAIR_UNITS - 1u)];
}

fn pair_product(packed: vec4<u32>, unit: u32) -> f32 {
    if unit >= PAIR_UNITS {
        return 0.0;
    }
    let near = bitcast<vec4<f32>>(staged[unit]);
    let far = bitcast<vec4<f32>>(staged[PAIR_UNITS + unit]);
    return dot(vec4(unpack2x16float(packed.x), unpack2x16float(packed.y)), near)
        + dot(vec4(unpack2x16float(packed.z), unpack2x16float(packed.w)), far);
}

fn load_pairs(work: Work, team: Team, block: u32, start: u32) -> PairUnits {
    let row = work.base + min(block * team.teams + team.number, work.rows - 1u);
    let unit = start + team.member;
    return PairUnits(
        load_pair(row, unit),
        load_pair(row, unit + team.members),
        load_pair(row, unit + 2u * team.members),
        load_pair(row, unit + 3u * team.members),
    );
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
            let unit = start + team.member;
            sum += pair_product(raw.a, unit) + pair_product(raw.b, unit + team.members);
            sum += pair_product(raw.c, unit + 2u * team.members) + pair_product(raw.d, unit + 3u * team.members);
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

// Eight elements of everything that the mix is made of.
struct Eight {
    low: vec4<f32>,
    high: vec4<f32>,
    weight_low: vec4<f32>,
    weight_high: vec4<f32>,
    bias_low: vec4<f32>,
    bias_high: vec4<f32>,
    mix_low: vec4<f32>,
    mix_high: vec4<f32>,
    previous_low: vec4<f32>,
    previous_high: vec4<f32>,
}

fn load_eight(index: u32, kept: u32, mix: u32) -> Eight {
    let quad = 2u * min(index, EIGHTS_OF_X - 1u);
    let quads = EIGHTS_OF_X * 2u;
    return Eight(
        x[quad],
        x[quad + 1u],
        vectors[quad],
        vectors[quad + 1u],
        vectors[quads + quad],
        vectors[quads + quad + 1u],
        vectors[mix + quad],
        vectors[mix + quad + 1u],
        state[kept + quad],
        state[kept + quad + 1u],
    );
}

fn squares(eight: Eight, mean: f32, own: bool) -> f32 {
    let low = eight.low - mean;
    let high = eight.high - mean;
    return select(0.0, dot(low, low) + dot(high, high), own);
}

fn mixed(normed: vec4<f32>, previous: vec4<f32>, mix: vec4<f32>) -> vec4<f32> {
    if WEIGHS == 1u {
        return previous + (normed - previous) * mix;
    }
    return normed + (previous - normed) * mix;
}

fn write_shifted(place: u32, value: vec4<f32>) {
    y[place] = value.x;
    y[place + 1u] = value.y;
    y[place + 2u] = value.z;
    y[place + 3u] = value.w;
}

// Stages what becomes of an eight. `writes`: the first workgroups write a part of the normed row each, since other
// workgroups still read the state here.
fn mix_eight(eight: Eight, index: u32, mean: f32, scale: f32, writes: bool, for_pairs: bool) {
    let low = (eight.low - mean) * scale * eight.weight_low + eight.bias_low;
    let high = (eight.high - mean) * scale * eight.weight_high + eight.bias_high;
    if writes {
        write_shifted(params.shifted + 8u * index, low);
        write_shifted(params.shifted + 8u * index + 4u, high);
    }
    let near = mixed(low, eight.previous_low, eight.mix_low);
    let far = mixed(high, eight.previous_high, eight.mix_high);
#ifdef PAIRS_F16
    if for_pairs {
        staged[index] = bitcast<vec4<u32>>(near);
        staged[PAIR_UNITS + index] = bitcast<vec4<u32>>(far);
    } else {
        stage_eight(0u, index, near, far);
    }
#else
    stage_eight(0u, index, near, far);
#endif
}

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
    let mix = (2u + segment.mix) * quads;
    let a = load_eight(at.thread, kept, mix);
    var b: Eight;
    var c: Eight;
    var d: Eight;
    if OWN > 1u {
        b = load_eight(at.thread + WORKGROUP, kept, mix);
    }
    if OWN > 2u {
        c = load_eight(at.thread + 2u * WORKGROUP, kept, mix);
    }
    if OWN > 3u {
        d = load_eight(at.thread + 3u * WORKGROUP, kept, mix);
    }
    // Mean and variance of each subgroup's elements, then of all (Chan, Golub and LeVeque 1979).
    let zero = vec4(0.0);
    let own_a = at.thread < EIGHTS_OF_X;
    let own_b = OWN > 1u && at.thread + WORKGROUP < EIGHTS_OF_X;
    let own_c = OWN > 2u && at.thread + 2u * WORKGROUP < EIGHTS_OF_X;
    let own_d = OWN > 3u && at.thread + 3u * WORKGROUP < EIGHTS_OF_X;
    let number = 8.0 * f32(u32(own_a) + u32(own_b) + u32(own_c) + u32(own_d));
    let sums = select(zero, a.low + a.high, own_a) + select(zero, b.low + b.high, own_b)
        + select(zero, c.low + c.high, own_c) + select(zero, d.low + d.high, own_d);
    let group_number = subgroupAdd(number);
    let group_mean = subgroupAdd((sums.x + sums.y) + (sums.z + sums.w)) / max(group_number, 1.0);
    let square = squares(a, group_mean, own_a) + squares(b, group_mean, own_b)
        + squares(c, group_mean, own_c) + squares(d, group_mean, own_d);
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
    let workgroups = at.workgroups.x * at.workgroups.y;
    let scale = 1.0 / sqrt(variance / count + params.epsilon);
    let pairs_here = segment.stack != 0u;
    let writer = select(OWN, own, here);
    if own_a {
        mix_eight(a, at.thread, mean, scale, writer == 0u, pairs_here);
    }
    if own_b {
        mix_eight(b, at.thread + WORKGROUP, mean, scale, writer == 1u % workgroups, pairs_here);
    }
    if own_c {
        mix_eight(c, at.thread + 2u * WORKGROUP, mean, scale, writer == 2u % workgroups, pairs_here);
    }
    if own_d {
        mix_eight(d, at.thread + 3u * WORKGROUP, mean, scale, writer == 3u % workgroups, pairs_here);
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
