// Codes of 4 to 6 bits, 32 a unit: 4 bits of each in 16 bytes, element e in bits 4 (e mod 8) of word e / 8, and what is
// left of the codes elsewhere.
//
// A code becomes a float without a conversion and mostly without a shift: put where it lies into the mantissa of 2^23,
// 2^19, 2^15 or 2^11, whose last place it then counts, and subtract that. All of it is exact, and so is the product of
// a code and a scale, so that only adding a minimum rounds.
const UNIT: u32 = 32u;
const PARTS: u32 = UNIT / 4u;

@group(1) @binding(0) var<storage, read> weights: array<vec4<u32>>;

// Where four neighbours lie in the low half of a word, and where their further bits must be put.
const LOW = vec4<u32>(0xfu, 0xf0u, 0xf00u, 0xf000u);
const BIT_5 = vec4<u32>(0x10u, 0x100u, 0x1000u, 0x10000u);
const BITS_5_6 = vec4<u32>(0x30u, 0x300u, 0x3000u, 0x30000u);
const POWERS = vec4<f32>(0x1p23f, 0x1p19f, 0x1p15f, 0x1p11f);
const POWERS_BITS = vec4<u32>(0x4b000000u, 0x49000000u, 0x47000000u, 0x45000000u);

fn codes_4(low: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>((vec4(low) & LOW) | POWERS_BITS) - POWERS;
}

fn codes_5(low: u32, high: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>((vec4(low) & LOW) | POWERS_BITS | (vec4(high) & BIT_5)) - POWERS;
}

fn codes_6(low: u32, high: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>((vec4(low) & LOW) | POWERS_BITS | (vec4(high) & BITS_5_6)) - POWERS;
}

// `scale * code + offset` for the codes of a unit.
fn expand_4(low: vec4<u32>, scale: f32, offset: f32) -> array<vec4<f32>, PARTS> {
    return array<vec4<f32>, PARTS>(
        scale * codes_4(low.x) + offset,
        scale * codes_4(low.x >> 16u) + offset,
        scale * codes_4(low.y) + offset,
        scale * codes_4(low.y >> 16u) + offset,
        scale * codes_4(low.z) + offset,
        scale * codes_4(low.z >> 16u) + offset,
        scale * codes_4(low.w) + offset,
        scale * codes_4(low.w >> 16u) + offset,
    );
}

// With a fifth bit: that of element i of vector v in bit 4 i + v mod 4 of half v / 4.
fn expand_5(low: vec4<u32>, high: u32, scale: f32, offset: f32) -> array<vec4<f32>, PARTS> {
    return array<vec4<f32>, PARTS>(
        scale * codes_5(low.x, high << 4u) + offset,
        scale * codes_5(low.x >> 16u, high << 3u) + offset,
        scale * codes_5(low.y, high << 2u) + offset,
        scale * codes_5(low.y >> 16u, high << 1u) + offset,
        scale * codes_5(low.z, high >> 12u) + offset,
        scale * codes_5(low.z >> 16u, high >> 13u) + offset,
        scale * codes_5(low.w, high >> 14u) + offset,
        scale * codes_5(low.w >> 16u, high >> 15u) + offset,
    );
}

// With two more bits, and a scale for each half of the unit: those of element i of vector v in bits 4 i + 2 (v mod 2)
// of half v / 2 of `high`.
fn expand_6(low: vec4<u32>, high: vec2<u32>, scale: vec2<f32>, offset: vec2<f32>) -> array<vec4<f32>, PARTS> {
    return array<vec4<f32>, PARTS>(
        scale.x * codes_6(low.x, high.x << 4u) + offset.x,
        scale.x * codes_6(low.x >> 16u, high.x << 2u) + offset.x,
        scale.x * codes_6(low.y, high.x >> 12u) + offset.x,
        scale.x * codes_6(low.y >> 16u, high.x >> 14u) + offset.x,
        scale.y * codes_6(low.z, high.y << 4u) + offset.y,
        scale.y * codes_6(low.z >> 16u, high.y << 2u) + offset.y,
        scale.y * codes_6(low.w, high.y >> 12u) + offset.y,
        scale.y * codes_6(low.w >> 16u, high.y >> 14u) + offset.y,
    );
}

