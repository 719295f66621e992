//! Weights whose large matrices have lost their smallest elements.

use super::{PruneRatio, slab_rows};
use crate::{Model, Result, Weight, Weights, encode_rows};
use rayon::prelude::*;
use rwkv_kernels::{
    Csr, Format, Matrix,
    formats::{Cut, Magnitudes},
};
use rwkv_mem::Shape;
use std::{
    collections::HashMap,
    ops::Range,
    sync::{Arc, OnceLock},
};

/// Weights of which the large matrices of layers are pruned, by magnitude, each on its own: rows are made as they are
/// asked for. F32, F16 and BF16 stay what they are; other formats become F16.
pub struct PrunedWeights {
    source: Arc<dyn Weights>,
    ratio: PruneRatio,
    matrices: HashMap<Weight, Pruned>,
}

#[derive(Default)]
struct Pruned {
    boundary: OnceLock<Boundary>,
    /// All rows, where they were wanted in one piece.
    made: OnceLock<Vec<u8>>,
}

/// What goes from a matrix.
struct Boundary {
    cut: Cut,
    /// Of each row, how many elements at the cut; nothing where they all stay.
    equals: Vec<u32>,
}

impl PrunedWeights {
    /// Prunes those of `tensors` that can be; nothing is read yet.
    pub fn new(source: Arc<dyn Weights>, tensors: &[Weight], ratio: PruneRatio) -> Self {
        let matrices = tensors.iter().filter(|weight| weight.is_prunable());
        Self {
            matrices: matrices.map(|w| (*w, Pruned::default())).collect(),
            source,
            ratio,
        }
    }

    /// What goes from `weight`, found once.
    fn boundary<'a>(&'a self, weight: Weight, pruned: &'a Pruned) -> Result<&'a Boundary> {
        if let Some(known) = pruned.boundary.get() {
            return Ok(known);
        }
        let found = self.find(weight)?;
        Ok(pruned.boundary.get_or_init(|| found))
    }

    fn find(&self, weight: Weight) -> Result<Boundary> {
        let shape = self.source.describe(weight)?.1;
        let slab = slab_rows(shape.cols.0);
        let slabs = || (0..shape.rows.0).step_by(slab);
        let rows = |first: usize| first..shape.rows.0.min(first + slab);
        let mut magnitudes = Magnitudes::default();
        for first in slabs() {
            self.source.with_rows(weight, rows(first), &mut |matrix| {
                magnitudes.add(matrix);
                Ok(())
            })?;
        }
        let cut = magnitudes.cut(self.ratio.of(magnitudes.len()));
        let mut equals = Vec::new();
        if cut.divides_equals() {
            for first in slabs() {
                self.source.with_rows(weight, rows(first), &mut |matrix| {
                    let counts = (0..matrix.shape().rows.0).into_par_iter().map_init(
                        || vec![0.0; shape.cols.0],
                        |row, index| {
                            matrix.expand_row(index, row);
                            cut.equals(row)
                        },
                    );
                    equals.par_extend(counts);
                    Ok(())
                })?;
            }
            cut.shares(&mut equals);
        }
        Ok(Boundary { cut, equals })
    }

    /// These rows, packed.
    fn make(&self, weight: Weight, pruned: &Pruned, rows: Range<usize>) -> Result<Vec<u8>> {
        let boundary = self.boundary(weight, pruned)?;
        let (format, shape) = self.describe(weight)?;
        let cols = shape.cols.0;
        let row_bytes = format.row_bytes(cols).unwrap_or(0);
        let name = self.name(weight);
        let mut bytes = vec![0; rows.len().saturating_mul(row_bytes)];
        let slab = slab_rows(cols);
        let slabs = bytes.chunks_mut(slab.saturating_mul(row_bytes).max(1));
        for (first, out) in rows.clone().step_by(slab).zip(slabs) {
            let some = first..rows.end.min(first + slab);
            self.source.with_rows(weight, some, &mut |matrix| {
                let mut values = vec![0.0f32; matrix.shape().rows.0 * cols];
                values
                    .par_chunks_exact_mut(cols.max(1))
                    .enumerate()
                    .for_each(|(row, values)| {
                        matrix.expand_row(row, values);
                        let equal = boundary.equals.get(first + row).copied();
                        boundary.cut.apply(values, equal.unwrap_or(0));
                    });
                let kept = Matrix::new(
                    Format::F32,
                    matrix.shape().rows,
                    shape.cols,
                    bytemuck::cast_slice(&values),
                )?;
                encode_rows(&name, &kept, format, out)
            })?;
        }
        Ok(bytes)
    }
}

