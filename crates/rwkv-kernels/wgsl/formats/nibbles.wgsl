// Codes of 4 bits, 32 to 16 bytes: of each word, elements 0 to 3 are the low halves of its bytes and 4 to 7 the high.
const UNIT: u32 = 32u;
const PARTS: u32 = UNIT / 4u;

@group(1) @binding(0) var<storage, read> weights: array<vec4<u32>>;

// The codes of part `part` of a unit, one a byte.
fn nibbles(unit: vec4<u32>, part: u32) -> u32 {
    return (unit[part / 2u] >> (4u * (part & 1u))) & 0x0f0f0f0fu;
}
