//! The sampler against models of it that are written straight from the definitions.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod definition;
mod draws;
mod reference_package;

use super::{Sampler, SamplerParams, SamplingError, uniform};

/// Compares the sampler's distribution with the expected one, tokens exactly and probabilities to `tolerance`.
fn same(found: &[(u32, f32)], expected: &[(u32, f64)], tolerance: f64) -> bool {
    found.len() == expected.len()
        && found
            .iter()
            .zip(expected)
            .all(|(&(token, p), &(expected_token, expected_p))| {
                token == expected_token && (f64::from(p) - expected_p).abs() <= tolerance
            })
}
