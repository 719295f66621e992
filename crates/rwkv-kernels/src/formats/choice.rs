//! Which block size suits a matrix, in the families that have several.

use super::{Block, Format, search::clean};
use crate::Matrix;
use rayon::prelude::*;
use std::ops::Range;

/// Formats that differ only in their block size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// Signed bytes.
    Int8,
    /// Codes of 4 bits into the quantiles of a normal distribution.
    Nf4,
    /// Codes of 4 bits into the quantiles of a Student's t-distribution.
    Sf4,
}

/// A block size for a matrix, and what it costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// The size.
    pub block: Block,
    /// The relative root mean square error that it gives the rows that were looked at, √(Σ (x − x̂)² / Σ x²); 0 for zeros.
    pub error: f32,
}

/// Elements that a task goes through at least, in whole rows.
const TASK: usize = 1 << 16;

/// Tasks that a matrix makes at most, evenly spread over its rows: 4 million elements tell the error of all to a thousandth.
const TASKS: usize = 64;

/// Elements that are encoded at a time, in whole rows.
const RUN: usize = 1 << 14;

impl Family {
    /// Every family.
    pub const ALL: [Family; 3] = [Family::Int8, Family::Nf4, Family::Sf4];

    /// The name used by flags: that of its formats without the block size.
    pub fn name(self) -> &'static str {
        match self {
            Family::Int8 => "int8",
            Family::Nf4 => "nf4",
            Family::Sf4 => "sf4",
        }
    }

    /// The format with blocks of this size.
    pub fn format(self, block: Block) -> Format {
        match self {
            Family::Int8 => Format::Int8(block),
            Family::Nf4 => Format::Nf4(block),
            Family::Sf4 => Format::Sf4(block),
        }
    }

    /// The relative error that [`choose`](Self::choose) is meant to be called with: 0.8 % for bytes and 10 % for codes
    /// of 4 bits, which normally distributed weights meet with blocks of 256.
    pub fn bound(self) -> f32 {
        match self {
            Family::Int8 => 0.008,
            Family::Nf4 | Family::Sf4 => 0.1,
        }
    }

    /// The largest block that divides the columns of `matrix` and keeps its relative error within `bound`, or else
    /// blocks of 32. `None` where not even 32 divides them.
    ///
    /// Tries one size after the other, the largest first, and reads the matrix for each, of a large one some 4 million elements
    /// in rows from all over it, on all threads of the current `rayon` pool; each holds a few rows. The answer does not depend
    /// on how many there are.
    pub fn choose(self, matrix: &Matrix<'_>, bound: f32) -> Option<Choice> {
        let cols = matrix.shape().cols.0;
        let mut tried = None;
        for block in Block::ALL.into_iter().rev() {
            if !cols.is_multiple_of(block.elements()) {
                continue;
            }
            let error = self.error(matrix, block);
            tried = Some(Choice { block, error });
            if error <= bound {
                break;
            }
        }
        tried
    }

    /// What blocks of this size cost the matrix, by a sample of its rows.
    fn error(self, matrix: &Matrix<'_>, block: Block) -> f32 {
        let (rows, cols) = (matrix.shape().rows.0, matrix.shape().cols.0);
        let per_task = (TASK / cols.max(1)).max(1);
        let format = self.format(block);
        let tasks = rows.div_ceil(per_task);
        let tasks: Vec<Squares> = (0..tasks)
            .into_par_iter()
            .step_by(tasks.div_ceil(TASKS).max(1))
            .map(|task| {
                let first = task * per_task;
                squares(matrix, format, first..(first + per_task).min(rows))
            })
            .collect();
        // In order, so that threads do not change the sum.
        let total = tasks.into_iter().fold(Squares::default(), |sum, task| {
            let (values, errors) = (sum.values + task.values, sum.errors + task.errors);
            Squares { values, errors }
        });
        let ratio = if total.values > 0.0 {
            total.errors / total.values
        } else {
            0.0
        };
        #[allow(
            clippy::cast_possible_truncation,
            reason = "a ratio for people and bounds"
        )]
        let error = ratio.sqrt() as f32;
        error
    }
}

/// Sums of squares: of values, and of what a format makes them lose.
#[derive(Default)]
struct Squares {
    values: f64,
    errors: f64,
}

