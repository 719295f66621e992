// Adds up what the slices of a matrix product left in `sums` (coop/sums.wgsl), in their order, and ends as products do.
enable f16;
#import epilogue
#import coop/halves
#import invocation
#import grid

// `params.chunk` slices, each a matrix of `params.base` tokens, `params.units` elements between them, after COUNTS
// numbers of others.
@group(0) @binding(5) var<storage, read> sums: array<vec4<f32>>;

const SIZE: u32 = 256u;
const COUNTS: u32 = 1024u;
// Sums that a thread has under way at once.
const BATCH: u32 = 8u;

@compute @workgroup_size(SIZE)
fn main(at: Invocation) {
    let item = flat_workgroup(at) * SIZE + at.thread;
    let parts = (params.rows + 3u) / 4u;
    let token = item / parts;
    let row = item % parts * 4u;
    if token >= params.tokens {
        return;
    }
    let first = (COUNTS + token * params.units + row) / 4u;
    let step = params.base * params.units / 4u;
    // Asked for before it is needed, not between stores.
    let scale = token_scale(0u, token);
#repeat i 4
    let onto_$i = onto(min(row + $i, params.rows - 1u), token);
#endrepeat
    var sum = vec4(0.0);
    for (var slice = 0u; slice < params.chunk; slice += BATCH) {
#repeat i 8
        let sum_$i = sums[first + select(slice, slice + $i, slice + $i < params.chunk) * step];
#endrepeat
#repeat i 8
        sum += select(vec4(0.0), sum_$i, slice + $i < params.chunk);
#endrepeat
    }
    sum *= scale;
#repeat i 4
    if row + $i < params.rows {
        finish_onto(sum[$i], onto_$i, row + $i, token);
    }
#endrepeat
}
