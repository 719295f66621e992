// How products end: y = activate(W x + bias) + residual.
#import activation
#import product

@group(0) @binding(2) var<storage, read> bias: array<f32>;
@group(0) @binding(3) var<storage, read> residual: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

override HAS_BIAS: bool = false;
override HAS_RESIDUAL: bool = false;
// y already has the sums of other columns of the matrix.
override ADDS: bool = false;

// What the value of a row is added to. Kernels that finish several at once ask for all of it first: it is waited for.
fn onto(row: u32, token: u32) -> f32 {
    let column = params.first_row + row;
    var value = 0.0;
    if HAS_RESIDUAL {
        value = residual[token * params.residual_stride + column];
    }
    if ADDS {
        value += y[token * params.y_stride + column];
    }
    return value;
}

fn finish_onto(sum: f32, onto: f32, row: u32, token: u32) {
    let column = params.first_row + row;
    var value = sum;
    if HAS_BIAS {
        value += bias[column];
    }
    value = activate(value);
    if HAS_RESIDUAL || ADDS {
        value += onto;
    }
    y[token * params.y_stride + column] = value;
}

fn finish(sum: f32, row: u32, token: u32) {
    finish_onto(sum, onto(row, token), row, token);
}
