//! The vector paths against the twins, at every level that this processor has.
#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(clippy::cast_possible_truncation, reason = "shapes are small")]
#![allow(clippy::float_cmp, reason = "the same bits are wanted, or infinities")]

mod functions;
mod heads;
mod products;
mod recurrence;

use rwkv_kernels::Simd;

/// Rounding of sums of up to a few thousand terms in f32, relative to the sum of the absolute values of the terms
/// (`twins/tolerance.rs`); weights expand to the same numbers on both sides.
pub(crate) const SUM: f64 = 4e-6;

/// Numbers in −1 … 1 that depend on the seed.
pub(crate) fn noise(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

pub(crate) fn levels() -> impl Iterator<Item = Simd> {
    Simd::ALL
        .into_iter()
        .filter(|level| *level != Simd::Twins && level.is_available())
}

/// Fails unless each element is within `bound`, relative to the largest of the twin's.
#[track_caller]
pub(crate) fn near(what: &str, got: &[f32], want: &[f32], bound: f32) {
    assert_eq!(got.len(), want.len(), "{what}: number of elements");
    let largest = want.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!(
            (got - want).abs() <= bound * largest,
            "{what}: element {i} is {got}, the twin has {want}, the largest is {largest}"
        );
    }
}
