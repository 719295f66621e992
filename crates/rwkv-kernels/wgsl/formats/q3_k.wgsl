// ggml's Q3_K: d * (scale - 32) * (q - 4), two scales of 6 bits a unit, d for 8 units.
#import formats/pairs
#import formats/scales

// Three words a block of 8 units: the low 4 bits of its 16 scales in two, their upper 2 bits in the third. A row is
// padded to 16 bytes.
@group(1) @binding(2) var<storage, read> group_scales: array<u32>;
// A word a unit.
@group(1) @binding(3) var<storage, read> high: array<u32>;

// Elements `unit * UNIT ..` of `row`, where a row has `units` units.
fn weight_unit(row: u32, unit: u32, units: u32) -> array<vec4<f32>, PARTS> {
    let at = row * units + unit;
    let blocks = units / 8u;
    let block = unit / 8u;
    let place = unit % 8u;
    let groups = row * ((3u * blocks + 3u) / 4u * 4u) + 3u * block;
    let low_bits = group_scales[groups + place / 4u] >> (place % 4u * 8u);
    let high_bits = group_scales[groups + 2u] >> (place * 4u);
    let bits = ((vec2(low_bits) >> vec2(0u, 4u)) & vec2(0xfu))
        | (((vec2(high_bits) >> vec2(0u, 2u)) & vec2(3u)) << vec2(4u));
    let scale = scale_of(row, block, blocks) * (vec2<f32>(bits) - 32.0);
    return expand_3(weights[at], high[at], scale, -4.0 * scale);
}
