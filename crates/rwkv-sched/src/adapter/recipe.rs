//! What a blend does to each tensor, on the host.

use super::Adapter;
use crate::{Error, Model, Result, Weight, Weights};
use rwkv_kernels::{
    Matrix,
    ops::{self, Change},
};
use std::{collections::HashSet, sync::Arc};

/// Adapters and their strengths, each adapter once and none without effect: blends that are equal have equal recipes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recipe {
    parts: Vec<(Arc<Adapter>, f32)>,
}

/// What tells recipes apart: adapters by their numbers, strengths by their bits.
pub(crate) type RecipeKey = Vec<(u64, u32)>;

impl Recipe {
    /// Adds up the strengths of an adapter that is named twice.
    ///
    /// # Errors
    /// [`Error::Adapter`] for a strength that is no finite number.
    pub(crate) fn new(blend: &[(Arc<Adapter>, f32)]) -> Result<Self> {
        let mut parts: Vec<(Arc<Adapter>, f32)> = Vec::new();
        for (adapter, strength) in blend {
            match parts.iter_mut().find(|(a, _)| a.id == adapter.id) {
                Some((_, sum)) => *sum += strength,
                None => parts.push((adapter.clone(), *strength)),
            }
        }
        if let Some((adapter, strength)) = parts.iter().find(|(_, s)| !s.is_finite()) {
            let problem = format!("a strength of {strength}, where a finite number is needed");
            return Err(adapter.error(problem));
        }
        parts.retain(|(adapter, strength)| *strength != 0.0 && !adapter.is_empty());
        parts.sort_by_key(|(adapter, _)| adapter.id);
        Ok(Self { parts })
    }

    /// Whether it is the base model.
    pub(crate) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    pub(crate) fn parts(&self) -> &[(Arc<Adapter>, f32)] {
        &self.parts
    }

    pub(crate) fn key(&self) -> RecipeKey {
        let key = |(adapter, strength): &(Arc<Adapter>, f32)| (adapter.id, strength.to_bits());
        self.parts.iter().map(key).collect()
    }

    /// The weights of `model` that it changes, in the order of the graph; of a part of a model, those that this has.
    ///
    /// # Errors
    /// What [`Adapter::check`] says.
    pub(crate) fn changed(&self, model: &Model) -> Result<Vec<Weight>> {
        let mut changed = HashSet::new();
        for (adapter, _) in &self.parts {
            adapter.check(model)?;
            changed.extend(adapter.weights());
        }
        let all = model.tensors().into_iter();
        Ok(all.filter(|w| changed.contains(w)).collect())
    }

    /// Whether it changes `weight`.
    pub(crate) fn changes(&self, weight: Weight) -> bool {
        let mut adapters = self.parts.iter().map(|(adapter, _)| adapter);
        adapters.any(|a| a.low_rank.contains_key(&weight) || a.whole.contains_key(&weight))
    }

    /// What it does to `weight`, which is `rows × cols` in the base.
    pub(crate) fn of(&self, weight: Weight, rows: usize, cols: usize) -> TensorRecipe {
        let pairs = || {
            self.parts.iter().filter_map(|(adapter, strength)| {
                let pair = adapter.low_rank.get(&weight)?;
                Some((pair, strength * pair.scale))
            })
        };
        let rank: usize = pairs().map(|(pair, _)| pair.rank).sum();
        let mut a = Vec::with_capacity(rank * cols);
        pairs().for_each(|(pair, _)| a.append(&mut pair.a.values(pair.rank)));
        // Side by side: a column of B for each row of A.
        let mut b = vec![0.0; rows * rank];
        let mut place = 0;
        for (pair, factor) in pairs() {
            let values = pair.b.values(rows);
            let of_rows = values.chunks_exact(pair.rank.max(1));
            for (to, from) in b.chunks_exact_mut(rank.max(1)).zip(of_rows) {
                let to = to.iter_mut().skip(place);
                to.zip(from).for_each(|(to, x)| *to = factor * x);
            }
            place += pair.rank;
        }
        let whole: Vec<_> = self
            .parts
            .iter()
            .filter_map(|(adapter, s)| Some((adapter.whole.get(&weight)?.clone(), *s)))
            .collect();
        TensorRecipe {
            weight,
            cols,
            keep: 1.0 - whole.iter().map(|(_, s)| s).sum::<f32>(),
            rank,
            a,
            b,
            whole,
        }
    }

