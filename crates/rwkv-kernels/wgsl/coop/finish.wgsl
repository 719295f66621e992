// Sums are whole: they end as products do. A subgroup's matrix of sums passes through workgroup memory, where its lanes
// can tell tokens and rows apart.

// Elements between the rows of a staged matrix: 16 bytes more, so that rows begin in other banks.
const STAGE_PITCH: u32 = SIDE + 4u;

var<workgroup> stage: array<f32, SUBGROUPS * SIDE * STAGE_PITCH>;

// What a lane's elements of a matrix are multiplied by and added to. All of it is asked for at once, before the barriers:
// one after the other, it took a tenth of the time of 2048 × 4096×4096, and a fifth with a residual (H200, 2026-11).
struct Onto {
#repeat e $EACH
    scale_$e: f32,
    value_$e: f32,
#endrepeat
}

fn onto_matrix(part: Part, first_token: u32, first_row: u32, lane: u32) -> Onto {
    var all: Onto;
    let row = min(first_row + lane % SIDE, part.rows - 1u);
#repeat e $EACH
    let token_$e = min(first_token + lane / SIDE + $e * (LANES / SIDE), params.tokens - 1u);
    all.scale_$e = token_scale(part.x, token_$e);
    all.value_$e = onto_part(part, row, token_$e);
#endrepeat
    return all;
}

// Where all of the tile is there nothing depends on a condition: compilers move a load to the only branch that needs it,
// where it is waited for.
fn finish_matrix(part: Part, all: Onto, first_token: u32, first_row: u32, subgroup: u32, lane: u32, whole: bool) {
    let token = first_token + lane / SIDE;
    let row = first_row + lane % SIDE;
    let place = (subgroup * SIDE + lane / SIDE) * STAGE_PITCH + lane % SIDE;
#repeat e $EACH
    let value_$e = stage[place + $e * (LANES / SIDE) * STAGE_PITCH] * all.scale_$e;
#endrepeat
    if whole {
#repeat e $EACH
        finish_part(part, value_$e, all.value_$e, row, token + $e * (LANES / SIDE));
#endrepeat
    } else {
#repeat e $EACH
        if token + $e * (LANES / SIDE) < params.tokens && row < part.rows {
            finish_part(part, value_$e, all.value_$e, row, token + $e * (LANES / SIDE));
        }
#endrepeat
    }
}
