// Layer norm, token shift and the products of its mixes, for one token: y_i = f_i(W_i mix_i(norm(x), previous)), where the
// state keeps what the norm made of the token before. A workgroup makes rows of one product: it finds mean and variance
// itself, from registers, and stages its own mix. The first weights are under way meanwhile.
#import stream/rows
#import stream/mixed
#import activation
#import batch
#import grid

// A product. All of this is known when the pipeline is compiled: what decides where the first weights lie must not be
// waited for.
struct Segment {
    // The first of the workgroups that make it.
    first: u32,
    // Its first row in its stack, and how many it has.
    base: u32,
    rows: u32,
    // Where the results go, in elements.
    y: u32,
    // See `stack_of`, `mix_of` and `function_of`.
    what: u32,
}

struct Params {
    page: Page,
    epsilon: f32,
    // Where the normed row goes, in elements of y.
    shifted: u32,
    padding0: u32,
    padding1: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> spans: array<Span>;
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;
// The norm's weight and bias, then the mixes.
@group(0) @binding(3) var<storage, read> vectors: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> state: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;
#ifdef ZEROS_ROW
// A row that is set to zero, too.
@group(0) @binding(6) var<storage, read_write> zeros: array<vec4<f32>>;
#endif
#ifdef PAIRS_F16
@group(2) @binding(0) var<storage, read> pairs: array<vec4<u32>>;
#endif

// How many products there are, and all their workgroups.
override COUNT: u32 = 1u;
override WORKGROUPS: u32 = 1u;
#repeat i 8
override FIRST_$i: u32 = 0u;
override BASE_$i: u32 = 0u;
override ROWS_$i: u32 = 1u;
override Y_$i: u32 = 0u;
override WHAT_$i: u32 = 0u;
#endrepeat

fn segment_of(workgroup: u32) -> Segment {
    var segment: Segment;
#repeat i 8
    if COUNT > u32($i) && workgroup >= FIRST_$i {
        segment = Segment(FIRST_$i, BASE_$i, ROWS_$i, Y_$i, WHAT_$i);
    }
#endrepeat
    return segment;
}

// The workgroups of `segment`: up to the next one's first.
fn workgroups_of(segment: Segment) -> u32 {
    var end = WORKGROUPS;
#repeat i 8
    if COUNT > u32($i) && segment.first < FIRST_$i {
        end = min(end, FIRST_$i);
    }
#endrepeat
    return end - segment.first;
}

// 0: `weights`, 1: `pairs`.
fn stack_of(segment: Segment) -> u32 {
    return segment.what & 1u;
}

// As in activation.wgsl.
fn function_of(segment: Segment) -> u32 {
    return segment.what >> 1u & 15u;
}

fn mix_of(segment: Segment) -> u32 {
    return segment.what >> 5u;
}

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

fn write_four(place: u32, value: vec4<f32>) {
    y[place] = value.x;
    y[place + 1u] = value.y;
    y[place + 2u] = value.z;
    y[place + 3u] = value.w;
}

// Stages what becomes of an eight. `writes`: the first workgroups write a part of the normed row each, since other
// workgroups still read the state here.
fn place_eight(eight: Eight, index: u32, norm: vec2<f32>, writes: bool, for_pairs: bool) {
    let made = mix_eight(eight, norm);
    if writes {
        write_four(params.shifted + 8u * index, made.low);
        write_four(params.shifted + 8u * index + 4u, made.high);
#ifdef ZEROS_ROW
        zeros[2u * index] = vec4(0.0);
        zeros[2u * index + 1u] = vec4(0.0);
#endif
    }
#ifdef PAIRS_F16
    if for_pairs {
        staged[index] = bitcast<vec4<u32>>(made.near);
        staged[PAIR_UNITS + index] = bitcast<vec4<u32>>(made.far);
    } else {
        stage_eight(0u, index, made.near, made.far);
    }
#else
    stage_eight(0u, index, made.near, made.far);
#endif
}

@compute @workgroup_size(WORKGROUP)
fn main(at: Invocation) {
    let lane = lane_of(at);
    let team = team_of(lane);
    let own = flat_workgroup(at);
    if own >= WORKGROUPS {
        return;
    }
    let segment = segment_of(own);
    let for_pairs = stack_of(segment) != 0u;
    function_code = function_of(segment);
    results = segment.y;
    let work = Work(segment.base, segment.rows, own - segment.first, workgroups_of(segment), 0u);
    var first: Units;
#ifdef PAIRS_F16
    var first_pairs: PairUnits;
    if for_pairs {
        first_pairs = load_pairs(work, pair_team(lane), work.block, 0u);
    } else {
        first = load_step(work, team, work.block, 0u);
    }
#else
    first = load_step(work, team, work.block, 0u);
#endif

    let place = kept_row(params.page);
    let here = place.here;
    let quads = EIGHTS_OF_X * 2u;
    let eights = load_eights(at.thread, place.first, (2u + mix_of(segment)) * quads);
    let norm = mean_and_scale(eights, lane, at.thread, params.epsilon);
    let workgroups = at.workgroups.x * at.workgroups.y;
    let writer = select(OWN, own, here);
    if owns(at.thread, 0u) {
        place_eight(eights.a, at.thread, norm, writer == 0u, for_pairs);
    }
    if owns(at.thread, 1u) {
        place_eight(eights.b, at.thread + WORKGROUP, norm, writer == 1u % workgroups, for_pairs);
    }
    if owns(at.thread, 2u) {
        place_eight(eights.c, at.thread + 2u * WORKGROUP, norm, writer == 2u % workgroups, for_pairs);
    }
    if owns(at.thread, 3u) {
        place_eight(eights.d, at.thread + 3u * WORKGROUP, norm, writer == 3u % workgroups, for_pairs);
    }
    workgroupBarrier();
    if !here {
        return;
    }
#ifdef PAIRS_F16
    if for_pairs {
        make_pair_rows(work, lane, pair_team(lane), first_pairs);
    } else {
        make_rows(work, lane, team, at.thread, first);
    }
#else
    make_rows(work, lane, team, at.thread, first);
#endif
}
