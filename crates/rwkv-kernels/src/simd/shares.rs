//! How a product's rows are shared out over threads.

use super::kernel::ROWS;
use crate::Matrix;
use rayon::prelude::*;
use std::{marker::PhantomData, ops::Range};

/// Rows that are expanded for many tokens: with a segment's columns 128 KiB at most, which stay in the second cache.
pub(super) const PANEL: usize = 32;

/// How far ahead of the row at work those are that one token's products ask for, a multiple of [`ROWS`] of about so many
/// bytes: rows of small models end before the processor's own prefetching has found out that they are read in order.
pub(super) fn rows_ahead(weight: &Matrix<'_>) -> usize {
    const BYTES: usize = 8 << 10;
    let group = weight.packed_rows(0, ROWS).len().max(1);
    ROWS * (BYTES / group).max(1)
}

/// Products that make a thread's share worth its handing over: a few microseconds' work.
const SHARE: usize = 1 << 16;

/// Calls `share` with all of `rows`, whole groups of `group` at a time, on several threads where there is enough to do;
/// a row takes `work` products.
pub(super) fn by_share(
    rows: usize,
    group: usize,
    work: usize,
    share: impl Fn(Range<usize>) + Sync,
) {
    let threads = rayon::current_num_threads();
    if threads == 1 || rows * work < 4 * SHARE {
        return share(0..rows);
    }
    // A few shares a thread, so that one that is late finds less to do.
    let most = rows
        .div_ceil(group)
        .min(4 * threads)
        .min(rows * work / SHARE);
    let rows_each = rows.div_ceil(most.max(1)).next_multiple_of(group);
    (0..rows.div_ceil(rows_each))
        .into_par_iter()
        .with_max_len(1)
        .for_each(|i| share(i * rows_each..rows.min((i + 1) * rows_each)));
}

/// Tokens × rows of results, of which each thread writes its own rows.
pub(super) struct Outputs<'a> {
    first: *mut f32,
    len: usize,
    rows: usize,
    lives: PhantomData<&'a mut [f32]>,
}

// SAFETY: it stands for a `&mut [f32]`, and threads write different rows.
unsafe impl Sync for Outputs<'_> {}

impl<'a> Outputs<'a> {
    pub(super) fn new(y: &'a mut [f32], rows: usize) -> Self {
        Self {
            first: y.as_mut_ptr(),
            len: y.len(),
            rows,
            lives: PhantomData,
        }
    }

    /// Writes `sums` to as many rows as are left from `row` on, or adds them.
    ///
    /// # Safety
    /// No other thread writes these rows.
    #[inline(always)]
    pub(super) unsafe fn put(&self, token: usize, row: usize, sums: [f32; ROWS], add: bool) {
        for (row, sum) in (row..self.rows).zip(sums) {
            let at = token * self.rows + row;
            debug_assert!(at < self.len, "a result outside of y");
            // SAFETY: y has tokens · rows elements, and these are this thread's.
            unsafe {
                let y = self.first.add(at);
                *y = if add { *y + sum } else { sum };
            }
        }
    }
}
