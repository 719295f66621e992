// Products of 2 to 16 tokens: y_i = f_i(W_i x_i + bias) + residual, several in one dispatch, each with its own x. Their
// matrices are rows of one stack, or of a second one in F16. The columns are cut into SLICES of which each workgroup
// multiplies one; the slices of a row are summed by whichever workgroup is the last to have written its part.
#import stream/token_rows
#import activation
#import grid

struct Segment {
    // 0: `weights`, 1: `pairs`; its rows there.
    stack: u32,
    first_row: u32,
    rows: u32,
    // Where its x begins, in vec4s.
    x: u32,
    // Where its results begin, and the distance between those of two tokens, in elements.
    y: u32,
    y_stride: u32,
    // As in activation.wgsl.
    function_code: u32,
    // The groups of workgroups that make it, one for each slice.
    first_group: u32,
    groups: u32,
    // Rows of the segments before it.
    before: u32,
    padding: vec2<u32>,
}

struct Params {
    tokens: u32,
    // Between tokens of x, in vec4s.
    x_stride: u32,
    // Segments, and the rows and groups of all.
    count: u32,
    rows: u32,
    groups: u32,
    padding_a: u32,
    padding_b: u32,
    padding_c: u32,
    segments: array<Segment, 8>,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
// As in stream_matvec.wgsl: counters, then the slices' sums.
@group(0) @binding(3) var<storage, read_write> scratch: array<atomic<u32>>;
#ifdef PAIRS_NONE
// What is added: one of bias and residual, so that formats of four buffers fit WebGPU's default limits.
@group(0) @binding(4) var<storage, read> added: array<f32>;
override HAS_BIAS: bool = false;
override HAS_RESIDUAL: bool = false;
#endif

override SLICES: u32 = 1u;
// Counters in front of the sums.
override COUNTERS: u32 = 1u;

var<workgroup> done: u32;
var<private> slice: u32;
var<private> segment: u32;

fn token_count() -> u32 {
    return params.tokens;
}

fn finish(row: u32, token: u32, sum: f32) {
    let place = params.segments[segment].y + token * params.segments[segment].y_stride + row;
    var value = sum;
#ifdef PAIRS_NONE
    if HAS_BIAS {
        value += added[params.segments[segment].y + row];
    }
#endif
    value = apply_function(params.segments[segment].function_code, value);
#ifdef PAIRS_NONE
    if HAS_RESIDUAL {
        value += added[place];
    }
#endif
    y[place] = value;
}

// Where a slice's sum lies.
fn partial_of(at_slice: u32, row: u32, token: u32) -> u32 {
    return COUNTERS + (at_slice * params.tokens + token) * params.rows + params.segments[segment].before + row;
}

fn emit(row: u32, token: u32, sum: f32) {
    if SLICES == 1u {
        finish(row, token, sum);
    } else {
        atomicStore(&scratch[partial_of(slice, row, token)], bitcast<u32>(sum));
    }
}

// Vec4s of a token's x.
fn vectors_of_x() -> u32 {
    return UNITS * UNIT / 4u;
}

struct Eight {
    low: vec4<f32>,
    high: vec4<f32>,
}

// Past the last column or token, the last ones again.
fn load_eight(token: u32, vector: u32) -> Eight {
    let first = params.segments[segment].x + min(token, params.tokens - 1u) * params.x_stride;
    let at = first + min(vector, vectors_of_x() - 2u);
    return Eight(x[at], x[at + 1u]);
}

fn stage_loaded(token: u32, index: u32, eight: Eight) {
#ifdef PAIRS_F16
    if params.segments[segment].stack != 0u {
        stage_pair(token, index, eight);
    } else {
        stage_eight(token, index, eight.low, eight.high);
    }
#else
    stage_eight(token, index, eight.low, eight.high);
#endif
}

fn stage_chunk(work: Work, chunk: u32, thread: u32) {
    let eights = max(SLICE * UNIT / 8u, 1u);
    let first = (slice * CHUNKS + chunk) * 2u * eights;
    // Two at a time, so that their loads are under way together.
    for (var i = thread; i < TOKENS * eights; i += 2u * WORKGROUP) {
        let j = i + WORKGROUP;
        let near = load_eight(i / eights, first + 2u * (i % eights));
        let far = load_eight(j / eights, first + 2u * (j % eights));
        stage_loaded(i / eights, i % eights, near);
        if j < TOKENS * eights {
            stage_loaded(j / eights, j % eights, far);
        }
    }
}

#ifdef PAIRS_F16
#import stream/four_rows

@group(2) @binding(0) var<storage, read> pairs: array<vec4<u32>>;

// Units of a row of `pairs`, 8 elements each, and those that are staged: as many columns as of `weights`.
override PAIR_UNITS: u32 = 1u;
override PAIR_SLICE: u32 = 1u;

fn stage_pair(token: u32, index: u32, eight: Eight) {
    staged[2u * token * PAIR_SLICE + index] = bitcast<vec4<u32>>(eight.low);
    staged[(2u * token + 1u) * PAIR_SLICE + index] = bitcast<vec4<u32>>(eight.high);
}

struct PairUnits {
    a: vec4<u32>,
    b: vec4<u32>,
    c: vec4<u32>,
    d: vec4<u32>,
}

fn load_pairs(work: Work, place: Place, at: Step) -> PairUnits {
    let unit = min(work.unit + at.chunk * PAIR_SLICE + at.step * MEMBERS + place.member, PAIR_UNITS - 1u);
    let row = at.block * block_rows() + place.team * 4u;
    let last = work.rows - 1u;
    return PairUnits(
        pairs[(work.base + min(row, last)) * PAIR_UNITS + unit],
        pairs[(work.base + min(row + 1u, last)) * PAIR_UNITS + unit],
        pairs[(work.base + min(row + 2u, last)) * PAIR_UNITS + unit],
        pairs[(work.base + min(row + 3u, last)) * PAIR_UNITS + unit],
    );
}

fn pair_sums(sums: vec4<f32>, weights: FourRows, place: u32) -> vec4<f32> {
    return dots_onto(sums, weights, bitcast<vec4<f32>>(staged[place]));
}

// As `add_tokens`, of up to 8 tokens.
fn add_half(weights: FourRows, first: u32, sums: ptr<function, Sums>) {
    let pitch = 2u * PAIR_SLICE;
    (*sums).t0 = pair_sums((*sums).t0, weights, first);
    (*sums).t1 = pair_sums((*sums).t1, weights, first + pitch);
    if TOKENS > 2u {
        (*sums).t2 = pair_sums((*sums).t2, weights, first + 2u * pitch);
        (*sums).t3 = pair_sums((*sums).t3, weights, first + 3u * pitch);
    }
    if TOKENS > 4u {
        (*sums).t4 = pair_sums((*sums).t4, weights, first + 4u * pitch);
        (*sums).t5 = pair_sums((*sums).t5, weights, first + 5u * pitch);
        (*sums).t6 = pair_sums((*sums).t6, weights, first + 6u * pitch);
        (*sums).t7 = pair_sums((*sums).t7, weights, first + 7u * pitch);
    }
}

fn halves(packed: vec2<u32>) -> vec4<f32> {
    return vec4(unpack2x16float(packed.x), unpack2x16float(packed.y));
}

fn add_pairs(raw: PairUnits, near: u32, sums: ptr<function, Sums>) {
    add_half(FourRows(halves(raw.a.xy), halves(raw.b.xy), halves(raw.c.xy), halves(raw.d.xy)), near, sums);
    add_half(FourRows(halves(raw.a.zw), halves(raw.b.zw), halves(raw.c.zw), halves(raw.d.zw)), PAIR_SLICE + near, sums);
}

// As `make_rows`, of `pairs`.
fn make_pair_rows(work: Work, place: Place, thread: u32, first: PairUnits) {
    var raw = first;
    let steps = (PAIR_SLICE + MEMBERS - 1u) / MEMBERS;
    for (var block = work.block; block * block_rows() < work.rows; block += work.stride) {
        var sums = Sums();
        for (var chunk = 0u; chunk < CHUNKS; chunk++) {
            if CHUNKS > 1u {
                workgroupBarrier();
                stage_chunk(work, chunk, thread);
                workgroupBarrier();
            }
            for (var step = 0u; step < steps; step++) {
                let next = load_pairs(work, place, step_after(Step(block, chunk, step), work, steps));
                let near = step * MEMBERS + place.member;
                if (near < PAIR_SLICE) & (work.unit + chunk * PAIR_SLICE + near < PAIR_UNITS) {
                    add_pairs(raw, near, &sums);
                }
                raw = next;
            }
        }
        emit_sums(place, block * block_rows() + place.team * 4u, work.rows, &sums);
    }
}
#endif

// All rows of the segment that are this workgroup's: `own` of its groups.
fn make_segment(at: Invocation, own: u32) {
    let place = place_of(lane_of(at));
    var work = Work(
        params.segments[segment].first_row,
        params.segments[segment].rows,
        own,
        params.segments[segment].groups,
        slice * CHUNKS * SLICE,
    );
#ifdef PAIRS_F16
    if params.segments[segment].stack != 0u {
        work.unit = slice * CHUNKS * PAIR_SLICE;
        let first = load_pairs(work, place, Step(own, 0u, 0u));
        if CHUNKS == 1u {
            stage_chunk(work, 0u, at.thread);
            workgroupBarrier();
        }
        make_pair_rows(work, place, at.thread, first);
        return;
    }
#endif
    let first = load_units(work, place, Step(own, 0u, 0u));
    if CHUNKS == 1u {
        stage_chunk(work, 0u, at.thread);
        workgroupBarrier();
    }
    make_rows(work, place, at.thread, first);
}

fn slice_sum(at_slice: u32, row: u32, token: u32) -> f32 {
    return bitcast<f32>(atomicLoad(&scratch[partial_of(at_slice, row, token)]));
}

// Sums the slices of all rows that the workgroups of `own` have made.
fn sum_slices(own: u32, thread: u32) {
    let rows = params.segments[segment].rows;
    let stride = params.segments[segment].groups * block_rows();
    for (var first = own * block_rows(); first < rows; first += stride) {
        for (var i = thread; i < block_rows() * params.tokens; i += WORKGROUP) {
            let row = first + i % block_rows();
            let token = i / block_rows();
            if row < rows {
                var sum = 0.0;
                // Four at a time, so that their loads are under way together.
                for (var s = 0u; s < SLICES; s += 4u) {
                    let last = SLICES - 1u;
                    let a = slice_sum(s, row, token);
                    let b = slice_sum(min(s + 1u, last), row, token);
                    let c = slice_sum(min(s + 2u, last), row, token);
                    let d = slice_sum(min(s + 3u, last), row, token);
                    sum += a;
                    sum += select(0.0, b, s + 1u < SLICES);
                    sum += select(0.0, c, s + 2u < SLICES);
                    sum += select(0.0, d, s + 3u < SLICES);
                }
                finish(row, token, sum);
            }
        }
    }
}

@compute @workgroup_size(WORKGROUP)
fn main(at: Invocation) {
    let group = flat_workgroup(at) % params.groups;
    slice = flat_workgroup(at) / params.groups;
    if slice >= SLICES {
        return;
    }
    while segment + 1u < params.count && group >= params.segments[segment + 1u].first_group {
        segment++;
    }
    let own = group - params.segments[segment].first_group;
    make_segment(at, own);
    if SLICES == 1u {
        return;
    }
    // As in stream_matvec.wgsl.
    storageBarrier();
    workgroupBarrier();
    if at.thread == 0u {
        done = atomicAdd(&scratch[group], 1u);
    }
    workgroupBarrier();
    if done != SLICES - 1u {
        return;
    }
    storageBarrier();
    if at.thread == 0u {
        atomicStore(&scratch[group], 0u);
    }
    sum_slices(own, at.thread);
}
