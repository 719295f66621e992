// Sums are whole: they end as products do. A subgroup's matrix of sums passes through workgroup memory, where its lanes
// can tell tokens and rows apart.
#import epilogue

// Elements between the rows of a staged matrix: 16 bytes more, so that rows begin in other banks.
const STAGE_PITCH: u32 = SIDE + 4u;

var<workgroup> stage: array<f32, SUBGROUPS * SIDE * STAGE_PITCH>;

fn finish_matrix(first_token: u32, first_row: u32, subgroup: u32, lane: u32) {
    for (var place = lane; place < SIDE * SIDE; place += LANES) {
        let token = first_token + place / SIDE;
        let row = first_row + place % SIDE;
        if token < params.tokens && row < params.rows {
            let sum = stage[(subgroup * SIDE + place / SIDE) * STAGE_PITCH + place % SIDE];
            finish(sum * token_scale(token), row, token);
        }
    }
}
