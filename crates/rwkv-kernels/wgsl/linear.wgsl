// What matvec and matmul share: y = activate(W x + bias) + residual.
#import activation

struct Params {
    // Rows of this part of the matrix, and the number of the first one in the whole.
    rows: u32,
    first_row: u32,
    // Columns, and the units that hold them.
    cols: u32,
    units: u32,
    tokens: u32,
    // Strides between tokens: in vec4s for x, in elements for y and the residual.
    x_stride: u32,
    y_stride: u32,
    residual_stride: u32,
    // The row of the bound weights that this part's row 0 is.
    base: u32,
    // Units of x that are staged at a time, or all of them.
    chunk: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> bias: array<f32>;
@group(0) @binding(3) var<storage, read> residual: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

override HAS_BIAS: bool = false;
override HAS_RESIDUAL: bool = false;
// y already has the sums of other columns of the matrix.
override ADDS: bool = false;

// Elements `4 * part ..` of a token's x, zero past the last column: what lies in the padding is not a number of ours.
fn load_x(token: u32, part: u32) -> vec4<f32> {
    let value = x[token * params.x_stride + part];
    let left = vec4(4u * part) + vec4(0u, 1u, 2u, 3u);
    return select(vec4(0.0), value, left < vec4(params.cols));
}

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
