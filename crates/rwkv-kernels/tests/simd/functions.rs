//! Functions of one value, over all of f32.

use crate::levels;
use rwkv_kernels::{ops::Function, simd};

const FUNCTIONS: [Function; 7] = [
    Function::Identity,
    Function::Tanh,
    Function::Sigmoid,
    Function::SquaredRelu,
    Function::Decay7,
    Function::Decay6,
    Function::Silu,
];

/// The function in f64.
fn exact(function: Function, x: f64) -> f64 {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    match function {
        Function::Tanh => x.tanh(),
        Function::Sigmoid => sigmoid(x),
        Function::SquaredRelu => x.max(0.0) * x.max(0.0),
        Function::Decay7 => (-(-0.5f64).exp() * sigmoid(x)).exp(),
        Function::Decay6 => (-x.exp()).exp(),
        Function::Silu => x * sigmoid(x),
        Function::Identity => x,
    }
}

#[test]
fn close_to_exact() {
    // Every exponent, both signs, and between the ends of what matters closely.
    let mut x: Vec<f32> = (0..=u32::MAX >> 12)
        .map(|bits| f32::from_bits(bits << 12))
        .collect();
    x.extend((-120_000..120_000).map(|i| i as f32 * 1e-3));
    let mut y = vec![0.0; x.len()];
    for level in levels() {
        for function in FUNCTIONS {
            simd::apply(level, function, &x, &mut y);
            for (x, y) in x.iter().zip(&y) {
                let twin = function.apply(*x);
                if !x.is_finite() || twin.is_infinite() {
                    let same = *y == twin || y.is_nan() && twin.is_nan();
                    assert!(
                        same,
                        "{level}, {function:?}({x}) is {y}, the twin has {twin}"
                    );
                    continue;
                }
                let want = exact(function, f64::from(*x));
                // A result that is nearly zero may be zero. Of exp(-exp(x)) the inner exponential's error is multiplied by its exponent.
                let steep = match function {
                    Function::Decay6 => 1.0 + f64::from(*x).exp().min(200.0),
                    _ => 1.0,
                };
                let error = (f64::from(*y) - want).abs();
                assert!(
                    error <= 4e-7 * steep * want.abs() + 1e-36,
                    "{level}, {function:?}({x}) is {y}, exactly {want}"
                );
            }
        }
    }
}
