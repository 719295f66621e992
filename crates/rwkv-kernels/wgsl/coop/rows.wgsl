// A tile of W by rows, as x has its own: all threads load rows of the tile, a unit each.
const W_PARTS: u32 = DEPTH / UNIT;
const W_ROWS: u32 = THREADS / W_PARTS;
const W_PITCH: u32 = PITCH;
const W_TILE: u32 = ROWS * PITCH;
// How a matrix B is read from it.
#define LOAD_B coopLoad

const_assert $W_LOADS * W_ROWS == ROWS || ($W_LOADS == 1 && W_ROWS > ROWS);

// All of x is for all of W.
fn first_input() -> u32 {
    return 0u;
}

// The row in the tile. Threads past the units of a tile do what others do.
fn tile_row(thread: u32, load: u32) -> u32 {
    return thread / W_PARTS % ROWS + load * W_ROWS;
}

// The thread's unit of a row, when the tile begins at `column`. Past the last one, where x is zero, that serves again.
fn unit_of(column: u32, thread: u32) -> u32 {
    let unit = column / UNIT + thread % W_PARTS;
    return select(unit, min(unit, W_UNITS - 1u), CLIPPED);
}

// What of a load's place does not change from step to step: the row.
fn w_source(part: Part, thread: u32, load: u32) -> u32 {
    let row = part.row + tile_row(thread, load);
    return part.base + select(row, min(row, part.rows - 1u), CLIPPED);
}

fn load_w(source: u32, column: u32, thread: u32, load: u32) -> Raw {
    return load_raw(source, unit_of(column, thread));
}

fn store_w(raw: Raw, column: u32, thread: u32, load: u32) {
    store_raw(raw, unit_of(column, thread), tile_row(thread, load) * PITCH + thread % W_PARTS * (UNIT / 4u));
}

// Where a matrix begins, in units of four.
fn w_place(row: u32, column: u32) -> u32 {
    return row * PITCH + column / 4u;
}
