//! How a product's rows are shared out over threads.

use super::kernel::ROWS;
use crate::Matrix;
use rayon::prelude::*;
use std::{marker::PhantomData, ops::Range};

/// Rows that are expanded for many tokens: with a segment's columns 128 KiB at most, which stay in the second cache.
pub(super) const PANEL: usize = 32;

/// A product's packed rows, in segments of columns.
pub(super) struct Segments<'a> {
    weight: &'a Matrix<'a>,
    row_bytes: usize,
    /// Of a segment that is not the last.
    bytes: usize,
    count: usize,
    /// How far ahead of the row at work those are that one token's products ask for: a multiple of [`ROWS`].
    ahead: usize,
}

impl<'a> Segments<'a> {
    /// Segments of `bytes` of each row.
    pub(super) fn new(weight: &'a Matrix<'a>, bytes: usize) -> Self {
        /// Rows of small models end before the processor's own prefetching has found out that they are read in order.
        const AHEAD: usize = 8 << 10;
        let row_bytes = weight.packed_rows(0, 1).len();
        Self {
            weight,
            row_bytes,
            bytes,
            count: row_bytes.div_ceil(bytes.max(1)),
            ahead: ROWS * (AHEAD / (ROWS * row_bytes).max(1)).max(1),
        }
    }

    /// How many a row has.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// The given segment of four rows, the last row as often as there are too few.
    #[inline(always)]
    pub(super) fn of(&self, row: usize, segment: usize) -> [&'a [u8]; ROWS] {
        let last = self.weight.shape().rows.0.saturating_sub(1);
        let start = segment * self.bytes;
        let length = self.bytes.min(self.row_bytes.saturating_sub(start));
        let mut segments = [&[][..]; ROWS];
        for (i, bytes) in segments.iter_mut().enumerate() {
            let at = (row + i).min(last) * self.row_bytes + start;
            *bytes = self.weight.bytes().get(at..at + length).unwrap_or(&[]);
        }
        segments
    }

    /// What one token's products ask for before they come to the given segment of four rows: rows that are a little
    /// ahead, of longer rows the segment that is next.
    #[inline(always)]
    pub(super) fn ahead(&self, row: usize, segment: usize) -> [&'a [u8]; ROWS] {
        if self.count == 1 {
            let rows = self.weight.packed_rows(row + self.ahead, ROWS);
            [rows, &[], &[], &[]]
        } else if segment + 1 < self.count {
            self.of(row, segment + 1)
        } else {
            self.of(row + ROWS, 0)
        }
    }
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

    /// Rows of a token's results.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Writes `sums` to as many rows as are left from `row` on, or adds them.
    ///
    /// # Safety
    /// No other thread writes these rows.
    #[inline(always)]
    pub(super) unsafe fn put(&self, token: usize, row: usize, sums: [f32; ROWS], add: bool) {
        let at = token * self.rows + row;
        if row + ROWS <= self.rows {
            debug_assert!(at + ROWS <= self.len, "results outside of y");
            // SAFETY: y has tokens · rows elements, and these are this thread's.
            unsafe {
                let y = self.first.add(at).cast::<[f32; ROWS]>();
                let [a, b, c, d] = if add { *y } else { [0.0; ROWS] };
                *y = [a + sums[0], b + sums[1], c + sums[2], d + sums[3]];
            }
            return;
        }
        for (i, sum) in sums.into_iter().enumerate().take(self.rows - row) {
            debug_assert!(at + i < self.len, "a result outside of y");
            // SAFETY: as above.
            unsafe {
                let y = self.first.add(at + i);
                *y = if add { *y + sum } else { sum };
            }
        }
    }
}
