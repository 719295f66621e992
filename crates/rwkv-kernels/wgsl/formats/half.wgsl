// The f16 in the low half of `bits`. `unpack2x16float` is exact but for subnormal numbers, which Vulkan lets drivers
// take for zero; those are whole multiples of 2^-24.
fn half_float(bits: u32) -> f32 {
    let subnormal = bitcast<u32>(f32(bits & 0x3ffu) * 0x1p-24f) | ((bits & 0x8000u) << 16u);
    return select(unpack2x16float(bits).x, bitcast<f32>(subnormal), (bits & 0x7c00u) == 0u);
}
