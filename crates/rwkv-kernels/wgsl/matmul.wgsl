// Y = X Wᵀ for many tokens and a W in rows of a format's units.
#import formats/$FORMAT
#import tiles

const STEP: u32 = max(16u, UNIT);
// One more than the tile, so that the threads that store a column do not meet in one bank. Units of 32 fill the 16 KiB
// of workgroup memory that WebGPU promises, but there a row is one unit and neighbouring threads store neighbours.
const PITCH: u32 = TILE + 16u / STEP;
const ROW_UNITS: u32 = STEP / UNIT;

fn load_w(first_row: u32, first_column: u32, thread: u32) {
    if thread >= TILE * ROW_UNITS {
        return;
    }
    let row = thread / ROW_UNITS;
    let unit = thread % ROW_UNITS;
    let source = first_column / UNIT + unit;
    var weight = array<vec4<f32>, PARTS>();
    if first_row + row < params.rows && source < params.units {
        weight = weight_unit(params.base + first_row + row, source, params.units);
    }
    for (var part = 0u; part < PARTS; part++) {
        let column = unit * UNIT + part * 4u;
        let value = weight[part];
        w_tile[column * PITCH + row] = value.x;
        w_tile[(column + 1u) * PITCH + row] = value.y;
        w_tile[(column + 2u) * PITCH + row] = value.z;
        w_tile[(column + 3u) * PITCH + row] = value.w;
    }
}
