//! Products of a packed matrix with a slice of its columns (`wgsl/stream/slice.wgsl`), as parts of larger kernels.

use super::stream::Constants;
use crate::{GpuMatrix, Kernels};

/// How the threads of a workgroup share the slice of a matrix, in a kernel whose copy of the WGSL is called `slice`.
pub(super) struct Slice {
    /// Bytes of workgroup memory.
    pub(super) bytes: usize,
    pub(super) constants: Constants,
}

impl Kernels {
    /// Slices of `elements` columns of `matrix` for workgroups of `threads` that have so many `rows` each; `early`: the next
    /// rows are asked for before those that are there are multiplied. None where a slice is no whole number of units, or a subgroup too small.
    pub(super) fn slice(
        &self,
        matrix: &GpuMatrix,
        elements: usize,
        rows: usize,
        threads: usize,
        early: bool,
    ) -> Option<Slice> {
        let lanes = self.gpu().capabilities().subgroups?.min as usize;
        let (layout, cols) = (matrix.layout(), matrix.shape().cols.0);
        let [chunk] = matrix.chunks() else {
            return None;
        };
        let (unit, integers) = (layout.unit(), layout.codes_are_integers());
        let step = if integers { 32 } else { unit.max(8) };
        if elements == 0 || !elements.is_multiple_of(step) || !cols.is_multiple_of(step) {
            return None;
        }
        let units = elements / unit;
        let row_threads = units.next_power_of_two();
        if row_threads > lanes || row_threads > threads {
            return None;
        }
        let (vectors, blocks) = if integers {
            (elements / 8, elements / 32)
        } else {
            (elements / 4, 0)
        };
        let mut constants: Constants = vec![
            ("slice_UNITS", (cols / unit) as f64),
            ("slice_BASE", f64::from(chunk.base)),
            ("slice_SLICE", units as f64),
            ("slice_ROW_THREADS", row_threads as f64),
            ("slice_STEP_ROWS", (threads / row_threads) as f64),
            ("slice_X_VECTORS", vectors as f64),
            ("slice_MOST_ROWS", rows as f64),
            ("slice_EARLY", f64::from(u8::from(early))),
        ];
        if integers {
            constants.push(("slice_X_BLOCKS", blocks as f64));
        }
        let scale_units = |(_, value)| ("slice_SCALE_UNITS", value);
        constants.extend(layout.constants().map(scale_units));
        Some(Slice {
            bytes: vectors * 16 + blocks * 12,
            constants,
        })
    }
}
