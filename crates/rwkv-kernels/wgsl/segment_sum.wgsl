// Adds up what the slices of a stack's products left in `sums` (coop/sums.wgsl), in their order, and ends each segment as
// it asks.
enable f16;
#import coop/segments
#import coop/halves
#import activation
#import invocation
#import grid

@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;
// Slice by slice tokens × rows of whole tiles, after COUNTS numbers of others.
@group(0) @binding(3) var<storage, read> sums: array<vec4<f32>>;

const SIZE: u32 = 256u;
const COUNTS: u32 = 1024u;

@compute @workgroup_size(SIZE)
fn main(at: Invocation) {
    let item = flat_workgroup(at) * SIZE + at.thread;
    let parts = params.pitch / 4u;
    let token = item / parts;
    let column = item % parts * 4u;
    if token >= params.tokens {
        return;
    }
    let tile = column / params.tile_rows;
    let segment = params.segments[segment_of(tile)];
    let row = column - segment.first_tile * params.tile_rows;
    if row >= segment.rows {
        return;
    }
    // A multiple of four, as all segments are where tiles are moved.
    let moved = moved_up(segment.first_row, row / params.tile_rows * params.tile_rows);
    let first = (COUNTS + token * params.pitch + column + moved) / 4u;
    let step = params.slice_tokens * params.pitch / 4u;
    let scale = token_scale(segment.x, token);
    var sum = vec4(0.0);
    // All that are usual are under way at once.
    for (var slice = 0u; slice < params.slices; slice += 8u) {
#repeat i 8
        let sum_$i = sums[first + select(slice, slice + $i, slice + $i < params.slices) * step];
#endrepeat
#repeat i 8
        sum += select(vec4(0.0), sum_$i, slice + $i < params.slices);
#endrepeat
    }
    sum *= scale;
    var value: vec4<f32>;
#repeat i 4
    value[$i] = apply_function(segment.function_code, sum[$i]);
#endrepeat
    // Past the last row lies padding.
    y[(segment.y + token * segment.y_stride + row) / 4u] = value;
}
