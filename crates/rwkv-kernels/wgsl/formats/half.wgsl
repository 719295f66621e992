// An f16 scale from the low 16 bits of a word, subnormals and all: drivers may flush those in unpack2x16float, and an
// f32 made of their bits would be subnormal too.
fn half(bits: u32) -> f32 {
    let magnitude = bits & 0x7fffu;
    // Exponents of f16 are 112 less than those of f32 with the same bits.
    let normal = bitcast<f32>(magnitude << 13u) * 5192296858534828000000000000000000.0;
    let subnormal = f32(magnitude) * 0.000000059604644775390625;
    let value = select(normal, subnormal, magnitude < 0x400u);
    return select(value, -value, (bits & 0x8000u) != 0u);
}
