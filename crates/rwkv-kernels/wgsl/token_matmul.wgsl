// y = x E with another matrix E for each token: y[j] = Σ x[i] e[i, j], the rows of E one after the other in e.
#import invocation
#import grid

struct Params {
    tokens: u32,
    rows: u32,
    cols: u32,
    // Between tokens, in elements.
    x_stride: u32,
    e_stride: u32,
    y_stride: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> e: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

const SIZE: u32 = 64u;

@compute @workgroup_size(SIZE)
fn main(at: Invocation) {
    let item = flat_workgroup(at) * SIZE + at.thread;
    let token = item / params.cols;
    let column = item % params.cols;
    if token >= params.tokens {
        return;
    }
    var sum = 0.0;
    for (var i = 0u; i < params.rows; i++) {
        sum += x[token * params.x_stride + i] * e[token * params.e_stride + i * params.cols + column];
    }
    y[token * params.y_stride + column] = sum;
}
