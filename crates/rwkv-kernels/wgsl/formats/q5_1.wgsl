// ggml's Q5_1: scale * q + minimum, one of each a unit.
#import formats/nibbles
#import formats/scale_pairs
#import formats/fifth_bits

// Elements `unit * UNIT ..` of `row`, where a row has `units` units.
fn weight_unit(row: u32, unit: u32, units: u32) -> array<vec4<f32>, PARTS> {
    let scale = scale_pair(row, unit, units);
    return expand_5(weights[row * units + unit], fifth_bits(row, unit, units), scale.x, scale.y);
}
