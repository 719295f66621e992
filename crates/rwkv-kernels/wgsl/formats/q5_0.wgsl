// ggml's Q5_0: scale * (q - 16), one scale a unit.
#import formats/nibbles
#import formats/scales
#import formats/fifth_bits

// Elements `unit * UNIT ..` of `row`, where a row has `units` units.
fn weight_unit(row: u32, unit: u32, units: u32) -> array<vec4<f32>, PARTS> {
    let scale = scale_of(row, unit, units);
    return expand_5(weights[row * units + unit], fifth_bits(row, unit, units), scale, -16.0 * scale);
}
