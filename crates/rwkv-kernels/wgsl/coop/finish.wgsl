// Sums are whole: they end as products do. A subgroup's matrix of sums passes through workgroup memory, where its lanes
// can tell tokens and rows apart.

// Elements between the rows of a staged matrix: 16 bytes more, so that rows begin in other banks.
const STAGE_PITCH: u32 = SIDE + 4u;

var<workgroup> stage: array<f32, SUBGROUPS * SIDE * STAGE_PITCH>;

// What a lane's elements of a matrix are multiplied by and added to. It is asked for two matrices ahead, before their
// barriers: one after the other, it took a tenth of the time of 2048 × 4096×4096, and a fifth with a residual (H200,
// 2026-11).
struct Onto {
#repeat e $EACH
    scale_$e: f32,
    value_$e: f32,
#endrepeat
}

// Of the subgroup's matrix `index`, in the order in which they end; past the last one nobody looks at it.
fn onto_matrix(part: Part, token: u32, first_row: u32, lane: u32, index: u32) -> Onto {
    let matrix = min(index, $HIGH * $WIDE - 1u);
    let first_token = token + matrix / $WIDE * SIDE;
    var all: Onto;
    let row = min(first_row + matrix % $WIDE * SIDE + lane % SIDE, part.rows - 1u);
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
    if whole && is_plain(part) {
#repeat e $EACH
        finish_part(part, value_$e, all.value_$e, row, token + $e * (LANES / SIDE));
#endrepeat
    } else {
#ifdef OF_STACK
        // Functions that the part names make long code. Written out for each element of each matrix it took 40 µs a
        // workgroup to fetch, even to jump over (H200, 2026-11): so it is a loop whose turns are not known.
#repeat e $EACH
        stage[place + $e * (LANES / SIDE) * STAGE_PITCH] = value_$e;
#endrepeat
        for (var e = 0u; e < min($EACH * params.tokens, $EACH); e++) {
            let own = token + e * (LANES / SIDE);
            if own < params.tokens && row < part.rows {
                finish_any(part, stage[place + e * (LANES / SIDE) * STAGE_PITCH], row, own);
            }
        }
#else
#repeat e $EACH
        if token + $e * (LANES / SIDE) < params.tokens && row < part.rows {
            finish_part(part, value_$e, all.value_$e, row, token + $e * (LANES / SIDE));
        }
#endrepeat
#endif
    }
}
