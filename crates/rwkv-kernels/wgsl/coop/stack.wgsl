// Several products in one: tiles of a stack's segments.
#import coop/segments
#ifdef END_FINISH
#import activation

@group(0) @binding(2) var<storage, read_write> y: array<f32>;
#endif

// Where a workgroup's tile lies, as in coop/one, and where its segment's results do.
struct Part {
    row: u32,
    rows: u32,
    base: u32,
    x: u32,
    moved: u32,
    y: u32,
    y_stride: u32,
    function_code: u32,
}

fn part_of(tile: u32) -> Part {
    let segment = params.segments[segment_of(tile)];
    let row = (tile - segment.first_tile) * ROWS;
    let moved = moved_up(segment.first_row, row);
    // Before the segment's first row, it wraps around, and is past all of them.
    return Part(
        row - moved,
        segment.rows,
        segment.first_row,
        segment.x,
        moved,
        segment.y,
        segment.y_stride,
        segment.function_code,
    );
}

#ifdef END_FINISH
fn onto_part(part: Part, row: u32, token: u32) -> f32 {
    return 0.0;
}

// Whether values are the results as they are.
fn is_plain(part: Part) -> bool {
    return part.function_code == 0u;
}

fn finish_part(part: Part, value: f32, added: f32, row: u32, token: u32) {
    y[part.y + token * part.y_stride + row] = value;
}

fn finish_any(part: Part, value: f32, row: u32, token: u32) {
    y[part.y + token * part.y_stride + row] = apply_function(part.function_code, value);
}
#endif