impl Weights for PrunedWeights {
    fn matrix(&self, weight: Weight) -> Result<Matrix<'_>> {
        let Some(pruned) = self.matrices.get(&weight) else {
            return self.source.matrix(weight);
        };
        let (format, shape) = self.describe(weight)?;
        let bytes = if let Some(made) = pruned.made.get() {
            made
        } else {
            let made = self.make(weight, pruned, 0..shape.rows.0)?;
            pruned.made.get_or_init(|| made)
        };
        Ok(Matrix::new(format, shape.rows, shape.cols, bytes)?)
    }

    fn has(&self, weight: Weight) -> bool {
        self.source.has(weight)
    }

    fn name(&self, weight: Weight) -> String {
        self.source.name(weight)
    }

    fn describe(&self, weight: Weight) -> Result<(Format, Shape)> {
        let (format, shape) = self.source.describe(weight)?;
        let float = matches!(format, Format::F32 | Format::F16 | Format::Bf16);
        if float || !self.matrices.contains_key(&weight) {
            return Ok((format, shape));
        }
        Ok((Format::F16, shape))
    }

    fn is_in_place(&self, weight: Weight) -> bool {
        // A step on the processor would prune again: `matrix` keeps what it makes.
        self.matrices.contains_key(&weight) || self.source.is_in_place(weight)
    }

    fn with_rows(
        &self,
        weight: Weight,
        rows: Range<usize>,
        read: &mut dyn FnMut(&Matrix<'_>) -> Result<()>,
    ) -> Result<()> {
        let Some(pruned) = self.matrices.get(&weight) else {
            return self.source.with_rows(weight, rows, read);
        };
        if pruned.made.get().is_some() {
            return read(&self.matrix(weight)?.rows(rows)?);
        }
        let (format, shape) = self.describe(weight)?;
        let end = rows.end.min(shape.rows.0);
        let rows = rows.start.min(end)..end;
        let bytes = self.make(weight, pruned, rows.clone())?;
        let rows = rwkv_mem::Rows(rows.len());
        read(&Matrix::new(format, rows, shape.cols, &bytes)?)
    }

    fn will_need(&self, weight: Weight) {
        self.source.will_need(weight);
    }

    fn wont_need(&self, weight: Weight) {
        self.source.wont_need(weight);
    }

    fn entries(&self, weight: Weight) -> Option<u64> {
        let pruned = self.matrices.contains_key(&weight);
        self.source.entries(weight).filter(|_| !pruned)
    }

    fn sparse(&self, weight: Weight) -> Result<Option<Csr<'_>>> {
        if self.matrices.contains_key(&weight) {
            return Ok(None);
        }
        self.source.sparse(weight)
    }
}

impl Model {
    /// The same model with its large matrices pruned by magnitude: `ratio` of each one's elements are zero, the smallest.
    #[must_use]
    pub fn pruned(&self, ratio: PruneRatio) -> Self {
        let weights = PrunedWeights::new(self.shared_weights(), &self.tensors(), ratio);
        self.with_weights(Arc::new(weights))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::{BlockWeight as B, InMemoryWeights};
    use proptest::prelude::*;
    use rwkv_mem::{Cols, Rows};

    const KEY: Weight = Weight::Block(0, B::FfnKey);

    proptest! {
        /// Exactly as many are zero as were asked for, none of them larger than one that is left, and rows are the same
        /// however they are asked for.
        #[test]
        fn the_smallest_are_zero(rows in 1usize..20, blocks in 1usize..4, seed: u64, share in 0.0..0.999,
                                 levels in prop_oneof![Just(3u64), Just(1000)],
                                 format in prop::sample::select(vec![Format::F32, Format::F16, Format::Bf16, Format::Q8_0])) {
            let cols = 32 * blocks;
            let element = |i: u64| {
                let hash = (i ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
                (hash % levels + 1) as f32 / levels as f32 * if hash & 1 << 20 == 0 { 1.0 } else { -1.0 }
            };
            let values: Vec<f32> = (0..).take(rows * cols).map(element).collect();
            let mut source = InMemoryWeights::default();
            for weight in [KEY, Weight::Head] {
                source.insert(weight, format, Rows(rows), Cols(cols), &values).unwrap();
            }
            let ratio = PruneRatio::new(share).unwrap();
            let source = Arc::new(source);
            let pruned = PrunedWeights::new(source.clone(), &[KEY, Weight::Head], ratio);
            prop_assert_eq!(pruned.matrix(Weight::Head).unwrap().bytes(), source.matrix(Weight::Head).unwrap().bytes());

            let mut slabs: Vec<u8> = Vec::new();
            for first in (0..rows).step_by(3) {
                pruned.with_rows(KEY, first..first + 3, &mut |rows| {
                    slabs.extend(rows.bytes());
                    Ok(())
                }).unwrap();
            }
            let matrix = pruned.matrix(KEY).unwrap();
            prop_assert!(matrix.bytes() == slabs);
            let want = if format == Format::Q8_0 { Format::F16 } else { format };
            prop_assert_eq!(matrix.format(), want);
            let before = source.vector(KEY, rows * cols).unwrap();
            let after = pruned.vector(KEY, rows * cols).unwrap();
            let zeros = after.iter().filter(|x| **x == 0.0).count() as u64;
            prop_assert_eq!(zeros, ratio.of((rows * cols) as u64).max(before.iter().filter(|x| **x == 0.0).count() as u64));
            let of = |kept: bool| before.iter().zip(&after).filter(move |(_, a)| (**a != 0.0) == kept).map(|(b, _)| b.abs());
            let largest = of(false).fold(0.0, f32::max);
            // Magnitudes are compared as f16.
            prop_assert!(of(true).all(|x| x * 1.001 >= largest));
        }
    }
}
