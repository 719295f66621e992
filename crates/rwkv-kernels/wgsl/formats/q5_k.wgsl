// ggml's Q5_K: x = d scale q − dmin minimum.
#import formats/nibbles
#import formats/fifth_bit
#import formats/k_scales

@group(1) @binding(1) var<storage, read> high_bits: array<u32>;
@group(1) @binding(2) var<storage, read> scales: array<vec4<u32>>;

// Elements `unit * UNIT ..` of `row`, where a row has `units` units.
fn weight_unit(row: u32, unit: u32, units: u32) -> array<vec4<f32>, PARTS> {
    let packed = weights[row * units + unit];
    let high = high_bits[row * units + unit];
    let scaling = group_scale(scales[(row * units + unit) / 8u], unit & 7u);
    var values: array<vec4<f32>, PARTS>;
    for (var part = 0u; part < PARTS; part++) {
        let codes = nibbles(packed, part) | fifth_bits(high, part);
        values[part] = scaling.scale * vec4<f32>(unpack4xU8(codes)) - scaling.minimum;
    }
    return values;
}
