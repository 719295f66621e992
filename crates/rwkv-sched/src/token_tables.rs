//! Tables with a row for each token, and where they lie: the embedding, and RWKV-7a's matrices of tokens.
//!
//! A step reads a row of them for each of its tokens, and no more. So they need not be on the GPU: what the graph of an
//! executor that leaves some where they are has instead is an input for each, which is written before the step.

use crate::{
    Error, Model, Result, ValueId, Weight,
    adapter::{Recipe, TensorRecipe},
    part::{Carried, Rows},
};
use rayon::prelude::*;
use std::collections::{HashMap, HashSet};

/// Where a GPU's model has its tables of tokens: the embedding, and the matrices that RWKV-7a has for each token, which
/// are several times as large as all else.
///
/// From tables on the host the rows of a step's tokens go up before it, as the file has them, whatever
/// [`quantization`](crate::LoadOptions::quantization) says. Prompts lose little by that. Decoding cannot run ahead of the
/// host then, which has to know a token before it can bring its rows: each step waits for the one before to be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TokenTables {
    /// On the GPU, as long as there is room for the whole model: else first RWKV-7a's matrices stay on the host, and if
    /// that does not suffice the embedding too. Where it is not known how much room there is, RWKV-7a's stay on the host
    /// if they take more than 1 GiB.
    #[default]
    Auto,
    /// On the GPU.
    Device,
    /// On the host, where they lie.
    Host,
}

/// Bytes of tables that go to a GPU of which it is not known what it has.
const UNASKED: u64 = 1 << 30;

impl TokenTables {
    /// `model` as a GPU may have it, in the order of preference.
    pub(crate) fn placed(self, model: &Model) -> Vec<Model> {
        let mut placed = vec![self.first(model)];
        if self == Self::Auto {
            let all = tables(model);
            let fewer = [matrices(&all), all].into_iter();
            let fewer = fewer.filter(|left| !left.is_empty());
            placed.extend(fewer.map(|left| model.with_host_tables(&left)));
        }
        placed
    }

    /// The same where nobody knows what fits.
    pub(crate) fn unasked(self, model: &Model) -> Result<Model> {
        let matrices = matrices(&tables(model));
        if self == Self::Auto && bytes(model, &matrices)? > UNASKED {
            return Ok(model.with_host_tables(&matrices));
        }
        Ok(self.first(model))
    }

    /// The same where there is room for it.
    pub(crate) fn first(self, model: &Model) -> Model {
        match self {
            Self::Auto | Self::Device => model.clone(),
            Self::Host => model.with_host_tables(&tables(model)),
        }
    }
}

/// The tables that the graph of `model` looks up.
fn tables(model: &Model) -> HashSet<Weight> {
    model.graph().lookups().map(|(_, table)| table).collect()
}

/// Those that are not the embedding.
fn matrices(tables: &HashSet<Weight>) -> HashSet<Weight> {
    let all = tables.iter().copied();
    all.filter(|table| *table != Weight::Embedding).collect()
}

/// Bytes of `tables` where they lie.
fn bytes(model: &Model, tables: &HashSet<Weight>) -> Result<u64> {
    let mut sum = 0u64;
    for table in tables {
        let described = model.weights().describe(*table)?;
        sum = sum.saturating_add(crate::quantization::packed_bytes(described));
    }
    Ok(sum)
}

/// Bytes of the tables that `model` leaves on the host, as they lie there.
///
/// # Errors
/// [`Error::Weight`] for one that cannot be described.
pub(crate) fn host_bytes(model: &Model) -> Result<u64> {
    let tables = model.host_tables().iter().map(|(_, table)| *table);
    bytes(model, &tables.collect())
}

/// The tables of a model that stay on the host, with what a blend of adapters makes of their rows.
#[derive(Default)]
pub(crate) struct HostTables {
    tables: Vec<(ValueId, Weight)>,
    changed: HashMap<Weight, TensorRecipe>,
}

impl HostTables {
    /// Those of `model`, without adapters.
    pub(crate) fn of(model: &Model) -> Self {
        Self {
            tables: model.host_tables().to_vec(),
            changed: HashMap::new(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    /// From here on rows are those of a blend.
    ///
    /// # Errors
    /// [`Error::Weight`] for a table that cannot be described.
    pub(crate) fn set_blend(&mut self, model: &Model, recipe: &Recipe) -> Result<()> {
        let mut changed = HashMap::new();
        for (_, table) in &self.tables {
            if recipe.changes(*table) {
                let shape = model.weights().describe(*table)?.1;
                changed.insert(*table, recipe.of(*table, shape.rows.0, shape.cols.0));
            }
        }
        self.changed = changed;
        Ok(())
    }

    /// Adds the rows of `tokens` of every table to `carried`.
    ///
    /// # Errors
    /// [`Error::Weight`] for a table that cannot be read.
    pub(crate) fn look_up(
        &self,
        model: &Model,
        tokens: &[u32],
        carried: &mut Carried,
    ) -> Result<()> {
        for (id, table) in &self.tables {
            let width = model.graph().value(*id).width;
            let mut rows = vec![0.0; tokens.len() * width];
            let looked_up = rows
                .par_chunks_mut(width.max(1))
                .with_min_len(SHARE / width.max(1) + 1)
                .zip(tokens);
            looked_up.try_for_each(|(row, token)| self.row(model, *table, *token, row))?;
            carried.insert(*id, Rows::Own(rows));
        }
        Ok(())
    }

    fn row(&self, model: &Model, table: Weight, token: u32, row: &mut [f32]) -> Result<()> {
        let index = token as usize;
        model
            .weights()
            .with_rows(table, index..index + 1, &mut |found| {
                match self.changed.get(&table) {
                    None => found.expand_row(0, row),
                    Some(recipe) => recipe.row(found, index, row)?,
                }
                Ok::<_, Error>(())
            })
    }
}

/// Elements that make a thread's share worth its handing over.
const SHARE: usize = 1 << 14;
