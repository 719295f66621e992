//! Pruning by magnitude: which elements of a matrix are its smallest.

use crate::Matrix;
use half::f16;
use rayon::prelude::*;

/// How often each magnitude occurs in a matrix, as f16: NaN is the largest.
#[derive(Clone, Debug)]
pub struct Magnitudes {
    /// By the bits of f16 without the sign, which ascend with the magnitude.
    counts: Vec<u64>,
}

/// What divides the smallest elements of a matrix from the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Bits of the magnitude below which everything goes.
    below: u16,
    /// How many elements of that magnitude go.
    equal: u64,
}

/// Magnitudes that f16 has, NaN's included.
const MAGNITUDES: usize = 1 << 15;

/// Rows that a thread counts at a time, in elements: each run takes a table of its own.
const RUN: usize = 1 << 20;

impl Default for Magnitudes {
    fn default() -> Self {
        Self {
            counts: vec![0; MAGNITUDES],
        }
    }
}

impl Magnitudes {
    /// Counts the elements of `matrix`, some rows of a larger one perhaps.
    pub fn add(&mut self, matrix: &Matrix<'_>) {
        let (rows, cols) = (matrix.shape().rows.0, matrix.shape().cols.0);
        let run = (RUN / cols.max(1)).max(1);
        let counted = (0..rows.div_ceil(run)).into_par_iter().map(|index| {
            let mut counts = vec![0u64; MAGNITUDES];
            let mut row = vec![0.0; cols];
            for r in index * run..rows.min((index + 1) * run) {
                matrix.expand_row(r, &mut row);
                for x in &row {
                    counts[usize::from(magnitude(*x))] += 1;
                }
            }
            counts
        });
        let sum = |mut a: Vec<u64>, b: Vec<u64>| {
            for (a, b) in a.iter_mut().zip(b) {
                *a += b;
            }
            a
        };
        if let Some(counts) = counted.reduce_with(sum) {
            self.counts = sum(std::mem::take(&mut self.counts), counts);
        }
    }

    /// Elements.
    pub fn len(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The cut that takes the `count` smallest elements, or all where there are fewer.
    pub fn cut(&self, count: u64) -> Cut {
        let mut left = count;
        for (below, counted) in (0u16..).zip(&self.counts) {
            if left < *counted {
                return Cut { below, equal: left };
            }
            left -= counted;
        }
        Cut {
            below: 1 << 15,
            equal: 0,
        }
    }
}

impl Cut {
    /// Whether some of the elements at the boundary go, and some stay.
    pub fn divides_equals(self) -> bool {
        // Zeros are zero either way.
        self.equal > 0 && self.below > 0
    }

    /// How many elements of `row` are at the boundary.
    pub fn equals(self, row: &[f32]) -> u32 {
        let equals = row.iter().filter(|x| magnitude(**x) == self.below).count();
        u32::try_from(equals).unwrap_or(u32::MAX)
    }

    /// How many elements at the boundary go from each row, where rows have `equals` of them: those of the first rows.
    pub fn shares(self, equals: &mut [u32]) {
        let mut left = self.equal;
        for count in equals {
            *count = u32::try_from(left).unwrap_or(u32::MAX).min(*count);
            left -= u64::from(*count);
        }
    }

    /// Makes the smallest elements of `row` zero, and the first `equal` of those at the boundary.
    pub fn apply(self, row: &mut [f32], mut equal: u32) {
        for x in row {
            let size = magnitude(*x);
            if size < self.below {
                *x = 0.0;
            } else if size == self.below && equal > 0 {
                *x = 0.0;
                equal -= 1;
            }
        }
    }
}

fn magnitude(x: f32) -> u16 {
    f16::from_f32(x).to_bits() & 0x7fff
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::float_cmp,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "tests, of numbers that are moved"
    )]

    use super::*;
    use crate::Format;
    use proptest::prelude::*;
    use rwkv_mem::{Cols, Rows};

    proptest! {
        /// As a stable sort by magnitude would do it.
        #[test]
        fn the_smallest_go(cols in 1usize..9, bits in prop::collection::vec(prop_oneof![any::<u16>(), 0x3bf8u16..0x3c08], 0..90),
                           share in 0.0..=1.0f64) {
            let rows = bits.len() / cols;
            let values: Vec<f32> = bits[..rows * cols].iter().map(|b| f16::from_bits(*b).to_f32()).collect();
            let count = (share * values.len() as f64).round() as usize;
            let mut order: Vec<usize> = (0..values.len()).collect();
            order.sort_by_key(|i| magnitude(values[*i]));
            let mut want = values.clone();
            for i in &order[..count] {
                want[*i] = 0.0;
            }

            let mut found = Magnitudes::default();
            for part in values.chunks(2 * cols) {
                let bytes = bytemuck::cast_slice(part);
                found.add(&Matrix::new(Format::F32, Rows(part.len() / cols), Cols(cols), bytes).unwrap());
            }
            prop_assert_eq!(found.len(), values.len() as u64);
            let cut = found.cut(count as u64);
            let mut equals: Vec<u32> = values.chunks(cols).map(|row| cut.equals(row)).collect();
            cut.shares(&mut equals);
            let mut got = values.clone();
            for (row, equal) in got.chunks_mut(cols).zip(equals) {
                cut.apply(row, equal);
            }
            for (got, want) in got.iter().zip(&want) {
                prop_assert!(got == want || got.is_nan() && want.is_nan(), "{got} where {want}");
            }
        }
    }
}
