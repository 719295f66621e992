// ggml's Q4_K: d * scale * q - dmin * minimum, a scale and a minimum of 6 bits a unit, d and dmin for 8 units.
#import formats/nibbles
#import formats/k_scales

// Elements `unit * UNIT ..` of `row`, where a row has `units` units.
fn weight_unit(row: u32, unit: u32, units: u32) -> array<vec4<f32>, PARTS> {
    let scale = k_scale(row, unit, units);
    return expand_4(weights[row * units + unit], scale.x, scale.y);
}
