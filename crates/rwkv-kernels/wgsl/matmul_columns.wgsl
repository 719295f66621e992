// Y = X Wᵀ for many tokens and a W whose columns are contiguous.
#import columns
#import tiles

const STEP: u32 = 16u;
// Units of a tile's column.
const UNITS: u32 = TILE / 8u;

var<workgroup> w_tile: array<vec4<f32>, STEP * VECTORS>;

fn w_four(place: u32) -> vec4<f32> {
    return w_tile[place];
}

#repeat i 2
var<private> fetched_$i: vec4<u32>;
#endrepeat

// As in matmul.wgsl.
fn fetch_unit(first_row: u32, first_column: u32, item: u32) -> vec4<u32> {
    let column = min(first_column + item / UNITS, params.cols - 1u);
    let unit = min(first_row / 8u + item % UNITS, params.units - 1u);
    return weights[column * params.units + unit];
}

fn fetch_w(first_row: u32, first_column: u32, thread: u32) {
#repeat i 2
    fetched_$i = fetch_unit(first_row, first_column, $i * THREADS + thread);
#endrepeat
}

fn store_unit(packed: vec4<u32>, item: u32) {
    let weight = eight(packed);
    let vector = item % UNITS * 2u;
    w_tile[place_of(item / UNITS, vector)] = weight.low;
    w_tile[place_of(item / UNITS, vector + 1u)] = weight.high;
}

fn store_w(first_row: u32, first_column: u32, thread: u32) {
#repeat i 2
    store_unit(fetched_$i, $i * THREADS + thread);
#endrepeat
}
