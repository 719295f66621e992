// Rows of a stack of matrices are in segments, each with an x, a function and a place of its own. A tile has rows of one
// segment.
struct Segment {
    // Tiles of rows before it, and its rows in the stack.
    first_tile: u32,
    first_row: u32,
    rows: u32,
    // Where its x begins, in units of four.
    x: u32,
    // Where its results begin, and the distance between those of two tokens, in elements: multiples of four.
    y: u32,
    y_stride: u32,
    // As in activation.wgsl.
    function_code: u32,
    padding: u32,
}

struct Params {
    tokens: u32,
    cols: u32,
    // Columns of a slice.
    chunk: u32,
    // Between tokens of x, in units of four.
    x_stride: u32,
    // Segments; and of what slices leave: rows of a tile, elements from one token to the next, tokens of a slice, slices.
    count: u32,
    tile_rows: u32,
    pitch: u32,
    slice_tokens: u32,
    slices: u32,
    // Rows of the whole stack, if a tile is moved up where it would reach past them.
    stack_rows: u32,
    padding_1: u32,
    padding_2: u32,
    segments: array<Segment, 8>,
}

@group(0) @binding(0) var<uniform> params: Params;

// Rows that a tile which begins with `row` of a segment lies further up: tiles may have rows of the next segment, which
// nobody looks at, but none past the last.
fn moved_up(first_row: u32, row: u32) -> u32 {
    let end = first_row + row + params.tile_rows;
    return select(0u, end - params.stack_rows, end > params.stack_rows);
}

// Which segment has a tile of rows.
fn segment_of(tile: u32) -> u32 {
    var found = 0u;
#repeat i 7
    found += u32($i + 1u < params.count && params.segments[min($i + 1u, 7u)].first_tile <= tile);
#endrepeat
    return found;
}
