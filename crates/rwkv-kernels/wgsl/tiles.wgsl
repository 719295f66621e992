// Y = X Wᵀ for many tokens: a workgroup makes a tile of 64 rows of W × 64 tokens, STEP columns at a time through
// workgroup memory, and each thread a 4 × 4 part of it in registers. Who imports this brings STEP, PITCH (elements
// between columns of a tile) and `load_w`, which fills `w_tile`.
#import linear

const TILE: u32 = 64u;

var<workgroup> w_tile: array<f32, STEP * PITCH>;
var<workgroup> x_tile: array<f32, STEP * PITCH>;

fn load_tokens(first_token: u32, first_column: u32, thread: u32) {
    let token = thread / 4u;
    for (var column = thread % 4u * 4u; column < STEP; column += 16u) {
        var value = vec4(0.0);
        if first_token + token < params.tokens && first_column + column < params.cols {
            value = load_x(first_token + token, (first_column + column) / 4u);
        }
        x_tile[column * PITCH + token] = value.x;
        x_tile[(column + 1u) * PITCH + token] = value.y;
        x_tile[(column + 2u) * PITCH + token] = value.z;
        x_tile[(column + 3u) * PITCH + token] = value.w;
    }
}

@compute @workgroup_size(16, 16)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let first_row = workgroup.x * TILE;
    let first_token = workgroup.y * TILE;
    // Neighbouring threads make neighbouring rows of W, which are neighbouring elements of y.
    let row = thread % 16u;
    let token = thread / 16u;
    var sums: array<vec4<f32>, 4>;
    for (var column = 0u; column < params.cols; column += STEP) {
        load_w(first_row, column, thread);
        load_tokens(first_token, column, thread);
        workgroupBarrier();
        for (var k = 0u; k < STEP; k++) {
            let at = k * PITCH;
            let weight = vec4(
                w_tile[at + row],
                w_tile[at + row + 16u],
                w_tile[at + row + 32u],
                w_tile[at + row + 48u],
            );
            for (var i = 0u; i < 4u; i++) {
                sums[i] += weight * x_tile[at + token * 4u + i];
            }
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < 4u; i++) {
        let t = first_token + token * 4u + i;
        let sum = sums[i];
        for (var j = 0u; j < 4u; j++) {
            let r = first_row + row + j * 16u;
            if t < params.tokens && r < params.rows {
                finish(sum[j], r, t);
            }
        }
    }
}
