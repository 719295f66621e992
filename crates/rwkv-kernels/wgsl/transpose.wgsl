// Rows of F16 become columns: a workgroup turns a tile of 64 outputs × 64 inputs in workgroup memory. Elements are
// moved as bits.
#import invocation

struct Params {
    // Rows of x, and the number of the first one among the outputs.
    rows: u32,
    first_output: u32,
    // 16-byte units of a row of x, and of a column of y.
    row_units: u32,
    column_units: u32,
    // Inputs whose columns y holds, and the number of the first one: a multiple of the tile.
    inputs: u32,
    first_input: u32,
    // The row of the buffer that the first one is.
    base: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<u32>>;

const TILE: u32 = 64u;
const UNITS: u32 = TILE / 8u;
const THREADS: u32 = 256u;
// Words of a row of the tile, two inputs each, and one more so that threads do not meet in one bank.
const PITCH: u32 = TILE / 2u + 1u;

var<workgroup> tile: array<u32, TILE * PITCH>;

fn half(output: u32, input: u32) -> u32 {
    return (tile[output * PITCH + input / 2u] >> (input % 2u * 16u)) & 0xffffu;
}

// All bits of the halves that belong to rows of x, of the two outputs from `output` on.
fn written(output: u32) -> u32 {
    var mask = 0u;
    for (var i = 0u; i < 2u; i++) {
        if output + i >= params.first_output && output + i - params.first_output < params.rows {
            mask |= 0xffffu << (16u * i);
        }
    }
    return mask;
}

@compute @workgroup_size(THREADS)
fn main(at: Invocation) {
    let first_input = at.workgroup.x * TILE;
    let first_output = (params.first_output / TILE + at.workgroup.y) * TILE;
    for (var item = at.thread; item < TILE * UNITS; item += THREADS) {
        let output = first_output + item / UNITS;
        let unit = (params.first_input + first_input) / 8u + item % UNITS;
        let row = output - params.first_output;
        var packed = vec4(0u);
        if output >= params.first_output && row < params.rows && unit < params.row_units {
            packed = x[(params.base + row) * params.row_units + unit];
        }
        let place = item / UNITS * PITCH + item % UNITS * 4u;
        tile[place] = packed.x;
        tile[place + 1u] = packed.y;
        tile[place + 2u] = packed.z;
        tile[place + 3u] = packed.w;
    }
    workgroupBarrier();
    for (var item = at.thread; item < TILE * UNITS; item += THREADS) {
        let input = item / UNITS;
        let first = item % UNITS * 8u;
        let unit = first_output / 8u + item % UNITS;
        if first_input + input >= params.inputs || unit >= params.column_units {
            continue;
        }
        let place = (first_input + input) * params.column_units + unit;
        let packed = vec4(
            half(first, input) | half(first + 1u, input) << 16u,
            half(first + 2u, input) | half(first + 3u, input) << 16u,
            half(first + 4u, input) | half(first + 5u, input) << 16u,
            half(first + 6u, input) | half(first + 7u, input) << 16u,
        );
        // Outputs of other parts of a matrix, which may share these 16 bytes, stay.
        let output = first_output + first;
        let mask = vec4(written(output), written(output + 2u), written(output + 4u), written(output + 6u));
        if all(mask == vec4(0xffffffffu)) {
            y[place] = packed;
        } else if any(mask != vec4(0u)) {
            y[place] = (y[place] & ~mask) | (packed & mask);
        }
    }
}
