// Y = X Wᵀ for many tokens in f32: a workgroup makes a tile of 64 rows of W × 64 tokens, STEP columns at a time through
// workgroup memory, while the next ones come into registers; each thread has an 8 × 8 part of it in registers.
//
// A column costs a thread four loads of 16 bytes from workgroup memory and 64 multiplications, so that 94 % of what it
// issues are those; with 4 × 4 parts and loads of one element it is 8 loads and 16 multiplications. Only 64 threads, so
// that units of 32 elements fill the 16 KiB of workgroup memory that WebGPU promises.
//
// Who imports this brings STEP, a multiple of 16; `fetch_w`, which loads W for a step; `store_w`, which puts it into
// workgroup memory when all threads are done with the step before; and `w_four`, four rows of a column there, by their
// `place_of`. One thread writes a vector there: of several that write its elements, some may write old ones back. Loads are
// neither in a branch nor used in a later turn of the loop: drivers then wait for them at once (matmul_coop.wgsl).
#import linear

const TILE: u32 = 64u;
const THREADS: u32 = 64u;
// Vectors of a tile's column, four rows or tokens each.
const VECTORS: u32 = TILE / 4u;
// Vectors of x that a thread loads for a step.
const X_LOADS: u32 = STEP / 4u;

var<workgroup> x_tile: array<vec4<f32>, STEP * VECTORS>;

// Where `vector` of a tile's column lies. Columns 4, 8 and 12 further have theirs in other banks, so that threads that
// store four columns each do not meet in one; eight neighbouring vectors stay in eight places.
fn place_of(column: u32, vector: u32) -> u32 {
    return column * VECTORS + (vector ^ (column / 4u % 4u * 2u));
}

// Four threads load 64 bytes of a token's x, with four loads of four tokens.
fn token_of(load: u32, thread: u32) -> u32 {
    return thread / 4u * 4u + load % 4u;
}

fn column_of(load: u32, thread: u32) -> u32 {
    return load / 4u * 16u + thread % 4u * 4u;
}

fn fetch_x(first_token: u32, first_column: u32, load: u32, thread: u32) -> vec4<f32> {
    // Tokens past the last one are not stored.
    let token = min(first_token + token_of(load, thread), params.tokens - 1u);
    let column = first_column + column_of(load, thread);
    let value = x[token * params.x_stride + min(column, params.cols - 1u) / 4u];
    // What lies in the padding is not a number of ours.
    return select(vec4(0.0), value, vec4(column) + vec4(0u, 1u, 2u, 3u) < vec4(params.cols));
}

// What four loads from `load` on have brought: four columns of four tokens, as columns.
fn store_x(values: mat4x4<f32>, load: u32, thread: u32) {
    if load < X_LOADS {
        let columns = transpose(values);
        let column = column_of(load, thread);
        let vector = thread / 4u;
#repeat i 4
        x_tile[place_of(column + $i, vector)] = columns[$i];
#endrepeat
    }
}

fn finish_rows(sums: vec4<f32>, row: u32, token: u32) {
    if token < params.tokens {
        for (var i = 0u; i < 4u; i++) {
            if row + i < params.rows {
                finish(sums[i], row + i, token);
            }
        }
    }
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let first_row = workgroup.x * TILE;
    let first_token = workgroup.y * TILE;
    // Neighbouring threads make neighbouring rows of W, which are neighbouring elements of y: four, and four from the
    // middle of the tile on. So with tokens.
    let row = thread % 8u;
    let token = thread / 8u;
    // By halves of the rows, halves of the tokens, and tokens.
#repeat r 2
#repeat t 2
#repeat i 4
    var sum_$r$t$i = vec4(0.0);
#endrepeat
#endrepeat
#endrepeat
    {
#repeat i 8
        let x_$i = fetch_x(first_token, 0u, $i % X_LOADS, thread);
#endrepeat
        fetch_w(first_row, 0u, thread);
        store_w(first_row, 0u, thread);
        store_x(mat4x4(x_0, x_1, x_2, x_3), 0u, thread);
        store_x(mat4x4(x_4, x_5, x_6, x_7), 4u, thread);
    }
    workgroupBarrier();
    for (var column = 0u; column < params.cols; column += STEP) {
        let next = column + STEP;
#repeat i 8
        let x_$i = fetch_x(first_token, next, $i % X_LOADS, thread);
#endrepeat
        fetch_w(first_row, next, thread);
        for (var k = 0u; k < STEP; k += 4u) {
            // Vectors 8 further are 8 further for every column.
            let w_at = place_of(k, row);
            let x_at = place_of(k, token);
#repeat later 4
            {
#repeat half 2
                let w_half$half = w_four(w_at + $later * VECTORS + $half * 8u);
                let x_half$half = x_tile[x_at + $later * VECTORS + $half * 8u];
#endrepeat
#repeat r 2
#repeat t 2
#repeat i 4
                sum_$r$t$i += w_half$r * x_half$t[$i];
#endrepeat
#endrepeat
#endrepeat
            }
#endrepeat
        }
        workgroupBarrier();
        store_w(first_row, next, thread);
        store_x(mat4x4(x_0, x_1, x_2, x_3), 0u, thread);
        store_x(mat4x4(x_4, x_5, x_6, x_7), 4u, thread);
        workgroupBarrier();
    }
    let first = first_row + row * 4u;
    let start = first_token + token * 4u;
    // Only here in an array, so that what follows is there once: drivers compile 16 of it for seconds.
    let sums = array<vec4<f32>, 16>(
#repeat r 2
#repeat t 2
#repeat i 4
        sum_$r$t$i,
#endrepeat
#endrepeat
#endrepeat
    );
    for (var part = 0u; part < 16u; part++) {
        finish_rows(sums[part], first + part / 8u * 32u, start + part / 4u % 2u * 32u + part % 4u);
    }
}