// The codes of a unit less `zero`: exact, since it is taken off the power along with what it stands above.
fn integers_4(low: vec4<u32>, zero: f32) -> array<vec4<f32>, PARTS> {
    let bottom = POWERS + zero;
    return array<vec4<f32>, PARTS>(
        bitcast<vec4<f32>>((vec4(low.x) & LOW) | POWERS_BITS) - bottom,
        bitcast<vec4<f32>>((vec4(low.x >> 16u) & LOW) | POWERS_BITS) - bottom,
        bitcast<vec4<f32>>((vec4(low.y) & LOW) | POWERS_BITS) - bottom,
        bitcast<vec4<f32>>((vec4(low.y >> 16u) & LOW) | POWERS_BITS) - bottom,
        bitcast<vec4<f32>>((vec4(low.z) & LOW) | POWERS_BITS) - bottom,
        bitcast<vec4<f32>>((vec4(low.z >> 16u) & LOW) | POWERS_BITS) - bottom,
        bitcast<vec4<f32>>((vec4(low.w) & LOW) | POWERS_BITS) - bottom,
        bitcast<vec4<f32>>((vec4(low.w >> 16u) & LOW) | POWERS_BITS) - bottom,
    );
}

fn above_5(low: u32, high: u32, bottom: vec4<f32>) -> vec4<f32> {
    return bitcast<vec4<f32>>((vec4(low) & LOW) | POWERS_BITS | (vec4(high) & BIT_5)) - bottom;
}

fn integers_5(low: vec4<u32>, high: u32, zero: f32) -> array<vec4<f32>, PARTS> {
    let bottom = POWERS + zero;
    return array<vec4<f32>, PARTS>(
        above_5(low.x, high << 4u, bottom),
        above_5(low.x >> 16u, high << 3u, bottom),
        above_5(low.y, high << 2u, bottom),
        above_5(low.y >> 16u, high << 1u, bottom),
        above_5(low.z, high >> 12u, bottom),
        above_5(low.z >> 16u, high >> 13u, bottom),
        above_5(low.w, high >> 14u, bottom),
        above_5(low.w >> 16u, high >> 15u, bottom),
    );
}

fn above_6(low: u32, high: u32, bottom: vec4<f32>) -> vec4<f32> {
    return bitcast<vec4<f32>>((vec4(low) & LOW) | POWERS_BITS | (vec4(high) & BITS_5_6)) - bottom;
}

fn integers_6(low: vec4<u32>, high: vec2<u32>, zero: f32) -> array<vec4<f32>, PARTS> {
    let bottom = POWERS + zero;
    return array<vec4<f32>, PARTS>(
        above_6(low.x, high.x << 4u, bottom),
        above_6(low.x >> 16u, high.x << 2u, bottom),
        above_6(low.y, high.x >> 12u, bottom),
        above_6(low.y >> 16u, high.x >> 14u, bottom),
        above_6(low.z, high.y << 4u, bottom),
        above_6(low.z >> 16u, high.y << 2u, bottom),
        above_6(low.w, high.y >> 12u, bottom),
        above_6(low.w >> 16u, high.y >> 14u, bottom),
    );
}

// Codes as bytes: of the 8 elements of a word those of even number, then those of odd number.
fn bytes_4(low: vec4<u32>) -> array<vec2<u32>, 4> {
    let even = low & vec4(0x0f0f0f0fu);
    let odd = (low >> vec4(4u)) & vec4(0x0f0f0f0fu);
    return array<vec2<u32>, 4>(
        vec2(even.x, odd.x),
        vec2(even.y, odd.y),
        vec2(even.z, odd.z),
        vec2(even.w, odd.w),
    );
}

// With a fifth bit, of which `high` has those of a word's 8 elements from bit 0 on, as `expand_5` says.
fn with_bit_5(bytes: vec2<u32>, high: u32) -> vec2<u32> {
    return bytes | vec2(
        ((high & 0x0101u) << 4u) | ((high & 0x0202u) << 19u),
        (high & 0x1010u) | ((high & 0x2020u) << 15u),
    );
}

fn bytes_5(low: vec4<u32>, high: u32) -> array<vec2<u32>, 4> {
    let four = bytes_4(low);
    return array<vec2<u32>, 4>(
        with_bit_5(four[0], high),
        with_bit_5(four[1], high >> 2u),
        with_bit_5(four[2], high >> 16u),
        with_bit_5(four[3], high >> 18u),
    );
}

// With two more bits, of which `high` has those of a word's 8 elements from bit 0 on, as `expand_6` says.
fn with_bits_5_6(bytes: vec2<u32>, high: u32) -> vec2<u32> {
    return bytes | vec2(
        ((high & 0x0303u) << 4u) | ((high & 0x0c0cu) << 18u),
        (high & 0x3030u) | ((high & 0xc0c0u) << 14u),
    );
}

fn bytes_6(low: vec4<u32>, high: vec2<u32>) -> array<vec2<u32>, 4> {
    let four = bytes_4(low);
    return array<vec2<u32>, 4>(
        with_bits_5_6(four[0], high.x),
        with_bits_5_6(four[1], high.x >> 16u),
        with_bits_5_6(four[2], high.y),
        with_bits_5_6(four[3], high.y >> 16u),
    );
}
