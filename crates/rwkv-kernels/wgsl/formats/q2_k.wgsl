// ggml's Q2_K: x = d scale q − dmin minimum, with a scale and a minimum for 16 elements.
#import formats/pairs
#import formats/half

const UNIT: u32 = 32u;
const PARTS: u32 = UNIT / 4u;

@group(1) @binding(0) var<storage, read> weights: array<vec2<u32>>;
// Bytes, 16 for 256 elements: the scale is the low half, the minimum the high.
@group(1) @binding(1) var<storage, read> group_scales: array<u32>;
// d and dmin.
@group(1) @binding(2) var<storage, read> scales: array<u32>;

// Elements `unit * UNIT ..` of `row`, where a row has `units` units.
fn weight_unit(row: u32, unit: u32, units: u32) -> array<vec4<f32>, PARTS> {
    let at = row * units + unit;
    let packed = weights[at];
    let word = scales[at / 8u];
    let two = group_scales[at / 2u] >> (16u * (at & 1u));
    let scale = half(word) * vec2<f32>(vec2(two & 15u, (two >> 8u) & 15u));
    let minimum = half(word >> 16u) * vec2<f32>(vec2((two >> 4u) & 15u, (two >> 12u) & 15u));
    var values: array<vec4<f32>, PARTS>;
    for (var part = 0u; part < PARTS; part++) {
        let codes = vec4<f32>(unpack4xU8(pairs(packed, part)));
        values[part] = scale[part / 4u] * codes - minimum[part / 4u];
    }
    return values;
}
