// y = W x + residual for up to TOKENS tokens, reading only the columns of W whose x is not zero for all of them.
//
// The work is cut both ways: a workgroup has a slice of the outputs (workgroup.x) and a range of the inputs
// (workgroup.y). It looks at its own inputs only, one load a thread, lists those that are not zero in workgroup memory,
// ascending, and then its threads share the list: SLICE threads read one column's piece, 16 bytes each, so that memory
// delivers pieces of up to 512 contiguous bytes, and each thread has DEPTH loads under way. Sums meet in workgroup
// memory.
//
// The sums of several ranges (SPLIT) meet without another dispatch: every workgroup stores its own in `partials` and
// counts itself there; the one that counts last adds all of them, in the order of the ranges, so that the result has the
// same bits whichever that was, and leaves the count at zero for the next dispatch. Nobody waits for another workgroup,
// so none needs to run at the same time. Two dispatches with one buffer of partial sums are kept apart by wgpu, as both
// write it.
//
// What the order rests on: the partial sums and the counts are atomics, which act on memory that all workgroups see,
// never on a cache of one core; and between a workgroup's stores and its count, and between the last count and the loads,
// is a storageBarrier. naga makes of it, in SPIR-V, a control barrier of the workgroup that acquires and releases storage
// memory in the scope of the *device* (atomics there have the device's scope too), so that the stores of a whole workgroup
// happen before the loads of the one that counted later; in HLSL DeviceMemoryBarrierWithGroupSync and interlocked
// operations, which say the same. Metal's threadgroup_barrier(mem_device) orders memory for one threadgroup only, WGSL
// itself promises no more, and in GLSL an atomicLoad becomes a plain one: there the host asks for one range.
#import columns
#import invocation
#import batch

