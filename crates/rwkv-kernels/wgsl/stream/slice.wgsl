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
// Whether the next rows are asked for before those that are there are multiplied: it takes registers.
override EARLY: bool = false;

// A unit of four rows that are STEP_ROWS apart.
struct FourUnits {
    a: Unit,
    b: Unit,
    c: Unit,
    d: Unit,
}

fn load_row(row: u32, end: u32, unit: u32) -> Unit {
    return load_unit(BASE + min(row, end - 1u), min(unit, UNITS - 1u), UNITS);
}

// Past an end, the last row or unit again: no branch stands between two loads.
fn load_four(row: u32, end: u32, unit: u32) -> FourUnits {
    return FourUnits(
        load_row(row, end, unit),
        load_row(row + STEP_ROWS, end, unit),
        load_row(row + 2u * STEP_ROWS, end, unit),
        load_row(row + 3u * STEP_ROWS, end, unit),
    );
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

// The rows from `start` up to `end`, of which a thread's first four are `first`, with the slice that begins at `unit`.
// Called by the whole workgroup, when x is there.
fn multiply_slice(first: FourUnits, start: u32, end: u32, unit: u32, thread: u32) {
    let place = thread % ROW_THREADS;
    let own = unit + min(place, SLICE - 1u);
    let x = unit_x(0u, min(place, SLICE - 1u));
    var raw = first;
    var row = start + thread / ROW_THREADS;
    var left = (end - start + 4u * STEP_ROWS - 1u) / (4u * STEP_ROWS);
    loop {
        var next: FourUnits;
        if EARLY {
            next = load_four(row + 4u * STEP_ROWS, end, own);
        }
        let sums = vec4(
            unit_product(raw.a, x, own),
            unit_product(raw.b, x, own),
            unit_product(raw.c, x, own),
            unit_product(raw.d, x, own),
        );
        // A thread past the slice's last unit has none.
        add_four(select(vec4(0.0), sums, place < SLICE), row, end, place);
        row += 4u * STEP_ROWS;
        left -= 1u;
        if left == 0u {
            break;
        }
        if !EARLY {
            next = load_four(row, end, own);
        }
        raw = next;
    }
}

// What `multiply_slice` begins with.
fn first_rows(start: u32, end: u32, unit: u32, thread: u32) -> FourUnits {
    return load_four(start + thread / ROW_THREADS, end, unit + min(thread % ROW_THREADS, SLICE - 1u));
}
