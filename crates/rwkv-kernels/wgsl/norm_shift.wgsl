// Layer norm and token shift of a step in which every span is one token: the row before is what the state keeps, and the
// normed row takes its place. A row is cut into slices, a workgroup each: all find mean and variance of the whole row,
// and no element of the state is read or written by two threads.
#import reduce/$LANES
#import batch
#import grid

// Widths, strides and channels count vec4s.
struct Params {
    page: Page,
    spans: u32,
    width: u32,
    // Between rows of x and of each block of y.
    stride: u32,
    // Between the blocks of y.
    block: u32,
    mixes: u32,
    // Which of the state's two shift vectors.
    which: u32,
    // Channels that a workgroup mixes, at most one a thread, and the slices of a row.
    slice: u32,
    slices: u32,
    epsilon: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> spans: array<Span>;
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> weight: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> mix: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> state: array<vec4<f32>>;
// The mixes, then the normed row, then the previous one.
@group(0) @binding(7) var<storage, read_write> y: array<vec4<f32>>;

// What mix[m] weighs, the other one getting the rest: 0 the previous token (RWKV-6 and 7), 1 the current one (RWKV-4 and
// 5).
override WEIGHS: u32 = 0u;

// How many blocks y has past the mixes.
override ROWS: u32 = 0u;

const MOST_MIXES: u32 = 6u;

@compute @workgroup_size(SIZE)
fn main(at: Invocation) {
    let item = flat_workgroup(at);
    let index = item / params.slices;
    if index >= params.spans {
        return;
    }
    let span = spans[index];
    if span.length == 0u || !in_page(params.page, span.slot) {
        return;
    }
    let row = span.start * params.stride;
    let channel = item % params.slices * params.slice + at.thread;
    let mine = at.thread < params.slice && channel < params.width;
    let kept = ((span.slot - params.page.first_slot) * 2u + params.which) * params.width + channel;
    // Everything is asked for before the sums, so that memory answers while the workgroup meets.
    var current: vec4<f32>;
    var previous: vec4<f32>;
    var scaled: vec4<f32>;
    var shifted: vec4<f32>;
    var mixing: array<vec4<f32>, MOST_MIXES>;
    if mine {
        current = x[row + channel];
        previous = state[kept];
        scaled = weight[channel];
        shifted = bias[channel];
        for (var m = 0u; m < MOST_MIXES; m++) {
            if m < params.mixes {
                mixing[m] = mix[m * params.width + channel];
            }
        }
    }
    let count = f32(4u * params.width);
    var sum = vec4(0.0);
    for (var i = at.thread; i < params.width; i += SIZE) {
        sum += x[row + i];
    }
    let mean = workgroup_add(sum.x + sum.y + sum.z + sum.w, at) / count;
    var square = vec4(0.0);
    for (var i = at.thread; i < params.width; i += SIZE) {
        let d = x[row + i] - mean;
        square += d * d;
    }
    let variance = workgroup_add(square.x + square.y + square.z + square.w, at) / count;
    if !mine {
        return;
    }
    let scale = 1.0 / sqrt(variance + params.epsilon);
    let normed = (current - mean) * scale * scaled + shifted;
    state[kept] = normed;
    var near = normed;
    var far = previous;
    if WEIGHS == 1u {
        near = previous;
        far = normed;
    }
    for (var m = 0u; m < MOST_MIXES; m++) {
        if m < params.mixes {
            y[m * params.block + row + channel] = near + (far - near) * mixing[m];
        }
    }
    if ROWS > 0u {
        y[params.mixes * params.block + row + channel] = normed;
    }
    if ROWS > 1u {
        y[(params.mixes + 1u) * params.block + row + channel] = previous;
    }
}
