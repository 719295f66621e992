// Rows in f16 with a power of two of their own, which brings the row's largest finite number to 2^14 or more and below
// 2^15: nothing passes f16's range but what is infinite, and what is more than 2^-28 of the largest keeps f16's 11 bits.
// A row is its elements, zeros, and a unit of four of the power's exponent.
const INFINITE: u32 = 0x7f800000u;

// The bits of the largest finite number of four, without its sign: those of numbers that are not negative are ordered like
// the numbers, with what is not finite after them.
fn finite_bits(value: vec4<f32>) -> u32 {
    let bits = bitcast<vec4<u32>>(value) & vec4(0x7fffffffu);
    let largest = max(max(bits.x, bits.y), max(bits.z, bits.w));
    if largest < INFINITE {
        return largest;
    }
    let finite = select(vec4(0u), bits, bits < vec4(INFINITE));
    return max(max(finite.x, finite.y), max(finite.z, finite.w));
}

// The exponent of a row whose largest finite number has these bits: of zeros none; and none whose power f32 does not
// hold.
fn exponent_of(bits: u32) -> i32 {
    return select(0, max(i32(bits >> 23u) - 127 - 14, -100), bits != 0u);
}

fn power_of_two(exponent: i32) -> f32 {
    return bitcast<f32>(u32(exponent + 127) << 23u);
}
