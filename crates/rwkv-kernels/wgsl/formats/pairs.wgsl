// Codes of 2 and 3 bits, 32 a unit, with a scale for each half of it: 2 bits of each in 8 bytes, element e in bits
// 2 (e mod 16) of word e / 16. They become floats as those of 4 bits do (nibbles.wgsl).
const UNIT: u32 = 32u;
const PARTS: u32 = UNIT / 4u;

@group(1) @binding(0) var<storage, read> weights: array<vec2<u32>>;

// Where four neighbours lie in the low byte of a word, and where their third bits must be put.
const LOW = vec4<u32>(3u, 0xcu, 0x30u, 0xc0u);
const BIT_3 = vec4<u32>(4u, 0x10u, 0x40u, 0x100u);
const POWERS = vec4<f32>(0x1p23f, 0x1p21f, 0x1p19f, 0x1p17f);
const POWERS_BITS = vec4<u32>(0x4b000000u, 0x4a000000u, 0x49000000u, 0x48000000u);

fn codes_2(low: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>((vec4(low) & LOW) | POWERS_BITS) - POWERS;
}

fn codes_3(low: u32, high: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>((vec4(low) & LOW) | POWERS_BITS | (vec4(high) & BIT_3)) - POWERS;
}

// `scale * code + offset` for the codes of a unit.
fn expand_2(low: vec2<u32>, scale: vec2<f32>, offset: vec2<f32>) -> array<vec4<f32>, PARTS> {
    return array<vec4<f32>, PARTS>(
        scale.x * codes_2(low.x) + offset.x,
        scale.x * codes_2(low.x >> 8u) + offset.x,
        scale.x * codes_2(low.x >> 16u) + offset.x,
        scale.x * codes_2(low.x >> 24u) + offset.x,
        scale.y * codes_2(low.y) + offset.y,
        scale.y * codes_2(low.y >> 8u) + offset.y,
        scale.y * codes_2(low.y >> 16u) + offset.y,
        scale.y * codes_2(low.y >> 24u) + offset.y,
    );
}

// With a third bit: that of element i of vector v in bit 2 i + v mod 2 of byte v / 2.
fn expand_3(low: vec2<u32>, high: u32, scale: vec2<f32>, offset: vec2<f32>) -> array<vec4<f32>, PARTS> {
    return array<vec4<f32>, PARTS>(
        scale.x * codes_3(low.x, high << 2u) + offset.x,
        scale.x * codes_3(low.x >> 8u, high << 1u) + offset.x,
        scale.x * codes_3(low.x >> 16u, high >> 6u) + offset.x,
        scale.x * codes_3(low.x >> 24u, high >> 7u) + offset.x,
        scale.y * codes_3(low.y, high >> 14u) + offset.y,
        scale.y * codes_3(low.y >> 8u, high >> 15u) + offset.y,
        scale.y * codes_3(low.y >> 16u, high >> 22u) + offset.y,
        scale.y * codes_3(low.y >> 24u, high >> 23u) + offset.y,
    );
}

// The codes of a unit less `zero`, exact as in nibbles.wgsl.
fn integers_2(low: vec2<u32>) -> array<vec4<f32>, PARTS> {
    return array<vec4<f32>, PARTS>(
        codes_2(low.x),
        codes_2(low.x >> 8u),
        codes_2(low.x >> 16u),
        codes_2(low.x >> 24u),
        codes_2(low.y),
        codes_2(low.y >> 8u),
        codes_2(low.y >> 16u),
        codes_2(low.y >> 24u),
    );
}

fn above_3(low: u32, high: u32, bottom: vec4<f32>) -> vec4<f32> {
    return bitcast<vec4<f32>>((vec4(low) & LOW) | POWERS_BITS | (vec4(high) & BIT_3)) - bottom;
}

fn integers_3(low: vec2<u32>, high: u32, zero: f32) -> array<vec4<f32>, PARTS> {
    let bottom = POWERS + zero;
    return array<vec4<f32>, PARTS>(
        above_3(low.x, high << 2u, bottom),
        above_3(low.x >> 8u, high << 1u, bottom),
        above_3(low.x >> 16u, high >> 6u, bottom),
        above_3(low.x >> 24u, high >> 7u, bottom),
        above_3(low.y, high >> 14u, bottom),
        above_3(low.y >> 8u, high >> 15u, bottom),
        above_3(low.y >> 16u, high >> 22u, bottom),
        above_3(low.y >> 24u, high >> 23u, bottom),
    );
}
