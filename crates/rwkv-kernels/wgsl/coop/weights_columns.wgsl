// A tile of F16 weights that lie by columns (columns.wgsl): all threads load columns of the tile, eight bytes each. In the
// tile they lie as they come, so B is read the other way than from rows. `params.base` is the input of x that this part
// of W begins with.
@group(1) @binding(0) var<storage, read> weights: array<vec4<f16>>;

// Columns are whole units of eight.
const UNITS_A_UNIT: u32 = 2u;
#define W_LOADS $LOADS_4
#define LOAD_B coopLoadT

const W_PARTS: u32 = ROWS / 4u;
const W_COLUMNS: u32 = THREADS / W_PARTS;
// 16 bytes more than the rows, as in rows of x.
const W_PITCH: u32 = ROWS / 4u + 2u;
const W_TILE: u32 = DEPTH * W_PITCH;

const_assert $W_LOADS * W_COLUMNS == DEPTH;

fn first_input() -> u32 {
    return params.base;
}

// What of a load's place does not change from step to step: the unit of the columns. Past the last one that serves again.
fn w_source(part: Part, thread: u32, load: u32) -> u32 {
    let unit = part.row / 4u + thread % W_PARTS;
    return select(unit, min(unit, W_UNITS - 1u), CLIPPED);
}

// Past the last column, where x is zero, that serves again.
fn load_w(source: u32, column: u32, thread: u32, load: u32) -> vec4<f16> {
    let at = column + thread / W_PARTS + load * W_COLUMNS;
    return weights[select(at, min(at, params.cols - 1u), CLIPPED) * W_UNITS + source];
}

fn store_w(raw: vec4<f16>, column: u32, thread: u32, load: u32) {
    put_w((thread / W_PARTS + load * W_COLUMNS) * W_PITCH + thread % W_PARTS, raw);
}

// Where a matrix begins, in units of four.
fn w_place(row: u32, column: u32) -> u32 {
    return column * W_PITCH + row / 4u;
}
