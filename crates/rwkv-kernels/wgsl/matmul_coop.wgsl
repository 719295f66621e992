// Y = X Wᵀ for many tokens with cooperative matrices of f16 that add up in f32. A workgroup makes a tile of TOKENS × ROWS,
// DEPTH columns at a time through workgroup memory: while these are multiplied, the next ones are loaded into registers.
// Each subgroup has HIGH × WIDE matrices of sums. They are variables with names, as drivers keep arrays of matrices in
// memory.
//
// What makes it fast (H200, 2026-11): loads stand before the products and are stored after them in the same turn of the
// loop, without a branch between; where they were used in the next turn, the driver put them after the products, and all
// took twice as long. What addresses depend on is constant when the pipeline compiles. Rows of a tile that are 16 bytes
// longer than its columns lie in other banks: twice as fast as without. Two buffers in workgroup memory, with one barrier a
// step instead of two, were slower than steps twice as deep.
//
// Workgroups that follow each other have one tile of W and go through all tokens, so that x stays in the nearest large
// cache and W is read once.
//
// A tile whose subgroups are few (coop/tiles, FEW) has no other subgroup to work while one waits: it loads the matrices of
// the next columns before it multiplies these, and its loop has a number of turns that is known when the pipeline compiles.
// Workgroups take the steps of a window in different orders then, so that they do not ask for the same x at the same time,
// but all of them go through W and x side by side.
//
// All of W is for one x (coop/one.wgsl), or its rows are in segments for several (coop/stack.wgsl).
//
// W lies by rows (coop/rows.wgsl) or by columns (coop/weights_columns.wgsl), and so do its tiles.
enable f16;
enable wgpu_cooperative_matrix;
#import coop/tiles/$TILE
#import coop/$OF
#import coop/$END
#import coop/halves
#ifdef FORMAT_COLUMNS
#import coop/weights_columns
#else
#ifdef FORMAT_F16
#import coop/weights_f16
#else
#import coop/weights_units
#endif
#import coop/rows
#endif

const SIDE: u32 = $SIDE;
const TOKENS: u32 = $TOKENS;
const ROWS: u32 = $ROWS;
const DEPTH: u32 = $DEPTH;
const LANES: u32 = 32u;
const SUBGROUPS_ACROSS: u32 = ROWS / SIDE / $WIDE;
const SUBGROUPS: u32 = TOKENS / SIDE / $HIGH * SUBGROUPS_ACROSS;
const THREADS: u32 = LANES * SUBGROUPS;

// From one row of x to the next, in units of four.
override X_STRIDE: u32 = 34u;
// Units from one row or column of W to the next, as its format counts them.
override UNITS: u32 = 8u;
override W_UNITS: u32 = UNITS * UNITS_A_UNIT;
// The tile reaches past the last row of W, or a step past its last unit.
override CLIPPED: bool = false;

// Units of four elements from one row of a tile of x to the next.
const PITCH: u32 = DEPTH / 4u + 2u;
// Of a row of x, and rows that the threads load at once.
const X_PARTS: u32 = DEPTH / 4u;
const X_ROWS: u32 = THREADS / X_PARTS;

#ifdef FEW
// Steps of each slice, if all have as many, else 0; and of a window, a power of two that divides them.
override TURNS: u32 = 0u;
override WINDOW: u32 = 1u;
#endif

const_assert 128u % DEPTH == 0u;
const_assert $X_LOADS * X_ROWS == TOKENS;

#ifdef SCALAR
// Metal reads matrices from memory of their own elements only.
const STEP: u32 = 4u;
var<workgroup> x_tile: array<f16, TOKENS * PITCH * STEP>;
var<workgroup> w_tile: array<f16, W_TILE * STEP>;

fn put_x(place: u32, value: vec4<f16>) {
#repeat i 4
    x_tile[place * STEP + $i] = value[$i];
#endrepeat
}

fn put_w(place: u32, value: vec4<f16>) {
#repeat i 4
    w_tile[place * STEP + $i] = value[$i];
#endrepeat
}
#else
// As vec4s: as single elements they are stored and loaded one by one.
const STEP: u32 = 1u;
var<workgroup> x_tile: array<vec4<f16>, TOKENS * PITCH>;
var<workgroup> w_tile: array<vec4<f16>, W_TILE>;

fn put_x(place: u32, value: vec4<f16>) {
    x_tile[place] = value;
}

fn put_w(place: u32, value: vec4<f16>) {
    w_tile[place] = value;
}
#endif

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let first_token = workgroup.x * TOKENS;
    let part = part_of(workgroup.y);
    let first_row = part.row;
    // Columns of this slice, and the last step of them.
    let begin = workgroup.z * params.chunk;
    let end = min(begin + params.chunk, params.cols);
    let last = begin + (end - begin - 1u) / DEPTH * DEPTH;

    // Where this thread's part of a tile comes from and goes to.
    let x_from = (first_token + thread / X_PARTS) * X_STRIDE + part.x + first_input() / 4u + thread % X_PARTS;
    let x_to = thread / X_PARTS * PITCH + thread % X_PARTS;
#repeat i $W_LOADS
    let w_from$i = w_source(part, thread, $i);
#endrepeat

    // The subgroup's first matrix of sums in the tile.
    let token = subgroup / SUBGROUPS_ACROSS * ($HIGH * SIDE);
    let row = subgroup % SUBGROUPS_ACROSS * ($WIDE * SIDE);
#repeat i $HIGH
#repeat j $WIDE
    var sum_$i$j: $MATRIX<f32, C>;
#endrepeat
#endrepeat

