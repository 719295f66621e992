// y[token] = the row of the table that the token names. A table that passes the binding limit comes in parts; each
// part fills the rows it has.
#import formats/$FORMAT
#import batch
#import invocation
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
    // The row of the bound weights that this part's row 0 is.
    base: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> tokens: array<Token>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

const SIZE: u32 = 64u;

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
    for (var unit = at.thread; unit < params.units; unit += SIZE) {
        let weight = weight_unit(params.base + id - params.first_row, unit, params.units);
        for (var part = 0u; part < PARTS; part++) {
            let value = weight[part];
            for (var i = 0u; i < 4u; i++) {
                let column = unit * UNIT + part * 4u + i;
                if column < params.cols {
                    y[token * params.y_stride + column] = value[i];
                }
            }
        }
    }
}
