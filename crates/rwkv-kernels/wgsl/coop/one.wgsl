// All rows of a matrix, or of one part of it, are for one x.
#ifdef END_FINISH
#import epilogue
#else
#import product
#endif

// Where a workgroup's tile lies.
struct Part {
    // Its first row among `rows`, of which row 0 is row `base` of the weights.
    row: u32,
    rows: u32,
    base: u32,
    // Where the rows of x begin.
    x: u32,
    // Rows that the tile lies before `row`: where it would reach past the last row of all.
    moved: u32,
}

fn part_of(tile: u32) -> Part {
    return Part(tile * ROWS, params.rows, params.base, 0u, 0u);
}

#ifdef END_FINISH
fn onto_part(part: Part, row: u32, token: u32) -> f32 {
    return onto(row, token);
}

// Whether nothing is to be done to values but what finish_part does.
fn is_plain(part: Part) -> bool {
    return true;
}

fn finish_part(part: Part, value: f32, added: f32, row: u32, token: u32) {
    finish_onto(value, added, row, token);
}
#endif
