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
enable f16;
enable wgpu_cooperative_matrix;
#import coop/tiles/$TILE
#import coop/$END
#import coop/halves
#ifdef FORMAT_F16
#import coop/weights_f16
#else
#import coop/weights_units
#endif

const SIDE: u32 = $SIDE;
const TOKENS: u32 = $TOKENS;
const ROWS: u32 = $ROWS;
const DEPTH: u32 = $DEPTH;
const LANES: u32 = 32u;
const SUBGROUPS_ACROSS: u32 = ROWS / SIDE / $WIDE;
const SUBGROUPS: u32 = TOKENS / SIDE / $HIGH * SUBGROUPS_ACROSS;
const THREADS: u32 = LANES * SUBGROUPS;

// From one row to the next: of x in units of four, of W in units of its format.
override X_STRIDE: u32 = 34u;
override UNITS: u32 = 8u;
override W_UNITS: u32 = UNITS * UNITS_A_UNIT;
// The tile reaches past the last row of W, or a step past its last unit.
override CLIPPED: bool = false;

// Units of four elements from one row of a tile to the next.
const PITCH: u32 = DEPTH / 4u + 2u;
// Of a row of x, and rows that the threads load at once.
const X_PARTS: u32 = DEPTH / 4u;
const X_ROWS: u32 = THREADS / X_PARTS;
// The same of W.
const W_PARTS: u32 = DEPTH / UNIT;
const W_ROWS: u32 = THREADS / W_PARTS;

const_assert 64u % DEPTH == 0u;
const_assert $X_LOADS * X_ROWS == TOKENS;
const_assert $W_LOADS * W_ROWS == ROWS || ($W_LOADS == 1 && W_ROWS > ROWS);

#ifdef SCALAR
// Metal reads matrices from memory of their own elements only.
const STEP: u32 = 4u;
var<workgroup> x_tile: array<f16, TOKENS * PITCH * STEP>;
var<workgroup> w_tile: array<f16, ROWS * PITCH * STEP>;

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
var<workgroup> w_tile: array<vec4<f16>, ROWS * PITCH>;

fn put_x(place: u32, value: vec4<f16>) {
    x_tile[place] = value;
}

fn put_w(place: u32, value: vec4<f16>) {
    w_tile[place] = value;
}
#endif

// The unit of a row of W that is `part` of a tile's row, when the tile begins at `column`. Past the last one, where x is
// zero, that serves again.
fn unit_at(column: u32, part: u32) -> u32 {
    let unit = column / UNIT + part;
    return select(unit, min(unit, W_UNITS - 1u), CLIPPED);
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let first_token = workgroup.x * TOKENS;
    let first_row = workgroup.y * ROWS;
    // Columns of this slice, and the last step of them.
    let begin = workgroup.z * params.chunk;
    let end = min(begin + params.chunk, params.cols);
    let last = begin + (end - begin - 1u) / DEPTH * DEPTH;

    // Where this thread's part of a tile comes from and goes to. Threads past the units of a tile do what others do.
    let x_from = (first_token + thread / X_PARTS) * X_STRIDE + thread % X_PARTS;
    let x_to = thread / X_PARTS * PITCH + thread % X_PARTS;
    let w_row = thread / W_PARTS % ROWS;
    let w_part = thread % W_PARTS;
    let w_to = w_row * PITCH + w_part * (UNIT / 4u);
#repeat i $W_LOADS
    let w_row$i = first_row + w_row + $i * W_ROWS;
    let w_from$i = params.base + select(w_row$i, min(w_row$i, params.rows - 1u), CLIPPED);
#endrepeat

    // The subgroup's first matrix of sums in the tile.
    let token = subgroup / SUBGROUPS_ACROSS * ($HIGH * SIDE);
    let row = subgroup % SUBGROUPS_ACROSS * ($WIDE * SIDE);
#repeat i $HIGH
#repeat j $WIDE
    var sum_$i$j: $MATRIX<f32, C>;
#endrepeat
#endrepeat

    {
#repeat i $X_LOADS
        let x_$i = x[x_from + begin / 4u + $i * X_ROWS * X_STRIDE];
#endrepeat
#repeat i $W_LOADS
        let w_$i = load_raw(w_from$i, unit_at(begin, w_part));
#endrepeat
#repeat i $X_LOADS
        put_x(x_to + $i * X_ROWS * PITCH, x_$i);
#endrepeat
#repeat i $W_LOADS
        store_raw(w_$i, unit_at(begin, w_part), w_to + $i * W_ROWS * PITCH);
#endrepeat
    }
    workgroupBarrier();
    for (var column = begin; column < end; column += DEPTH) {
        // At the end the last step's are loaded again.
        let next = min(column + DEPTH, last);
#repeat i $X_LOADS
        let x_$i = x[x_from + next / 4u + $i * X_ROWS * X_STRIDE];
#endrepeat
#repeat i $W_LOADS
        let w_$i = load_raw(w_from$i, unit_at(next, w_part));
#endrepeat
#repeat k $STEPS
        {
#repeat i $HIGH
            let a$i = coopLoadT<$MATRIX<f16, A>>(
                &x_tile[((token + $i * SIDE) * PITCH + $k * (SIDE / 4u)) * STEP],
                PITCH * STEP,
            );
#endrepeat
#repeat j $WIDE
            let b$j = coopLoad<$MATRIX<f16, B>>(
                &w_tile[((row + $j * SIDE) * PITCH + $k * (SIDE / 4u)) * STEP],
                PITCH * STEP,
            );
#repeat i $HIGH
            sum_$i$j = coopMultiplyAdd(a$i, b$j, sum_$i$j);
#endrepeat
#endrepeat
        }
#endrepeat
        workgroupBarrier();
#repeat i $X_LOADS
        put_x(x_to + $i * X_ROWS * PITCH, x_$i);
#endrepeat
#repeat i $W_LOADS
        store_raw(w_$i, unit_at(next, w_part), w_to + $i * W_ROWS * PITCH);
#endrepeat
        workgroupBarrier();
    }

    // Here naga 30 needs what is stored, and where, by a name of its own: expressions come after the store that uses them.
#ifdef END_FINISH
    let staged = subgroup * SIDE * STAGE_PITCH;
#repeat i $HIGH
#repeat j $WIDE
    let total_$i$j = sum_$i$j;
    workgroupBarrier();
    coopStoreT(total_$i$j, &stage[staged], STAGE_PITCH);
    workgroupBarrier();
    finish_matrix(first_token + token + $i * SIDE, first_row + row + $j * SIDE, subgroup, lane);
#endrepeat
#endrepeat
#else
    let pitch = workgroups.y * ROWS;
    let place = COUNTS + (workgroup.z * workgroups.x * TOKENS + first_token + token) * pitch + first_row + row;
#repeat i $HIGH
#repeat j $WIDE
    let total_$i$j = sum_$i$j;
    let place_$i$j = place + $i * SIDE * pitch + $j * SIDE;
    coopStoreT(total_$i$j, &sums[place_$i$j], pitch);
#endrepeat
#endrepeat
#endif
}
