// The value by rows, packed: a workgroup multiplies the slice of each row that its keys meet, whatever is zero.
#define SLICED $VALUE
#define SLICED_CODES integer
#import stream/slice as slice

var<private> own: u32;

fn add_sum(row: u32, sum: f32) {
    atomicAdd(&y[row], sum + residual_of(row, own));
}

alias FirstOfValue = slice_FourUnits;

fn slice_of(first: u32) -> slice_Slice {
    return slice_Slice(0u, 8u * EIGHTS_OF_X, first / slice_UNIT, first / OWN_KEYS);
}

fn load_value(first: u32, thread: u32) -> FirstOfValue {
    return slice_first_four(slice_of(first), thread);
}

fn four_keys(first: u32, rows: u32) -> vec4<f32> {
    let four = vec4(keys[first], keys[first + 1u], keys[first + 2u], keys[first + 3u]);
    // Past the last key nothing was made.
    return select(vec4(0.0), four, first < rows);
}

// Adds the products of the keys from `first` on.
fn add_value(ahead: FirstOfValue, first: u32, rows: u32, lane: Lane, thread: u32) {
    own = first / OWN_KEYS;
    if thread < OWN_KEYS / 8u {
        slice_stage_eight(0u, thread, four_keys(8u * thread, rows), four_keys(8u * thread + 4u, rows));
    }
    workgroupBarrier();
    slice_multiply(ahead, slice_of(first), thread);
}
