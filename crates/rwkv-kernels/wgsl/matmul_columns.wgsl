// Y = X Wᵀ for many tokens and a W whose columns are contiguous.
#import columns
#import tiles

const STEP: u32 = 16u;
const PITCH: u32 = TILE + 1u;
const ROW_UNITS: u32 = TILE / 8u;

fn load_w(first_row: u32, first_column: u32, thread: u32) {
    if thread >= STEP * ROW_UNITS {
        return;
    }
    let column = thread / ROW_UNITS;
    let unit = thread % ROW_UNITS;
    let source = first_row / 8u + unit;
    var packed = vec4(0u);
    if first_column + column < params.cols && source < params.units {
        packed = weights[(first_column + column) * params.units + source];
    }
    let weight = eight(packed);
    for (var i = 0u; i < 4u; i++) {
        w_tile[column * PITCH + unit * 8u + i] = weight.low[i];
        w_tile[column * PITCH + unit * 8u + 4u + i] = weight.high[i];
    }
}
