// Numbers as the CPU twin computes them, bit by bit but for `exp_of_negative`. Bits are compared where a compiler may
// take infinities for impossible or subnormal numbers for 0.
const EXPONENT: u32 = 0x7F800000u;
const MINUS_INFINITY: u32 = 0xFF800000u;
const LARGEST: f32 = 3.4028234663852886e38;

// Subnormal numbers and −0 become 0.
fn flush(bits: u32) -> u32 {
    return select(bits, 0u, (bits & EXPONENT) == 0u);
}

fn flush4(bits: vec4<u32>) -> vec4<u32> {
    return select(bits, vec4<u32>(0u), (bits & vec4<u32>(EXPONENT)) == vec4<u32>(0u));
}

// A product that is rounded before it is used: `zero` is 0, but compilers do not know that, so they cannot fuse the
// product with a sum.
fn product(a: f32, b: f32, zero: u32) -> f32 {
    return bitcast<f32>(bitcast<u32>(a * b) ^ zero);
}

// `base^n` for a base from 0 to 1. Flushing keeps compilers from fusing a product with a difference.
fn power(base: f32, n: u32) -> f32 {
    var result = 1.0;
    var square = base;
    var lacks = 1.0 - base;
    var rest = n;
    while rest > 0u {
        if (rest & 1u) == 1u {
            result = bitcast<f32>(flush(bitcast<u32>(result * square)));
        }
        lacks = bitcast<f32>(flush(bitcast<u32>(lacks * (2.0 - lacks))));
        square = select(bitcast<f32>(flush(bitcast<u32>(square * square))), 1.0 - lacks, lacks < 0.5);
        rest >>= 1u;
    }
    return result;
}

// exp(x) for x ≤ 0 with a relative error below 3e-7; 0 where the result would be subnormal (src/sampling/exp.rs).
fn exp_of_negative(x: f32) -> f32 {
    let n = round(max(x, -88.0) * 1.4426950408889634);
    let r = max(x, -88.0) - n * 0.693359375 - n * -2.12194440e-4;
    var sum = 1.0 / 5040.0;
    sum = sum * r + 1.0 / 720.0;
    sum = sum * r + 1.0 / 120.0;
    sum = sum * r + 1.0 / 24.0;
    sum = sum * r + 1.0 / 6.0;
    sum = sum * r + 0.5;
    sum = sum * r + 1.0;
    sum = sum * r + 1.0;
    return select(sum * bitcast<f32>(u32(i32(n) + 127) << 23u), 0.0, x < -87.33654);
}
