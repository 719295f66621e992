//! What the recurrences with a matrix `[value, key]` a head share.

use crate::{Error, Result};
use rayon::prelude::*;

/// Channels of a state `[head, value, key]` with heads of `head_size`; 0 when it is not made of whole heads.
pub(super) fn width_of(state: &[f32], head_size: usize) -> usize {
    let whole = head_size > 0
        && state
            .len()
            .is_multiple_of(head_size.saturating_mul(head_size));
    if whole { state.len() / head_size } else { 0 }
}

/// Runs `advance` for every head at once: it gets the head's number, its state `[value, key]` and room for its results
/// `[token, value]`, which then take their places in `y` (tokens × channels).
pub(super) fn by_head(
    state: &mut [f32],
    head_size: usize,
    y: &mut [f32],
    advance: impl Fn(usize, &mut [f32], &mut [f32]) + Sync,
) {
    let n = head_size;
    let width = width_of(state, n).max(1);
    let tokens = y.len() / width;
    let results: Vec<Vec<f32>> = state
        .par_chunks_exact_mut(n * n)
        .enumerate()
        .map(|(head, state)| {
            let mut results = vec![0.0; tokens * n];
            advance(head, state, &mut results);
            results
        })
        .collect();
    for (head, results) in results.iter().enumerate() {
        for (t, values) in results.chunks_exact(n).enumerate() {
            y[t * width + head * n..][..n].copy_from_slice(values);
        }
    }
}

/// The head sizes that the kernels are compiled for; others run on the next larger one.
const HEADS: [usize; 3] = [32, 64, 128];

/// The value of the axis HEAD for heads of `head_size`.
pub(super) fn compiled_head(what: &str, head_size: usize) -> Result<usize> {
    HEADS.into_iter().find(|h| head_size <= *h).ok_or_else(|| {
        Error::shape(
            what,
            format!("heads of {head_size}, where at most 128 are supported"),
        )
    })
}
