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

fn finish(sum: f32, row: u32, token: u32) {
    let column = params.first_row + row;
    var value = sum;
    if HAS_BIAS {
        value += bias[column];
    }
    value = activate(value);
    if HAS_RESIDUAL {
        value += residual[token * params.residual_stride + column];
    }
    let place = token * params.y_stride + column;
    if ADDS {
        value += y[place];
    }
    y[place] = value;
}
