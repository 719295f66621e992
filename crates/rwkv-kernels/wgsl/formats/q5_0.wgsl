// ggml's Q5_0: x = scale (q − 16).
#import formats/nibbles
#import formats/fifth_bit
#import formats/scales

@group(1) @binding(1) var<storage, read> high_bits: array<u32>;
@group(1) @binding(2) var<storage, read> scales: array<u32>;

// Elements `unit * UNIT ..` of `row`, where a row has `units` units.
fn weight_unit(row: u32, unit: u32, units: u32) -> array<vec4<f32>, PARTS> {
    let packed = weights[row * units + unit];
    let high = high_bits[row * units + unit];
    let scale = block_scale(scales[scale_word(row, unit, units)], unit);
    var values: array<vec4<f32>, PARTS>;
    for (var part = 0u; part < PARTS; part++) {
        let codes = nibbles(packed, part) | fifth_bits(high, part);
        values[part] = scale * (vec4<f32>(unpack4xU8(codes)) - 16.0);
    }
    return values;
}