struct Params {
    // Inputs of this part of the matrix, and of a range of them: a multiple of 4.
    inputs: u32,
    range: u32,
    // Strides between tokens: in vec4s for x, in elements for y and the residual.
    x_stride: u32,
    tokens: u32,
    // 16-byte units of a column; outputs of the matrix.
    units: u32,
    outputs: u32,
    y_stride: u32,
    residual_stride: u32,
    // Not zero: there is a residual; y already has the sums of earlier parts of the matrix. Read once an output, so not
    // worth a pipeline each.
    has_residual: u32,
    adds: u32,
    // Of the token shift that is stored: spans, at most one a token, and the stride of `shifted`.
    spans: u32,
    shift_stride: u32,
    page: Page,
    // Which of the two vectors of a slot.
    which: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> residual: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;
// COUNTS counts, one a slice, zero between dispatches; then sums: a slice's outputs after each other, slice by slice,
// token by token, range by range.
@group(0) @binding(4) var<storage, read_write> partials: array<atomic<u32>>;
#ifdef EPILOGUE_SHIFT
@group(0) @binding(5) var<storage, read> spans: array<Span>;
@group(0) @binding(6) var<storage, read> shifted: array<f32>;
@group(0) @binding(7) var<storage, read_write> state: array<f32>;
#endif

const SIZE: u32 = $SIZE;
const TOKENS: u32 = $TOKENS;
// 16-byte loads that a thread has under way at once. A large GPU needs some 30 KB under way on each of its cores.
const DEPTH: u32 = $DEPTH;
const COUNTS: u32 = 1024u;
// Inputs that are looked at together, four a thread, and the words that tell which of them are listed.
const BLOCK: u32 = min(1024u, 2048u / TOKENS);
const MASKS: u32 = BLOCK / 32u;
// Words between the sums of one output and the next: reading every eighth place then meets other banks.
const PITCH: u32 = SIZE + 4u;
// Partial sums that a thread has under way at once.
const BATCH: u32 = 16u;

// 16-byte units of a column in a slice: a power of two, at most SIZE / 8.
override SLICE: u32 = 32u;
// Every column counts, also where x is zero. For inputs of which few are zero.
override DENSE: bool = false;
// There are several ranges.
override SPLIT: bool = false;

// The list: inputs, then for each the x of all tokens, next to each other; later sums.
var<workgroup> words: array<u32, max(BLOCK * (TOKENS + 1u), 8u * PITCH)>;
// For four inputs a thread, then for 32: a bit for each that is listed.
var<workgroup> quads: array<u32, BLOCK / 4u>;
var<workgroup> masks: array<u32, MASKS>;
// Listed inputs before those of each mask, and in all.
var<workgroup> starts: array<u32, MASKS + 1u>;
// Workgroups of the slice that counted themselves earlier.
var<workgroup> earlier: u32;

// The thread's inputs of the block that begins at `block`, of a range that ends before `end`.
fn look(block: u32, end: u32, thread: u32, seen: ptr<function, array<vec4<f32>, TOKENS>>) {
    let first = block + thread * 4u;
    if thread < BLOCK / 4u && first < end {
        for (var token = 0u; token < TOKENS; token++) {
            (*seen)[token] = x[min(token, params.tokens - 1u) * params.x_stride + first / 4u];
        }
    }
}

// Lists what was seen of the block, ascending, and returns how many there are. Called by the whole workgroup.
fn list(block: u32, end: u32, thread: u32, seen: ptr<function, array<vec4<f32>, TOKENS>>) -> u32 {
    let first = block + thread * 4u;
    var found = 0u;
    if thread < BLOCK / 4u {
        if first < end {
            // By their bits: −0 is zero, NaN and subnormal numbers are not.
            var bits = vec4(0u);
            for (var token = 0u; token < TOKENS; token++) {
                bits |= bitcast<vec4<u32>>((*seen)[token]);
            }
            let there = vec4(first) + vec4(0u, 1u, 2u, 3u) < vec4(end);
            let counts = (bits & vec4(0x7fffffffu)) != vec4(0u);
            let flags = select(vec4(0u), vec4(1u, 2u, 4u, 8u), there & (counts | vec4<bool>(DENSE)));
            found = flags.x | flags.y | flags.z | flags.w;
        }
        quads[thread] = found;
    }
    // Places come from counting bits rather than from subgroup operations: as fast, and the same on every adapter.
    workgroupBarrier();
    if thread < MASKS {
        var mask = 0u;
        for (var i = 0u; i < 8u; i++) {
            mask |= quads[thread * 8u + i] << (i * 4u);
        }
        masks[thread] = mask;
    }
    workgroupBarrier();
    if thread <= MASKS {
        var before = 0u;
        // All of them, so that the loads are under way together.
        for (var i = 0u; i < MASKS; i++) {
            before += select(0u, countOneBits(masks[i]), i < thread);
        }
        starts[thread] = before;
    }
    workgroupBarrier();
    if found != 0u {
        let lower = masks[thread / 8u] & ((1u << (thread % 8u * 4u)) - 1u);
        var place = starts[thread / 8u] + countOneBits(lower);
        for (var i = 0u; i < 4u; i++) {
            if (found >> i & 1u) != 0u {
                words[place] = first + i;
                for (var token = 0u; token < TOKENS; token++) {
                    words[BLOCK + place * TOKENS + token] = bitcast<u32>((*seen)[token][i]);
                }
                place++;
            }
        }
    }
    let total = starts[MASKS];
    workgroupBarrier();
    return total;
}

// A thread's sums for each token. Members and not an array, which compilers may keep in memory if some loop over it is
// not unrolled; those past TOKENS are never used.
struct Sums {
    t0: Eight,
    t1: Eight,
    t2: Eight,
    t3: Eight,
    t4: Eight,
    t5: Eight,
    t6: Eight,
    t7: Eight,
}

fn sums_of(sums: ptr<function, Sums>, token: u32) -> Eight {
    switch token {
        case 1u: {
            return (*sums).t1;
        }
        case 2u: {
            return (*sums).t2;
        }
        case 3u: {
            return (*sums).t3;
        }
        case 4u: {
            return (*sums).t4;
        }
        case 5u: {
            return (*sums).t5;
        }
        case 6u: {
            return (*sums).t6;
        }
        case 7u: {
            return (*sums).t7;
        }
        default: {
            return (*sums).t0;
        }
    }
}

fn add_to(sums: Eight, weight: Eight, x: u32) -> Eight {
    let value = bitcast<f32>(x);
    return Eight(sums.low + weight.low * value, sums.high + weight.high * value);
}

// Adds a column's piece, whose x of the first token is in `place`.
fn add_column(weight: Eight, place: u32, sums: ptr<function, Sums>) {
    (*sums).t0 = add_to((*sums).t0, weight, words[place]);
    if TOKENS > 1u {
        (*sums).t1 = add_to((*sums).t1, weight, words[place + 1u]);
    }
    if TOKENS > 2u {
        (*sums).t2 = add_to((*sums).t2, weight, words[place + 2u]);
        (*sums).t3 = add_to((*sums).t3, weight, words[place + 3u]);
    }
    if TOKENS > 4u {
        (*sums).t4 = add_to((*sums).t4, weight, words[place + 4u]);
        (*sums).t5 = add_to((*sums).t5, weight, words[place + 5u]);
        (*sums).t6 = add_to((*sums).t6, weight, words[place + 6u]);
        (*sums).t7 = add_to((*sums).t7, weight, words[place + 7u]);
    }
}

// Adds the columns of `count` listed inputs, of which this thread takes every (SIZE / SLICE)th.
fn add_columns(count: u32, unit: u32, thread: u32, sums: ptr<function, Sums>) {
    let step = SIZE / SLICE;
    for (var start = thread / SLICE; start < count; start += step * DEPTH) {
        var packed: array<vec4<u32>, DEPTH>;
        for (var i = 0u; i < DEPTH; i++) {
            // Past the end the first one is read again, from a cache: a branch here could make each load wait for the
            // one before it.
            let at = start + i * step;
            let input = words[select(start, at, at < count)];
            packed[i] = weights[input * params.units + unit];
        }
        for (var i = 0u; i < DEPTH; i++) {
            let at = start + i * step;
            if at < count {
                add_column(eight(packed[i]), BLOCK + at * TOKENS, sums);
            }
        }
    }
}

// Adds up what the threads have whose numbers agree modulo the outputs of a slice: known to the first of them. Called
// by the whole workgroup.
fn fold(sum: f32, thread: u32) -> f32 {
    let outputs = SLICE * 8u;
    if outputs == SIZE {
        return sum;
    }
    workgroupBarrier();
    words[thread] = bitcast<u32>(sum);
    workgroupBarrier();
    var total = 0.0;
    if thread < outputs {
        for (var place = thread; place < SIZE; place += outputs) {
            total += bitcast<f32>(words[place]);
        }
    }
    return total;
}

// The workgroup's sum for output `thread` of the slice, from eight sums of each thread. Called by the whole workgroup.
fn gather(sums: Eight, thread: u32) -> f32 {
    workgroupBarrier();
    for (var i = 0u; i < 4u; i++) {
        words[i * PITCH + thread] = bitcast<u32>(sums.low[i]);
        words[(4u + i) * PITCH + thread] = bitcast<u32>(sums.high[i]);
    }
    workgroupBarrier();
    // An output's sums lie SLICE apart; eight of them are for each of the threads that share the output.
    let output = thread % (SLICE * 8u);
    let first = thread / (SLICE * 8u) * 8u * SLICE + output / 8u;
    var sum = 0.0;
    for (var i = 0u; i < 8u; i++) {
        sum += bitcast<f32>(words[output % 8u * PITCH + first + i * SLICE]);
    }
    return fold(sum, thread);
}

// Where the partial sums of one range and token begin, for one slice.
fn partials_of(at: Invocation, range: u32, token: u32) -> u32 {
    return COUNTS + ((range * TOKENS + token) * at.workgroups.x + at.workgroup.x) * SLICE * 8u;
}

// The sum of all ranges for output `thread` of the slice. Called by the whole workgroup.
fn sum_ranges(at: Invocation, token: u32) -> f32 {
    let ranges = at.workgroups.y;
    let output = at.thread % (SLICE * 8u);
    let step = SIZE / (SLICE * 8u);
    var sum = 0.0;
    for (var start = at.thread / (SLICE * 8u); start < ranges; start += step * BATCH) {
        var loaded: array<u32, BATCH>;
        for (var i = 0u; i < BATCH; i++) {
            let range = start + i * step;
            let place = partials_of(at, select(start, range, range < ranges), token) + output;
            loaded[i] = atomicLoad(&partials[place]);
        }
        for (var i = 0u; i < BATCH; i++) {
            if start + i * step < ranges {
                sum += bitcast<f32>(loaded[i]);
            }
        }
    }
    return fold(sum, at.thread);
}

// What y has without the sums of this dispatch.
fn base_of(output: u32, token: u32) -> f32 {
    var base = 0.0;
    if output < params.outputs {
        if params.has_residual != 0u {
            base = residual[token * params.residual_stride + output];
        }
        if params.adds != 0u {
            base += y[token * params.y_stride + output];
        }
    }
    return base;
}

fn store(value: f32, output: u32, token: u32) {
    if output < params.outputs {
        y[token * params.y_stride + output] = value;
    }
}

#ifdef EPILOGUE_SHIFT
// A channel of the last row of a span, for the state of its slot, as in store_shift.wgsl.
struct Kept {
    there: bool,
    place: u32,
    value: f32,
}

fn keep(index: u32, channel: u32) -> Kept {
    if index >= params.spans || channel >= params.outputs {
        return Kept();
    }
    let span = spans[index];
    if span.length == 0u || !in_page(params.page, span.slot) {
        return Kept();
    }
    let vector = (span.slot - params.page.first_slot) * 2u + params.which;
    let row = span.start + span.length - 1u;
    return Kept(true, vector * params.outputs + channel, shifted[row * params.shift_stride + channel]);
}

fn store_kept(kept: Kept) {
    if kept.there {
        state[kept.place] = kept.value;
    }
}
#endif

@compute @workgroup_size(SIZE)
fn main(at: Invocation) {
    let thread = at.thread;
    let slice = at.workgroup.x;
    let range = at.workgroup.y;
    var block = range * params.range;
    let end = min(block + params.range, params.inputs);
    var seen: array<vec4<f32>, TOKENS>;
    look(block, end, thread, &seen);
    // Threads past the slice's outputs have none; past the last output of all, the last unit is repeated.
    let output = select(0xffffffffu, slice * SLICE * 8u + thread, thread < SLICE * 8u);
    let unit = min(slice * SLICE + thread % SLICE, params.units - 1u);
#ifdef EPILOGUE_SHIFT
    // Span i is for range i: what it needs comes while columns do.
    let kept = keep(range, output);
#endif
    var sums: Sums;
    for (; block < end; block += BLOCK) {
        let count = list(block, end, thread, &seen);
        look(block + BLOCK, end, thread, &seen);
        add_columns(count, unit, thread, &sums);
        // What is in `words` stays until all threads have met in the next `list`, or in `gather`.
    }
    for (var token = 0u; token < TOKENS; token++) {
        if token < params.tokens {
            if SPLIT {
                let sum = gather(sums_of(&sums, token), thread);
                if thread < SLICE * 8u {
                    atomicStore(&partials[partials_of(at, range, token) + thread], bitcast<u32>(sum));
                }
            } else {
                let base = base_of(output, token);
                store(base + gather(sums_of(&sums, token), thread), output, token);
            }
        }
    }
    if SPLIT {
        storageBarrier();
        if thread == 0u {
            earlier = atomicAdd(&partials[slice], 1u);
        }
        if workgroupUniformLoad(&earlier) == at.workgroups.y - 1u {
            storageBarrier();
            if thread == 0u {
                atomicStore(&partials[slice], 0u);
            }
            for (var token = 0u; token < TOKENS; token++) {
                if token < params.tokens {
                    let base = base_of(output, token);
                    store(base + sum_ranges(at, token), output, token);
                }
            }
        }
    }
#ifdef EPILOGUE_SHIFT
    store_kept(kept);
    for (var index = range + at.workgroups.y; index < params.spans; index += at.workgroups.y) {
        store_kept(keep(index, output));
    }
#endif
}