    /// The blended vector `weight` of `model`.
    pub(crate) fn vector(&self, model: &Model, weight: Weight) -> Result<Vec<f32>> {
        let shape = model.weights().describe(weight)?.1;
        let len = shape.elements().unwrap_or(0);
        let recipe = self.of(weight, 1, len);
        let mut values = model.weights().vector(weight, len)?;
        for x in &mut values {
            *x = if recipe.keep == 0.0 {
                0.0
            } else {
                recipe.keep * *x
            };
        }
        for (tensors, strength) in &recipe.whole {
            for (x, t) in values.iter_mut().zip(tensors.vector(weight, len)?) {
                *x += strength * t;
            }
        }
        Ok(values)
    }
}

/// What a blend does to one matrix.
pub(crate) struct TensorRecipe {
    weight: Weight,
    cols: usize,
    /// What is left of the base.
    pub(crate) keep: f32,
    /// Ranks of all low-rank changes.
    pub(crate) rank: usize,
    /// `[rank, cols]`.
    pub(crate) a: Vec<f32>,
    /// `[rows, rank]`, strengths and scales included.
    b: Vec<f32>,
    whole: Vec<(Arc<dyn Weights>, f32)>,
}

impl TensorRecipe {
    /// Whether it has whole tensors.
    pub(crate) fn has_whole(&self) -> bool {
        !self.whole.is_empty()
    }

    /// B's rows `first .. first + count`.
    pub(crate) fn b(&self, first: usize, count: usize) -> &[f32] {
        let rows = first * self.rank..(first + count) * self.rank;
        self.b.get(rows).unwrap_or_default()
    }

    /// Rows `first .. first + count` of `Σ s T`; empty where there is no T.
    pub(crate) fn whole(&self, first: usize, count: usize) -> Result<Vec<f32>> {
        if self.whole.is_empty() {
            return Ok(Vec::new());
        }
        let mut sum = vec![0.0; count * self.cols];
        let mut row = vec![0.0; self.cols];
        for (tensors, strength) in &self.whole {
            tensors.with_rows(self.weight, first..first + count, &mut |tensor| {
                for (index, sum) in sum.chunks_exact_mut(self.cols.max(1)).enumerate() {
                    tensor.expand_row(index, &mut row);
                    for (sum, t) in sum.iter_mut().zip(&row) {
                        *sum += strength * t;
                    }
                }
                Ok(())
            })?;
        }
        Ok(sum)
    }

    /// Rows `first .. first + count` of B and of `Σ s T`, as [`ops::Blend::own`] has them: `width` a row, with T's part
    /// at its end.
    pub(crate) fn own(&self, first: usize, count: usize, width: usize) -> Result<Vec<f32>> {
        let whole = self.whole(first, count)?;
        let mut own = vec![0.0; count * width];
        for (row, own) in own.chunks_exact_mut(width.max(1)).enumerate() {
            for (to, from) in own.iter_mut().zip(self.b(first + row, 1)) {
                *to = *from;
            }
            let whole = whole.get(row * self.cols..).unwrap_or_default();
            let whole = whole.iter().take(self.cols);
            let start = width.saturating_sub(whole.len());
            for (to, from) in own.iter_mut().skip(start).zip(whole) {
                *to = *from;
            }
        }
        Ok(own)
    }

    /// Rows `first ..` of the blend of `base`, as many as `out` holds.
    pub(crate) fn rows(&self, base: &Matrix<'_>, first: usize, out: &mut [f32]) -> Result<()> {
        self.blended(base, first, first, out)
    }

    /// Row `index` of the blend of the matrix whose row that `row` is.
    pub(crate) fn row(&self, row: &Matrix<'_>, index: usize, out: &mut [f32]) -> Result<()> {
        self.blended(row, 0, index, out)
    }

    /// Rows `first ..` of the blend, which begin at row `at` of `base`.
    fn blended(&self, base: &Matrix<'_>, at: usize, first: usize, out: &mut [f32]) -> Result<()> {
        let count = out.len() / self.cols.max(1);
        let whole = self.whole(first, count)?;
        let change = Change {
            keep: self.keep,
            a: &self.a,
            b: self.b(first, count),
            whole: &whole,
        };
        ops::blend(base, at, &change, out).map_err(Error::from)
    }
}
