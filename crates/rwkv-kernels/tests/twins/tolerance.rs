//! How far a kernel may be from its twin.
//!
//! Both compute in f32, in other orders: an element is compared within a few units of f32's rounding (6e-8) of the
//! *sum of the absolute values of its terms*, which is what rounding is relative to when terms cancel.

use rwkv_kernels::ops::Function;

/// Rounding of sums of up to a few thousand terms: the errors of such a sum grow with the square root of its length,
/// about 60 · 6e-8 at 4096 terms.
pub(crate) const SUM: f64 = 4e-6;

/// Rounding to f16 for cooperative matrices, of x and of weights.
pub(crate) const HALF: f64 = 1.0 / 1024.0;

/// A few operations in a row, contracted to fused multiply-adds or not.
pub(crate) const FEW: f64 = 5e-7;

/// Error of a function kernel whose result is `value`. Vulkan allows `exp` 3 + 2|x| units in the last place, which is
/// 4e-6 at 30; our functions are exact otherwise (`functions.rs` measures them).
pub(crate) fn function(function: Function, value: f64) -> f64 {
    let relative = match function {
        Function::Identity => 0.0,
        Function::SquaredRelu => FEW,
        Function::Tanh
        | Function::Sigmoid
        | Function::Decay7
        | Function::Decay6
        | Function::Silu => 5e-6,
    };
    relative * function_size(function, value)
}

/// Error of a function of `sum`, whose result is `value`, where that sum may be off by `before`.
pub(crate) fn of_function(of: Function, sum: f32, value: f32, before: f64) -> f64 {
    let slope = match of {
        Function::SquaredRelu => 2.0 * f64::from(sum.max(0.0)) + before,
        _ => 1.0,
    };
    slope * before + function(of, f64::from(value))
}

/// What the error of a function is relative to: its value, but for exp(-exp(x)) what the inner exponential's error makes
/// of it, which is |ln y| times as large.
pub(crate) fn function_size(function: Function, value: f64) -> f64 {
    match function {
        Function::Decay6 if value > 0.0 => value * (1.0 - value.ln()),
        _ => value.abs(),
    }
}

/// Fails unless each element of `got` is within its tolerance of `want`.
#[track_caller]
pub(crate) fn check(what: &str, got: &[f32], want: &[f32], tolerance: impl Fn(usize) -> f64) {
    assert_eq!(got.len(), want.len(), "{what}: number of elements");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let (error, allowed) = (f64::from(*g) - f64::from(*w), tolerance(i));
        // Not `>`: NaN must fail.
        assert!(
            error.abs() <= allowed,
            "{what}: element {i} is {g}, the twin has {w}; {:e} apart, allowed {allowed:e}",
            error.abs()
        );
    }
}

/// Root mean square of the error of `got`, over that of `want`; 0 where nothing differs.
#[track_caller]
pub(crate) fn relative_error(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len(), "number of elements");
    let square = |x: f64| x * x;
    let differences = got.iter().zip(want);
    let error: f64 = differences
        .map(|(g, w)| square(f64::from(*g) - f64::from(*w)))
        .sum();
    let size: f64 = want.iter().map(|w| square(f64::from(*w))).sum();
    if error == 0.0 {
        return 0.0;
    }
    (error / size).sqrt()
}

/// Fails unless the root mean square of the error is within `bound` of that of `want`.
#[track_caller]
pub(crate) fn check_rms(what: &str, got: &[f32], want: &[f32], bound: f64) {
    let error = relative_error(got, want);
    // Not `>`: NaN must fail.
    assert!(
        error <= bound,
        "{what}: relative error {error:e}, allowed {bound:e}"
    );
}
