// y[m] is between x and the previous token of the same sequence, which is the row above, or for the first token of a
// span what the state keeps. All mixes lie one after the other in y.
#import batch
#import invocation
#import grid

struct Params {
    page: Page,
    tokens: u32,
    width: u32,
    // Between rows of x and of each mix's rows in y, in elements.
    stride: u32,
    // Between the mixes of y, in elements.
    block: u32,
    mixes: u32,
    // Which of the state's two shift vectors.
    which: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> tokens: array<Token>;
@group(0) @binding(2) var<storage, read> spans: array<Span>;
@group(0) @binding(3) var<storage, read> x: array<f32>;
@group(0) @binding(4) var<storage, read> mix: array<f32>;
@group(0) @binding(5) var<storage, read> state: array<f32>;
@group(0) @binding(6) var<storage, read_write> y: array<f32>;

// What mix[m] weighs, the other one getting the rest: 0 the previous token (RWKV-6 and 7), 1 the current one (RWKV-4 and
// 5); 2: there are no mixes, and y is the previous token.
override WEIGHS: u32 = 0u;

const SIZE: u32 = 128u;

@compute @workgroup_size(SIZE)
fn main(at: Invocation) {
    let blocks = (params.width + SIZE - 1u) / SIZE;
    let item = flat_workgroup(at);
    let token = item / blocks;
    let channel = item % blocks * SIZE + at.thread;
    if token >= params.tokens || channel >= params.width {
        return;
    }
    let span = spans[tokens[token].span];
    if !in_page(params.page, span.slot) {
        return;
    }
    let current = x[token * params.stride + channel];
    var previous: f32;
    if token == span.start {
        previous = state[((span.slot - params.page.first_slot) * 2u + params.which) * params.width + channel];
    } else {
        previous = x[(token - 1u) * params.stride + channel];
    }
    let row = token * params.stride + channel;
    if WEIGHS == 2u {
        y[row] = previous;
        return;
    }
    var near = current;
    var far = previous;
    if WEIGHS == 1u {
        near = previous;
        far = current;
    }
    for (var m = 0u; m < params.mixes; m++) {
        y[m * params.block + row] = near + (far - near) * mix[m * params.width + channel];
    }
}
