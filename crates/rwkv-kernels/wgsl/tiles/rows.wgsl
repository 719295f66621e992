// W of a tile where a thread brings elements of one row: the rows of a vector come from several threads.

var<workgroup> w_tile: array<f32, STEP * TILE>;

fn put_w(column: u32, row: u32, value: f32) {
    w_tile[place_of(column, row / 4u) * 4u + row % 4u] = value;
}

fn w_four(place: u32) -> vec4<f32> {
    let first = place * 4u;
    return vec4(w_tile[first], w_tile[first + 1u], w_tile[first + 2u], w_tile[first + 3u]);
}
