// Products of all rows of a packed matrix with a slice of its columns that one workgroup has: y += W[:, slice] x[slice].
// A few neighbouring threads share a row, a unit each; a thread has four rows under way.
//
// Whoever imports this, as a copy, stages x (stream/integer.wgsl, stream/float.wgsl) and defines `add_sum(row, sum)`, which
// one thread calls for each row.
#import formats/$SLICED
#import stream/$SLICED_CODES

// Units of a row of the bound weights, and its row that is row 0 here.
override UNITS: u32 = 1u;
override BASE: u32 = 0u;
// Threads that share a row: a power of two, of one subgroup and at least SLICE; and rows that all make at once.
override ROW_THREADS: u32 = 1u;
override STEP_ROWS: u32 = 1u;
// Rows that a workgroup has, at most.
override MOST_ROWS: u32 = 1u;
// Whether the next rows are asked for before those that are there are multiplied: it takes registers.
override EARLY: bool = false;

// What a workgroup multiplies: the rows from `start` up to `end`, four steps of them at a time, with the slice that begins
// at `unit`.
struct Slice {
    start: u32,
    end: u32,
    unit: u32,
    // How many fours of steps come after the ones it begins with: where all workgroups began with the same rows, their
    // atomic additions would meet.
    turn: u32,
}

// A unit of four rows that are STEP_ROWS apart.
struct FourUnits {
    a: Unit,
    b: Unit,
    c: Unit,
    d: Unit,
}

fn fours_of(slice: Slice) -> u32 {
    return (slice.end - slice.start + 4u * STEP_ROWS - 1u) / (4u * STEP_ROWS);
}

fn row_in(slice: Slice, four: u32, thread: u32) -> u32 {
    return slice.start + four * 4u * STEP_ROWS + thread / ROW_THREADS;
}

fn load_row(row: u32, end: u32, unit: u32) -> Unit {
    return load_unit(BASE + min(row, end - 1u), unit, UNITS);
}

// Past the end, the last row again: no branch that is not known beforehand stands between two loads.
fn load_four(slice: Slice, row: u32, unit: u32) -> FourUnits {
    var four: FourUnits;
    four.a = load_row(row, slice.end, unit);
    if MOST_ROWS > STEP_ROWS {
        four.b = load_row(row + STEP_ROWS, slice.end, unit);
    }
    if MOST_ROWS > 2u * STEP_ROWS {
        four.c = load_row(row + 2u * STEP_ROWS, slice.end, unit);
    }
    if MOST_ROWS > 3u * STEP_ROWS {
        four.d = load_row(row + 3u * STEP_ROWS, slice.end, unit);
    }
    return four;
}

fn add_row(row: u32, end: u32, sum: f32) {
    if row < end {
        add_sum(row, sum);
    }
}

// Adds the sums of four rows over the threads that share them, each of which then has some of the rows.
fn add_four(sums: vec4<f32>, row: u32, end: u32, place: u32) {
    if ROW_THREADS == 1u {
        add_row(row, end, sums.x);
        add_row(row + STEP_ROWS, end, sums.y);
        add_row(row + 2u * STEP_ROWS, end, sums.z);
        add_row(row + 3u * STEP_ROWS, end, sums.w);
        return;
    }
    let odd = (place & 1u) != 0u;
    let two = select(sums.xy, sums.zw, odd) + subgroupShuffleXor(select(sums.zw, sums.xy, odd), 1u);
    let first = row + select(0u, 2u * STEP_ROWS, odd);
    if ROW_THREADS == 2u {
        add_row(first, end, two.x);
        add_row(first + STEP_ROWS, end, two.y);
        return;
    }
    let second = (place & 2u) != 0u;
    var sum = select(two.x, two.y, second) + subgroupShuffleXor(select(two.y, two.x, second), 2u);
    for (var apart = 4u; apart < ROW_THREADS; apart *= 2u) {
        sum += subgroupShuffleXor(sum, apart);
    }
    if place < 4u {
        add_row(first + select(0u, STEP_ROWS, second), end, sum);
    }
}

// The sums of four rows.
fn four_products(raw: FourUnits, x: UnitX, unit: u32) -> vec4<f32> {
    var sums: vec4<f32>;
    sums.x = unit_product(raw.a, x, unit);
    if MOST_ROWS > STEP_ROWS {
        sums.y = unit_product(raw.b, x, unit);
    }
    if MOST_ROWS > 2u * STEP_ROWS {
        sums.z = unit_product(raw.c, x, unit);
    }
    if MOST_ROWS > 3u * STEP_ROWS {
        sums.w = unit_product(raw.d, x, unit);
    }
    return sums;
}

// The unit of a thread; past the slice's last one that again.
fn unit_in(slice: Slice, thread: u32) -> u32 {
    return slice.unit + min(min(thread % ROW_THREADS, SLICE - 1u), UNITS - 1u - slice.unit);
}

// What `multiply` begins with.
fn first_four(slice: Slice, thread: u32) -> FourUnits {
    let row = row_in(slice, slice.turn % fours_of(slice), thread);
    return load_four(slice, row, unit_in(slice, thread));
}

// All rows. Called by the whole workgroup, when x is there.
fn multiply(first: FourUnits, slice: Slice, thread: u32) {
    let place = thread % ROW_THREADS;
    let unit = unit_in(slice, thread);
    let x = unit_x(0u, min(place, SLICE - 1u));
    let fours = fours_of(slice);
    var raw = first;
    var four = slice.turn % fours;
    for (var left = fours; left > 0u; left--) {
        let row = row_in(slice, four, thread);
        four = select(four + 1u, 0u, four + 1u == fours);
        let next_row = row_in(slice, four, thread);
        var next: FourUnits;
        if EARLY && left > 1u {
            next = load_four(slice, next_row, unit);
        }
        // A thread past the slice's last unit has none.
        let sums = select(vec4(0.0), four_products(raw, x, unit), place < SLICE);
        add_four(sums, row, slice.end, place);
        if !EARLY && left > 1u {
            next = load_four(slice, next_row, unit);
        }
        raw = next;
    }
}