/// Those of `rows` in `format`.
fn squares(matrix: &Matrix<'_>, format: Format, rows: Range<usize>) -> Squares {
    let cols = matrix.shape().cols.0;
    let spec = format.spec();
    // Encoders work on many blocks side by side.
    let run = (RUN / cols.max(1)).clamp(1, rows.len().max(1));
    let mut values = vec![0.0f32; run * cols];
    let mut packed = vec![0; run * format.row_bytes(cols).unwrap_or(0)];
    let mut decoded = values.clone();
    let mut squares = Squares::default();
    for first in rows.clone().step_by(run) {
        let count = run.min(rows.end - first);
        let bytes = matrix.packed_rows(first, count);
        let (values, decoded) = (&mut values[..count * cols], &mut decoded[..count * cols]);
        matrix.format().spec().dequantize(bytes, values);
        spec.quantize(values, &mut packed);
        spec.dequantize(&packed, decoded);
        for (x, y) in values.iter().zip(decoded) {
            let x = f64::from(clean(*x));
            let error = x - f64::from(*y);
            squares.values += x * x;
            squares.errors += error * error;
        }
    }
    squares
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use rwkv_mem::{Cols, Rows};

    /// Values that repeat a pattern, times a factor that grows by `growth` every 32 columns.
    fn pattern(rows: usize, cols: usize, growth: f32) -> Vec<u8> {
        (0..rows * cols)
            .flat_map(|i| {
                // Three waves make something like a bell.
                let wave: f32 = [37, 53, 71]
                    .map(|step| ((i * step % 101) as f32 - 50.0) / 50.0)
                    .iter()
                    .sum();
                (wave * growth.powf((i % cols / 32 % 8) as f32)).to_le_bytes()
            })
            .collect()
    }

    fn check(family: Family, cols: usize, growth: f32, bound: f32, want: Option<Block>) {
        let rows = 5;
        let bytes = pattern(rows, cols, growth);
        let matrix = Matrix::new(Format::F32, Rows(rows), Cols(cols), &bytes).unwrap();
        let choice = family.choose(&matrix, bound);
        assert_eq!(
            choice.map(|c| c.block),
            want,
            "{family:?}, {cols} columns, growth {growth}, bound {bound}: {choice:?}"
        );
    }

    #[test]
    fn the_largest_block_within_the_bound() {
        for family in Family::ALL {
            let bound = family.bound();
            check(family, 512, 1.0, bound, Some(Block::B256));
            check(family, 256, 1.0, bound, Some(Block::B256));
            // Columns that the larger sizes do not divide.
            check(family, 384, 1.0, bound, Some(Block::B128));
            check(family, 320, 1.0, bound, Some(Block::B64));
            check(family, 96, 1.0, bound, Some(Block::B32));
            check(family, 48, 1.0, bound, None);
            // Nothing is good enough, everything is.
            check(family, 512, 1.0, 0.0, Some(Block::B32));
            check(family, 512, 1.0, f32::INFINITY, Some(Block::B256));
            check(family, 512, 1.0, f32::NAN, Some(Block::B32));
            // Zeros, and no rows' worth of columns.
            check(family, 256, 0.0, 0.0, Some(Block::B32));
            check(family, 0, 1.0, bound, Some(Block::B256));
        }
    }

    /// A matrix of more rows than are looked at, which grow from the first to the last: their error is that of all.
    #[test]
    fn a_part_of_the_rows_tells_for_all() {
        let (rows, cols) = (20_000, 256);
        let mut state = 1u32;
        let mut noise = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        let values: Vec<f32> = (0..rows * cols)
            .map(|i| (noise() + noise() + noise()) * (1.0 + i as f32 / (rows * cols) as f32))
            .collect();
        let bytes = bytemuck::cast_slice(&values);
        let matrix = Matrix::new(Format::F32, Rows(rows), Cols(cols), bytes).unwrap();
        let all = squares(&matrix, Format::Nf4(Block::B256), 0..rows);
        let want = (all.errors / all.values).sqrt();
        let got = f64::from(Family::Nf4.error(&matrix, Block::B256));
        let off = (got / want - 1.0).abs();
        assert!(off > 0.0 && off < 1e-3, "{got} for {want}");
    }

    #[test]
    fn values_that_cannot_be_held() {
        let values = [f32::NAN, f32::INFINITY, f32::MIN, 1e-45].map(f32::to_le_bytes);
        let bytes = values.as_flattened().repeat(64);
        let matrix = Matrix::new(Format::F32, Rows(1), Cols(256), &bytes).unwrap();
        for family in Family::ALL {
            let choice = family.choose(&matrix, family.bound()).unwrap();
            assert!(choice.error.is_finite(), "{family:?}: {choice:?}");
        }
    }
}
