//! Models of made-up weights, in the shapes of published ones: for measuring, and for trying what needs a large file.
//!
//! Every element follows from the seed, the tensor and the element's place, so that any row can be made on its own:
//! nothing is kept, and all threads work.

mod distribution;
mod spec;
mod tensors;

pub use spec::SyntheticSpec;

use distribution::Made;
use rayon::prelude::*;
use rwkv_kernels::{Format, Matrix};
use rwkv_mem::{Cols, Rows, Shape};
use rwkv_sched::{Error, ModelConfig, Result, Weight, Weights};
use std::{collections::HashMap, ops::Range, sync::OnceLock};

/// The tensors of a [`SyntheticSpec`], all F16. Rows are made when they are asked for; only
/// [`matrix`](Weights::matrix), which lends what it returns, keeps a tensor once it is made.
pub struct SyntheticWeights {
    config: ModelConfig,
    tensors: HashMap<Weight, (Made, OnceLock<Vec<u8>>)>,
}

/// Elements that a thread makes at a time.
const RUN: usize = 1 << 14;

impl SyntheticWeights {
    /// The tensors of `spec`; none is made yet.
    pub fn new(spec: &SyntheticSpec) -> Self {
        let made = tensors::all(spec).into_iter();
        Self {
            config: spec.config.clone(),
            tensors: made
                .map(|(weight, made)| (weight, (made, OnceLock::new())))
                .collect(),
        }
    }

    /// The model's dimensions.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn find(&self, weight: Weight) -> Result<&(Made, OnceLock<Vec<u8>>)> {
        self.tensors.get(&weight).ok_or_else(|| Error::Weight {
            name: self.name(weight),
            problem: "missing".to_owned(),
        })
    }
}

/// Rows `rows` of a tensor, packed as F16.
fn make(made: &Made, rows: Range<usize>) -> Vec<u8> {
    let first = rows.start * made.cols;
    let mut bytes = vec![0; rows.len() * made.cols * 2];
    let encoder = Format::F16.spec();
    bytes
        .par_chunks_mut(RUN * 2)
        .enumerate()
        .for_each(|(run, bytes)| {
            let mut values = vec![0.0; bytes.len() / 2];
            made.fill(first + run * RUN, &mut values);
            encoder.quantize(&values, bytes);
        });
    bytes
}

impl Weights for SyntheticWeights {
    fn matrix(&self, weight: Weight) -> Result<Matrix<'_>> {
        let (made, kept) = self.find(weight)?;
        let bytes = kept.get_or_init(|| make(made, 0..made.rows));
        Ok(Matrix::new(
            Format::F16,
            Rows(made.rows),
            Cols(made.cols),
            bytes,
        )?)
    }

    fn name(&self, weight: Weight) -> String {
        format!("{weight:?}")
    }

    fn describe(&self, weight: Weight) -> Result<(Format, Shape)> {
        let (made, _) = self.find(weight)?;
        Ok((Format::F16, Shape::new(made.rows, made.cols)))
    }

    fn with_rows(
        &self,
        weight: Weight,
        rows: Range<usize>,
        read: &mut dyn FnMut(&Matrix<'_>) -> Result<()>,
    ) -> Result<()> {
        let (made, kept) = self.find(weight)?;
        if kept.get().is_some() {
            return read(&self.matrix(weight)?.rows(rows)?);
        }
        let end = rows.end.min(made.rows);
        let rows = rows.start.min(end)..end;
        let bytes = make(made, rows.clone());
        read(&Matrix::new(
            Format::F16,
            Rows(rows.len()),
            Cols(made.cols),
            &bytes,
        )?)
    }
}

#[cfg(test)]
mod tests;
