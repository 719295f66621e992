// Whether `unpack2x16float` keeps subnormal numbers here, which WGSL lets drivers take for zero.
override SUBNORMAL_HALVES: bool = false;

// The f16 in the low half of `bits`. Subnormal numbers are whole multiples of 2^-24.
fn half_float(bits: u32) -> f32 {
    let unpacked = unpack2x16float(bits).x;
    if SUBNORMAL_HALVES {
        return unpacked;
    }
    let subnormal = bitcast<u32>(f32(bits & 0x3ffu) * 0x1p-24f) | ((bits & 0x8000u) << 16u);
    return select(unpacked, bitcast<f32>(subnormal), (bits & 0x7c00u) == 0u);
}
