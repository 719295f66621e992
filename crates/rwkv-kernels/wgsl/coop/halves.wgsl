// x as half_rows.wgsl leaves it: a row is whole steps of columns, zero past the last, and its last unit of four has the
// exponent of its scale. Rows are there for whole tiles.
@group(0) @binding(1) var<storage, read> x: array<vec4<f16>>;

// What the sums of a token are to be multiplied by, where the rows of its x begin at `first`.
fn token_scale(first: u32, token: u32) -> f32 {
    let exponent = i32(x[first + (token + 1u) * params.x_stride - 1u].x);
    return bitcast<f32>(u32(exponent + 127) << 23u);
}
