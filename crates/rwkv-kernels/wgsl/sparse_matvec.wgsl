// y = W x + residual for up to TOKENS tokens, reading only the columns of W whose x is not zero for all of them. A
// workgroup makes 8 * COLUMNS outputs: it lists the inputs that are not zero in workgroup memory, in an order that only
// depends on which they are, then its threads share the list, 16 bytes of a column each at a time.
#import columns
#import across/$LANES
#import grid
#import batch

struct Params {
    page: Page,
    // Inputs of this part of the matrix; y has the outputs of all of it.
    outputs: u32,
    inputs: u32,
    // 16-byte units of a column.
    units: u32,
    tokens: u32,
    // Strides between tokens: in vec4s for x, in elements for y and the residual.
    x_stride: u32,
    y_stride: u32,
    residual_stride: u32,
    // Of the token shift that is stored: spans, the stride of `shifted`, which of the two vectors of a slot.
    spans: u32,
    shift_stride: u32,
    which: u32,
    // Not zero: there is a residual; y already has the sums of earlier parts of the matrix. Read once an output, so not
    // worth a pipeline each.
    has_residual: u32,
    adds: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> residual: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;
#ifdef EPILOGUE_SHIFT
@group(0) @binding(4) var<storage, read> spans: array<Span>;
@group(0) @binding(5) var<storage, read> shifted: array<f32>;
@group(0) @binding(6) var<storage, read_write> state: array<f32>;
#endif

const SIZE: u32 = $SIZE;
const TOKENS: u32 = $TOKENS;
// 16-byte loads that a thread has under way at once. A large GPU needs some 30 KB under way on each of its cores.
const DEPTH: u32 = max(4u, 2048u / SIZE / TOKENS);
// Inputs that fit the list. With `counts` of across/, less than the 16 KiB that WebGPU promises.
const LISTED: u32 = 3840u;
// Inputs that a thread looks at before places in the list are given out: the bits of a word.
const SEEN: u32 = 32u;

// A power of two, at most 8 and at most the lanes of a subgroup.
override COLUMNS: u32 = 4u;
// Every column counts: none is looked for. For inputs of which few are zero.
override DENSE: bool = false;

// The list, later sums.
var<workgroup> scratch: array<u32, LISTED>;

// A bit for each of the inputs that this thread looks at, from the vec4 `first` on.
fn look(first: u32, thread: u32) -> u32 {
    var found = 0u;
    for (var i = 0u; i < SEEN / 4u; i++) {
        let part = first + i * SIZE + thread;
        if part * 4u >= params.inputs {
            break;
        }
        // By their bits: −0 is zero, NaN and subnormal numbers are not.
        var bits = vec4(0u);
        for (var token = 0u; token < TOKENS; token++) {
            bits |= bitcast<vec4<u32>>(x[min(token, params.tokens - 1u) * params.x_stride + part]);
        }
        let inputs = vec4(part * 4u) + vec4(0u, 1u, 2u, 3u);
        let listed = (bits & vec4(0x7fffffffu)) != vec4(0u) & inputs < vec4(params.inputs);
        let flags = select(vec4(0u), vec4(1u, 2u, 4u, 8u), listed);
        found |= (flags.x | flags.y | flags.z | flags.w) << (i * 4u);
    }
    return found;
}

// Adds the columns of `count` listed inputs, of which this thread takes every `step`th from `first` on.
fn add_columns(count: u32, unit: u32, first: u32, step: u32, sums: ptr<function, array<Eight, TOKENS>>) {
    for (var start = first; start < count; start += step * DEPTH) {
        var packed: array<vec4<u32>, DEPTH>;
        var values: array<array<f32, TOKENS>, DEPTH>;
        for (var i = 0u; i < DEPTH; i++) {
            let at = start + i * step;
            if at < count {
                var input = at;
                if !DENSE {
                    input = scratch[at];
                }
                packed[i] = weights[input * params.units + unit];
                for (var token = 0u; token < TOKENS; token++) {
                    let row = min(token, params.tokens - 1u) * params.x_stride;
                    values[i][token] = x[row + input / 4u][input % 4u];
                }
            }
        }
        for (var i = 0u; i < DEPTH; i++) {
            let weight = eight(packed[i]);
            for (var token = 0u; token < TOKENS; token++) {
                (*sums)[token].low += weight.low * values[i][token];
                (*sums)[token].high += weight.high * values[i][token];
            }
        }
    }
}

fn finish(sum: f32, output: u32, token: u32) {
    var value = sum;
    let place = token * params.y_stride + output;
    if params.has_residual != 0u {
        value += residual[token * params.residual_stride + output];
    }
    if params.adds != 0u {
        value += y[place];
    }
    y[place] = value;
}

#ifdef EPILOGUE_SHIFT
// As store_shift.wgsl: the last row of a span goes to the state of its slot.
fn store_shift(channel: u32, index: u32) {
    if index >= params.spans {
        return;
    }
    let span = spans[index];
    if span.length == 0u || !in_page(params.page, span.slot) {
        return;
    }
    state[((span.slot - params.page.first_slot) * 2u + params.which) * params.outputs + channel] =
        shifted[(span.start + span.length - 1u) * params.shift_stride + channel];
}
#endif

@compute @workgroup_size(SIZE)
fn main(at: Invocation) {
    let slice = flat_workgroup(at);
    if slice * COLUMNS >= params.units {
        return;
    }
    let thread = thread_of(at);
    // Past the last output the last unit is repeated.
    let unit = min(slice * COLUMNS + thread % COLUMNS, params.units - 1u);
    let first = thread / COLUMNS;
    let step = SIZE / COLUMNS;
    var sums: array<Eight, TOKENS>;
    // The inputs from `block` to `next` were looked at; `taken` of the `total` that are not zero are listed or done, and
    // the next of this thread, whose bits are left in `found`, has this place among them.
    var block = 0u;
    var next = 0u;
    var found = 0u;
    var place = 0u;
    var taken = 0u;
    var total = 0u;
    loop {
        var filled = 0u;
        if DENSE {
            filled = params.inputs;
            next = params.inputs;
        } else {
            while filled < LISTED {
                if taken == total {
                    if next >= params.inputs {
                        break;
                    }
                    block = next;
                    next += SIZE * SEEN;
                    found = look(block / 4u, thread);
                    let places = prefix(countOneBits(found), at);
                    place = places.first;
                    taken = 0u;
                    total = places.total;
                }
                let fit = min(LISTED - filled, total - taken);
                while found != 0u && place < taken + fit {
                    let bit = firstTrailingBit(found);
                    found &= found - 1u;
                    scratch[filled + place - taken] = block + (bit / 4u * SIZE + thread) * 4u + bit % 4u;
                    place++;
                }
                filled += fit;
                taken += fit;
            }
            workgroupBarrier();
        }
        add_columns(filled, unit, first, step, &sums);
        if next >= params.inputs && taken == total {
            break;
        }
        // The list is read before it is written again.
        workgroupBarrier();
    }
    for (var token = 0u; token < TOKENS; token++) {
        let groups = gather(sums[token], COLUMNS, at);
        let output = slice * COLUMNS * 8u + thread;
        if thread < COLUMNS * 8u && output < params.outputs {
            var sum = 0.0;
            for (var group = 0u; group < groups; group++) {
                sum += bitcast<f32>(scratch[group * COLUMNS * 8u + thread]);
            }
            if token < params.tokens {
                finish(sum, output, token);
            }
#ifdef EPILOGUE_SHIFT
            store_shift(output, token);
#endif
        }
    }
}
