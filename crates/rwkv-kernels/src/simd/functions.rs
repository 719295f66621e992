//! Functions of one value, in arithmetic that compilers make vector instructions of.

use super::{
    Simd,
    level::at_level,
    vectors::{Vectors, Work},
};
use crate::ops::Function;

/// As [`Function::apply`] for every element, within two units in the last place of it: `y = f(x)`, as many as the
/// shorter has.
pub fn apply(level: Simd, function: Function, x: &[f32], y: &mut [f32]) {
    if level != Simd::Twins && function != Function::Identity {
        at_level!(level, v => v.run(Apply { function, x, y }));
    }
    for (x, y) in x.iter().zip(y) {
        *y = function.apply(*x);
    }
}

struct Apply<'a> {
    function: Function,
    x: &'a [f32],
    y: &'a mut [f32],
}

/// `f` of every element; one function in each instance, so that it can be inlined.
#[inline(always)]
fn each(x: &[f32], y: &mut [f32], f: impl Fn(f32) -> f32) {
    for (x, y) in x.iter().zip(y) {
        *y = f(*x);
    }
}

impl<V: Vectors> Work<V> for Apply<'_> {
    #[inline(always)]
    fn run(self, _: V) {
        let Self { function, x, y } = self;
        match function {
            Function::Identity => each(x, y, |x| x),
            Function::Tanh => each(x, y, tanh),
            Function::Sigmoid => each(x, y, sigmoid),
            Function::SquaredRelu => each(x, y, |x| x.max(0.0) * x.max(0.0)),
            Function::Decay7 => each(x, y, |x| exp(-INVERSE_ROOT_E * sigmoid(x))),
            Function::Decay6 => each(x, y, |x| exp(-exp(x))),
            Function::Silu => each(x, y, |x| x * sigmoid(x)),
        }
    }
}

/// e^(-1/2).
const INVERSE_ROOT_E: f32 = 0.606_530_66;

/// e^x, by the polynomial of Cephes' `expf` between −ln 2 / 2 and ln 2 / 2, times a power of two.
#[inline(always)]
fn exp(x: f32) -> f32 {
    /// Added to a number and taken away again it rounds to an integer, whose bits are then the sum's last.
    const ROUND: f32 = 12_582_912.0;
    // Past these the result is infinite or zero; what is not a number passes through the product at the end.
    let bounded = if x > 89.5 { 89.5 } else { x };
    let bounded = if bounded < -110.0 { -110.0 } else { bounded };
    let rounded = bounded.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = n.mul_add(-0.693_359_4, bounded);
    let r = n.mul_add(2.121_944_4e-4, r);
    let p = r.mul_add(1.987_569_1e-4, 1.398_199_9e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 0.166_666_66);
    let p = p.mul_add(r, 0.5);
    let p = p.mul_add(r * r, r) + 1.0;
    // In two steps, as one power of two cannot make a subnormal.
    let n = rounded
        .to_bits()
        .wrapping_sub(ROUND.to_bits())
        .cast_signed();
    let half = n >> 1;
    p * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

/// 2^n for n between −126 and 127.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127).cast_unsigned()) << 23)
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Cephes' `tanhf`: a polynomial near zero, where the difference to one would have no digits.
#[inline(always)]
fn tanh(x: f32) -> f32 {
    let z = x * x;
    let p = z.mul_add(-5.704_988_7e-3, 2.063_908_8e-2);
    let p = p.mul_add(z, -5.373_971_6e-2);
    let p = p.mul_add(z, 0.133_314_42);
    let p = p.mul_add(z, -0.333_332_8);
    let near = (p * z).mul_add(x, x);
    let far = (1.0 - 2.0 / (exp(2.0 * x.abs()) + 1.0)).copysign(x);
    if x.abs() < 0.625 { near } else { far }
}
