// Y = X Wᵀ for many tokens and a W in rows of a format's units.
#import formats/$FORMAT
#import scaled
#import tiles
#import tiles/rows

const STEP: u32 = max(16u, UNIT);
// Units of a tile's row: as many as each thread loads for a step.
const ROW_UNITS: u32 = STEP / UNIT;

#repeat i 4
var<private> fetched_$i: Unit;
#endrepeat

// Rows past the last one are not stored; past the last unit, where x is zero, it serves again.
fn fetch_unit(first_row: u32, first_column: u32, item: u32) -> Unit {
    let row = min(first_row + item / ROW_UNITS, params.rows - 1u);
    let unit = min(first_column / UNIT + item % ROW_UNITS, params.units - 1u);
    return load_unit(params.base + row, unit, params.units);
}

fn fetch_w(first_row: u32, first_column: u32, thread: u32) {
#repeat i 4
    if $i < ROW_UNITS {
        fetched_$i = fetch_unit(first_row, first_column, $i * THREADS + thread);
    }
#endrepeat
}

fn store_unit(raw: Unit, first_column: u32, item: u32) {
    let row = item / ROW_UNITS;
    let first = item % ROW_UNITS;
    let values = unit_values(raw);
    let scales = unit_scales(raw, first_column / UNIT + first);
#repeat part 8
    if $part < PARTS {
        let value = scaled(values[min($part, PARTS - 1u)], scales, $part);
#repeat i 4
        put_w(first * UNIT + $part * 4u + $i, row, value[$i]);
#endrepeat
    }
#endrepeat
}

fn store_w(first_row: u32, first_column: u32, thread: u32) {
#repeat i 4
    if $i < ROW_UNITS {
        store_unit(fetched_$i, first_column, $i * THREADS + thread);
    }
#endrepeat
}
