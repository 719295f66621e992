// ggml's Q4_0: scale * (q - 8), one scale a unit.
#import formats/nibbles
#import formats/scales

// Elements `unit * UNIT ..` of `row`, where a row has `units` units.
fn weight_unit(row: u32, unit: u32, units: u32) -> array<vec4<f32>, PARTS> {
    let scale = scale_of(row, unit, units);
    return expand_4(weights[row * units + unit], scale, -8.0 * scale);
}
