// ggml's Q3_K: x = d (scale − 32) (q − 4), with a scale of 6 bits for 16 elements.
#import formats/pairs
#import formats/half

const UNIT: u32 = 32u;
const PARTS: u32 = UNIT / 4u;

@group(1) @binding(0) var<storage, read> weights: array<vec2<u32>>;
// Bit `part` of byte b is the third bit of element b of the part.
@group(1) @binding(1) var<storage, read> high_bits: array<u32>;
// d, then 12 bytes of scales.
@group(1) @binding(2) var<storage, read> scales: array<vec4<u32>>;

// The scale of group `group` of 16: 4 bits in a half byte of words y and z, and 2 bits in word w.
fn group_scale(packed: vec4<u32>, group: u32) -> f32 {
    let byte = 8u * (group & 3u);
    let low = (select(packed.y, packed.z, (group & 4u) != 0u) >> (byte + 4u * (group / 8u))) & 15u;
    let high = (packed.w >> (byte + 2u * (group / 4u))) & 3u;
    return half(packed.x) * (f32(low | (high << 4u)) - 32.0);
}

// Elements `unit * UNIT ..` of `row`, where a row has `units` units.
fn weight_unit(row: u32, unit: u32, units: u32) -> array<vec4<f32>, PARTS> {
    let at = row * units + unit;
    let packed = weights[at];
    let high = high_bits[at];
    let words = scales[at / 8u];
    let group = 2u * (unit & 7u);
    let scale = vec2(group_scale(words, group), group_scale(words, group + 1u));
    var values: array<vec4<f32>, PARTS>;
    for (var part = 0u; part < PARTS; part++) {
        let codes = pairs(packed, part) | (((high >> part) & 0x01010101u) << 2u);
        values[part] = scale[part / 4u] * (vec4<f32>(unpack4xU8(codes)) - 4.0);
    }
    return values;
}
