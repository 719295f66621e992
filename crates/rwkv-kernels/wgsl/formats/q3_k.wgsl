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

// For dot products (rows.wgsl): a unit as it lies, its values before scaling, and what scales its two halves and is
// added for each element of x.
const SCALES: u32 = 2u;
const MINIMA: bool = false;

struct Unit {
    codes: vec2<u32>,
    scale: u32,
    low_bits: u32,
    high_bits: u32,
    high: u32,
}

fn load_unit(row: u32, unit: u32, units: u32) -> Unit {
    let at = row * units + unit;
    let blocks = units / 8u;
    let block = unit / 8u;
    let groups = row * ((3u * blocks + 3u) / 4u * 4u) + 3u * block;
    return Unit(
        weights[at],
        scale_word(row, block, blocks),
        group_scales[groups + unit % 8u / 4u],
        group_scales[groups + 2u],
        high[at],
    );
}

fn unit_values(raw: Unit) -> array<vec4<f32>, PARTS> {
    return integers_3(raw.codes, raw.high, 4.0);
}

fn unit_scales(raw: Unit, unit: u32) -> vec4<f32> {
    let low = raw.low_bits >> (unit % 4u * 8u);
    let high_two = raw.high_bits >> (unit % 8u * 4u);
    let bits = ((vec2(low) >> vec2(0u, 4u)) & vec2(0xfu)) | (((vec2(high_two) >> vec2(0u, 2u)) & vec2(3u)) << vec2(4u));
    return vec4(scale_in(raw.scale, unit / 8u) * (vec2<f32>(bits) - 32.0), 0.0, 0.0);
}
