//! What is done row by row, on several threads where there is enough of it.

use crate::Result;
use rayon::prelude::*;
use std::ops::Range;

/// Elements of a result that make a thread's share worth its handing over.
const SHARE: usize = 1 << 14;

/// These rows of a value of `width`.
pub(super) fn part<'a>(x: &'a [f32], width: usize, rows: &Range<usize>) -> &'a [f32] {
    x.get(rows.start * width..rows.end * width).unwrap_or(&[])
}

/// Rows of a thread's share; one thread has all of them.
fn share(width: usize) -> usize {
    match rayon::current_num_threads() {
        1 => usize::MAX,
        _ => (SHARE / width.max(1)).max(1),
    }
}

/// Fills `y` of rows of `width`: `fill` gets a range of rows and their place.
pub(super) fn by_rows(
    y: &mut [f32],
    width: usize,
    fill: impl Fn(Range<usize>, &mut [f32]) -> rwkv_kernels::Result<()> + Sync,
) -> Result<()> {
    let (rows, share) = (y.len() / width.max(1), share(width));
    if rows <= share {
        return Ok(fill(0..rows, y)?);
    }
    let parts = y.par_chunks_mut(share * width).enumerate();
    let filled = parts.try_for_each(|(i, y)| {
        let first = i * share;
        fill(first..first + y.len() / width, y)
    });
    Ok(filled?)
}

/// As [`by_rows`], for two results of the same shape.
pub(super) fn by_rows_of_two(
    y: &mut [f32],
    z: &mut [f32],
    width: usize,
    fill: impl Fn(Range<usize>, &mut [f32], &mut [f32]) -> rwkv_kernels::Result<()> + Sync,
) -> Result<()> {
    let (rows, share) = (y.len() / width.max(1), share(width));
    if rows <= share {
        return Ok(fill(0..rows, y, z)?);
    }
    let parts = y.par_chunks_mut(share * width);
    let parts = parts.zip(z.par_chunks_mut(share * width)).enumerate();
    let filled = parts.try_for_each(|(i, (y, z))| {
        let first = i * share;
        fill(first..first + y.len() / width, y, z)
    });
    Ok(filled?)
}
