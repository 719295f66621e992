// ggml's Q4_1: scale * q + minimum, one of each a unit.
#import formats/nibbles
#import formats/scale_pairs

// Elements `unit * UNIT ..` of `row`, where a row has `units` units.
fn weight_unit(row: u32, unit: u32, units: u32) -> array<vec4<f32>, PARTS> {
    let scale = scale_pair(row, unit, units);
    return expand_4(weights[row * units + unit], scale.x, scale.y);
}
