// y[token] = the layer norm of the row of the table that the token names. A workgroup a token, which expands its row
// once for each pass: the packed row is small and in the nearest cache by then. A table that passes the binding limit
// comes in parts; each part fills the rows it has.
#import formats/$FORMAT
#import reduce/$LANES
#import batch
#import grid

struct Params {
    // Rows of this part of the table, and the first one's id.
    rows: u32,
    first_row: u32,
    cols: u32,
    units: u32,
    tokens: u32,
    // Between rows of y, in elements.
    y_stride: u32,
    epsilon: f32,
    // The row of the buffers that the first one is.
    base: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> tokens: array<Token>;
@group(0) @binding(2) var<storage, read> weight: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

// Which of the elements of a part, the first of them in `column`, are in the row.
fn in_row(column: u32) -> vec4<bool> {
    return vec4(column) + vec4(0u, 1u, 2u, 3u) < vec4(params.cols);
}

@compute @workgroup_size(SIZE)
fn main(at: Invocation) {
    let token = flat_workgroup(at);
    if token >= params.tokens {
        return;
    }
    let id = tokens[token].id;
    if id < params.first_row || id - params.first_row >= params.rows {
        return;
    }
    let row = params.base + id - params.first_row;
    let count = f32(params.cols);
    var sum = vec4(0.0);
    for (var unit = at.thread; unit < params.units; unit += SIZE) {
        let values = weight_unit(row, unit, params.units);
        for (var part = 0u; part < PARTS; part++) {
            sum += select(vec4(0.0), values[part], in_row(unit * UNIT + part * 4u));
        }
    }
    let mean = workgroup_add(sum.x + sum.y + sum.z + sum.w, at) / count;
    var square = vec4(0.0);
    for (var unit = at.thread; unit < params.units; unit += SIZE) {
        let values = weight_unit(row, unit, params.units);
        for (var part = 0u; part < PARTS; part++) {
            let d = select(vec4(0.0), values[part] - mean, in_row(unit * UNIT + part * 4u));
            square += d * d;
        }
    }
    let variance = workgroup_add(square.x + square.y + square.z + square.w, at) / count;
    let scale = 1.0 / sqrt(variance + params.epsilon);
    for (var unit = at.thread; unit < params.units; unit += SIZE) {
        let values = weight_unit(row, unit, params.units);
        for (var part = 0u; part < PARTS; part++) {
            let normed = (values[part] - mean) * scale;
            for (var i = 0u; i < 4u; i++) {
                let column = unit * UNIT + part * 4u + i;
                if column < params.cols {
                    y[token * params.y_stride + column] = normed[i] * weight[column] + bias[column];
                }
            }
        }
    }
}