#ifdef FEW
    let turns = select((end - begin + DEPTH - 1u) / DEPTH, TURNS, TURNS > 0u);
    let turned = (workgroup.x + workgroup.y * 3u) % WINDOW;
    var column = begin + turned * DEPTH;
#else
    var column = begin;
#endif
    {
#repeat i $X_LOADS
        let x_$i = x[x_from + column / 4u + $i * X_ROWS * X_STRIDE];
#endrepeat
#repeat i $W_LOADS
        let w_$i = load_w(w_from$i, column, thread, $i);
#endrepeat
#repeat i $X_LOADS
        put_x(x_to + $i * X_ROWS * PITCH, x_$i);
#endrepeat
#repeat i $W_LOADS
        store_w(w_$i, column, thread, $i);
#endrepeat
    }
    workgroupBarrier();
#ifdef FEW
    for (var turn = 0u; turn < turns; turn++) {
        // At the end the last step's are loaded again.
        let next = begin + (min(turn + 1u, turns - 1u) ^ turned) * DEPTH;
#else
    for (; column < end; column += DEPTH) {
        // At the end the last step's are loaded again.
        let next = min(column + DEPTH, last);
#endif
#repeat i $X_LOADS
        let x_$i = x[x_from + next / 4u + $i * X_ROWS * X_STRIDE];
#endrepeat
#repeat i $W_LOADS
        let w_$i = load_w(w_from$i, next, thread, $i);
#endrepeat
#ifdef FEW
#repeat i $HIGH
        var a$i = coopLoadT<$MATRIX<f16, A>>(
            &x_tile[((token + $i * SIDE) * PITCH) * STEP],
            PITCH * STEP,
        );
#endrepeat
#repeat j $WIDE
        var b$j = $LOAD_B<$MATRIX<f16, B>>(
            &w_tile[w_place(row + $j * SIDE, 0u) * STEP],
            W_PITCH * STEP,
        );
#endrepeat
#repeat k $STEPS
        {
            // Past the last one nobody uses what is loaded.
            let after = min($k + 1u, $STEPS - 1u);
#repeat i $HIGH
            let next_a$i = coopLoadT<$MATRIX<f16, A>>(
                &x_tile[((token + $i * SIDE) * PITCH + after * (SIDE / 4u)) * STEP],
                PITCH * STEP,
            );
#endrepeat
#repeat j $WIDE
            let next_b$j = $LOAD_B<$MATRIX<f16, B>>(
                &w_tile[w_place(row + $j * SIDE, after * SIDE) * STEP],
                W_PITCH * STEP,
            );
#endrepeat
#repeat j $WIDE
#repeat i $HIGH
            sum_$i$j = coopMultiplyAdd(a$i, b$j, sum_$i$j);
#endrepeat
#endrepeat
#repeat i $HIGH
            a$i = next_a$i;
#endrepeat
#repeat j $WIDE
            b$j = next_b$j;
#endrepeat
        }
#endrepeat
#else
#repeat k $STEPS
        {
#repeat i $HIGH
            let a$i = coopLoadT<$MATRIX<f16, A>>(
                &x_tile[((token + $i * SIDE) * PITCH + $k * (SIDE / 4u)) * STEP],
                PITCH * STEP,
            );
#endrepeat
#repeat j $WIDE
            let b$j = $LOAD_B<$MATRIX<f16, B>>(
                &w_tile[w_place(row + $j * SIDE, $k * SIDE) * STEP],
                W_PITCH * STEP,
            );
#repeat i $HIGH
            sum_$i$j = coopMultiplyAdd(a$i, b$j, sum_$i$j);
#endrepeat
#endrepeat
        }
#endrepeat
#endif
        workgroupBarrier();
#repeat i $X_LOADS
        put_x(x_to + $i * X_ROWS * PITCH, x_$i);
#endrepeat
#repeat i $W_LOADS
        store_w(w_$i, next, thread, $i);
#endrepeat
        workgroupBarrier();
#ifdef FEW
        column = next;
#endif
    }

    // Here naga 30 needs what is stored, and where, by a name of its own: expressions come after the store that uses them.
#ifdef END_SUMS
    let pitch = workgroups.y * ROWS;
    let place = COUNTS + (workgroup.z * workgroups.x * TOKENS + first_token + token) * pitch + workgroup.y * ROWS + row;
#repeat i $HIGH
#repeat j $WIDE
    let total_$i$j = sum_$i$j;
    let place_$i$j = place + $i * SIDE * pitch + $j * SIDE;
    coopStoreT(total_$i$j, &sums[place_$i$j], pitch);
#endrepeat
#endrepeat
#else
    let staged = subgroup * SIDE * STAGE_PITCH;
    let whole = first_token + TOKENS <= params.tokens && part.moved == 0u && first_row + ROWS <= part.rows;
    var onto_this = onto_matrix(part, first_token + token, first_row + row, lane, 0u);
    var onto_next = onto_matrix(part, first_token + token, first_row + row, lane, 1u);
#repeat i $HIGH
#repeat j $WIDE
    let onto_after_$i$j = onto_matrix(part, first_token + token, first_row + row, lane, $i * $WIDE + $j + 2u);
    let total_$i$j = sum_$i$j;
    workgroupBarrier();
    coopStoreT(total_$i$j, &stage[staged], STAGE_PITCH);
    workgroupBarrier();
    finish_matrix(part, onto_this, first_token + token + $i * SIDE, first_row + row + $j * SIDE, subgroup, lane, whole);
    onto_this = onto_next;
    onto_next = onto_after_$i$j;
#endrepeat
#endrepeat
#endif
}
