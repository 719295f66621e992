//! The exponential of a number that is not positive, in f32 additions and multiplications only.
//!
//! `f32::exp` is whatever the platform's library computes, so a token could depend on the operating system; and it is
//! called once for each of 65,536 logits, where this one vectorises.

/// Below this the result would be subnormal, which GPUs flush to zero; so do we.
const UNDERFLOW: f32 = -87.336_54;
/// 1.5 · 2²³: adding it rounds to the nearest integer and leaves that integer in the low bits of the mantissa.
const ROUND: f32 = 12_582_912.0;
/// ln 2 in two parts: multiples of the first up to 127 are exact.
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;

/// `exp(x)` for `x ≤ 0` with a relative error below 2e-7; exactly 1 for 0, and 0 below −87.3365 and for `-inf`.
#[inline]
pub(super) fn exp_of_negative(x: f32) -> f32 {
    // x = n ln 2 + r with |r| ≤ ln 2 / 2, exp(x) = 2^n exp(r).
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    // Taylor's polynomial of degree 7: the next term is at most 5e-9 on this interval.
    let mut sum = 1.0 / 5040.0;
    for coefficient in [
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ] {
        sum = sum * r + coefficient;
    }
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if x < UNDERFLOW { 0.0 } else { sum * power }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_f64() {
        fn check(x: f32) {
            let (found, exact) = (f64::from(exp_of_negative(x)), f64::from(x).exp());
            assert!(
                (found - exact).abs() <= 2e-7 * exact,
                "exp({x}) = {exact}, not {found}"
            );
        }
        for step in 0_u16..=50_000 {
            check(-f32::from(step) * 0.001_746_7);
            check(-f32::from(step) * 1e-6);
        }
        check(UNDERFLOW);
        check(-f32::MIN_POSITIVE);
        check(-f32::from_bits(1));
        for (x, result) in [
            (0.0, 1.0),
            (-0.0, 1.0),
            (-87.34, 0.0),
            (-1e30, 0.0),
            (f32::MIN, 0.0),
            (-f32::INFINITY, 0.0),
        ] {
            assert_eq!(
                exp_of_negative(x).to_bits(),
                f32::to_bits(result),
                "exp({x})"
            );
        }
    }
}
