// ggml's Q5_K: as Q4_K, with a fifth bit.
#import formats/nibbles
#import formats/k_scales
#import formats/fifth_bits

// Elements `unit * UNIT ..` of `row`, where a row has `units` units.
fn weight_unit(row: u32, unit: u32, units: u32) -> array<vec4<f32>, PARTS> {
    let scale = k_scale(row, unit, units);
    return expand_5(weights[row * units + unit], fifth_bits(row, unit, units), scale.x, scale.y);
}
