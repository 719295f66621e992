//! How exact the function kernels and their twins are, against f64. `cargo test functions -- --nocapture` prints it.

use crate::{activation::Activation, linear::FUNCTIONS, setup::setups, tolerance};
use rwkv_kernels::ops::{Function, Map};

/// Every function over −30 to 30, and close to zero.
#[test]
fn accuracy() {
    let n = 1 << 16;
    let points: Vec<f32> = (0..n)
        .map(|i| {
            let at = (i as f32 / n as f32).mul_add(2.0, -1.0);
            // A quarter of the points goes down to 3e-8 on both sides of zero.
            if i % 4 == 0 {
                at.signum() * 30.0 * (-30.0 * (1.0 - at.abs())).exp2()
            } else {
                30.0 * at
            }
        })
        .collect();
    for setup in &setups()[..2] {
        let x = Activation::new(setup, 1, n, &points);
        for function in FUNCTIONS {
            let y = Activation::poisoned(setup, 1, n, 1);
            let op = Map::Apply(function, x.view());
            setup.run([&setup.kernels.map(op, y.view()).unwrap()]);
            let twin: Vec<f32> = points.iter().map(|x| function.apply(*x)).collect();
            let (kernel, at) = largest_error(function, &points, &y.read());
            let (twin, _) = largest_error(function, &points, &twin);
            println!(
                "{function:?} ({}): relative error of the kernel {kernel:.1e} (at {at:e}), of the twin {twin:.1e}",
                setup.name
            );
            assert!(
                kernel <= tolerance::function(function, 1.0).max(1e-7),
                "{function:?} is off by {kernel:e} at {at:e}"
            );
            assert!(twin <= 1e-6, "the twin of {function:?} is off by {twin:e}");
        }
    }
}

/// The largest error relative to [`tolerance::function_size`], and where.
fn largest_error(function: Function, points: &[f32], values: &[f32]) -> (f64, f32) {
    let mut largest = (0.0, 0.0);
    for (x, y) in points.iter().zip(values) {
        let want = exact(function, f64::from(*x));
        // What is below f32's smallest normal number may be 0.
        let error = if want.abs() < 2e-38 {
            f64::from(y.abs())
        } else {
            (f64::from(*y) - want).abs() / tolerance::function_size(function, want)
        };
        if error.is_nan() || error > largest.0 {
            largest = (error, *x);
        }
    }
    largest
}

fn exact(function: Function, x: f64) -> f64 {
    let sigmoid = 1.0 / (1.0 + (-x).exp());
    match function {
        Function::Identity => x,
        Function::Tanh => x.tanh(),
        Function::Sigmoid => sigmoid,
        Function::SquaredRelu => x.max(0.0).powi(2),
        Function::Decay7 => (-(-0.5f64).exp() * sigmoid).exp(),
        Function::Decay6 => (-x.exp()).exp(),
        Function::Silu => x * sigmoid,
    }
}
