// ggml's Q6_K: x = d scale (q − 32), with a scale for 16 elements.
#import formats/nibbles
#import formats/pairs
#import formats/scales

@group(1) @binding(1) var<storage, read> high_bits: array<vec2<u32>>;
// Signed bytes, 16 for 256 elements.
@group(1) @binding(2) var<storage, read> group_scales: array<u32>;
// One f16 for 256 elements.
@group(1) @binding(3) var<storage, read> scales: array<u32>;

// Elements `unit * UNIT ..` of `row`, where a row has `units` units.
fn weight_unit(row: u32, unit: u32, units: u32) -> array<vec4<f32>, PARTS> {
    let at = row * units + unit;
    let packed = weights[at];
    let high = high_bits[at];
    let d = block_scale(scales[scale_word(row, unit / 8u, units / 8u)], unit / 8u);
    let two = group_scales[at / 2u] >> (16u * (at & 1u));
    let groups = vec2<i32>(vec2(two << 24u, two << 16u)) >> vec2(24u);
    let scale = d * vec2<f32>(groups);
    var values: array<vec4<f32>, PARTS>;
    for (var part = 0u; part < PARTS; part++) {
        let codes = nibbles(packed, part) | (pairs(high, part) << 4u);
        values[part] = scale[part / 4u] * (vec4<f32>(unpack4xU8(codes)) - 32.0);
    }
    return values;
}
