//! What is done row by row, on several threads where there is enough of it.

use crate::Result;
use rayon::prelude::*;
use std::ops::Range;

/// Elements of a result that make a thread's share worth its handing over.
const SHARE: usize = 1 << 14;

/// These rows of a value of `width`.
///
/// # Errors
/// [`rwkv_kernels::Error::Shape`] where the value does not have them.
pub(super) fn part<'a>(
    x: &'a [f32],
    width: usize,
    rows: &Range<usize>,
) -> rwkv_kernels::Result<&'a [f32]> {
    let [start, end] = [rows.start, rows.end].map(|row| row.checked_mul(width));
    let found = start.zip(end).and_then(|(start, end)| x.get(start..end));
    found.ok_or_else(|| rwkv_kernels::Error::Shape {
        what: "rows of a value".to_owned(),
        problem: format!("{rows:?} of {width} elements each, in {}", x.len()),
    })
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// Rows that are there, and none in the place of those that are not.
    #[test]
    fn parts() {
        let x = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0];
        assert_eq!(part(&x, 2, &(1..3)).unwrap(), &x[2..6]);
        assert_eq!(part(&x, 2, &(3..3)).unwrap(), &[0.0; 0]);
        assert_eq!(part(&[], 0, &(0..4)).unwrap(), &[0.0; 0]);
        for (width, rows) in [(2, 2..4), (7, 0..1), (usize::MAX, 1..2), (3, 4..4)] {
            let error = part(&x, width, &rows).unwrap_err().to_string();
            assert!(error.contains("in 6") && !error.contains('\n'), "{error}");
        }
        assert!(part(&[], 4, &(0..1)).is_err());
    }
}
