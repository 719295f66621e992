//! How much device memory a model will take, told before it is loaded.

use super::{
    CHUNK,
    resident::{groups, resident_format, vector_groups},
};
use crate::{
    Chosen, Domain, LoadOptions, Model, Result, SparseWeights, StateLayout, Value, Weight, Weights,
    WeightsDType,
    fuse::{Group, fuse_decode},
};
use rwkv_kernels::{Format, GpuCsr};
use std::collections::{HashMap, HashSet};

/// Bytes of device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// The tensors, as they will lie there.
    pub weights: u64,
    /// One sequence's state.
    pub state: u64,
    /// Activations of a chunk of a prompt, about: the most that the graph has alive at a time, before fusion.
    pub activations: u64,
}

impl DeviceMemory {
    /// What `model` takes with one sequence.
    ///
    /// # Errors
    /// [`crate::Error::Weight`] for a tensor that cannot be read, [`crate::Error::Quantization`] for layers that the
    /// model does not have.
    pub fn estimate(model: &Model, options: &LoadOptions) -> Result<Self> {
        let chosen = match &options.quantization {
            Some(quantization) => quantization.choose_all(model)?,
            None => HashMap::new(),
        };
        Self::with_chosen(model, &chosen, options.weights_dtype)
    }

    /// The same where it is known what the matrices become ([`Quantization::choose_all`]): choosing may take longer than
    /// loading.
    ///
    /// # Errors
    /// [`crate::Error::Weight`] for a tensor that cannot be read.
    ///
    /// [`Quantization::choose_all`]: crate::Quantization::choose_all
    pub fn with_chosen(
        model: &Model,
        chosen: &HashMap<Weight, Chosen>,
        weights_dtype: WeightsDType,
    ) -> Result<Self> {
        Ok(Self {
            weights: weights(model, chosen, weights_dtype)?,
            state: StateLayout::of(model.config()).bytes(),
            activations: activations(model),
        })
    }

    /// All of it.
    pub fn total(self) -> u64 {
        self.weights + self.state + self.activations
    }
}

fn weights(model: &Model, chosen: &HashMap<Weight, Chosen>, dtype: WeightsDType) -> Result<u64> {
    let weights = model.weights();
    let matrix = |weight: Weight| -> Result<(Format, u64)> {
        let shape = weights.describe(weight)?.1;
        let format = resident_format(weights, weight, chosen.get(&weight).copied(), dtype)?;
        let row: usize = match format.gpu_layout() {
            Some(layout) => layout.row_bytes(shape.cols.0).iter().sum(),
            None => format.row_bytes(shape.cols.0).unwrap_or(0),
        };
        Ok((format, row as u64 * shape.rows.0 as u64))
    };
    let mut seen = HashSet::new();
    let mut bytes = 0;
    for weight in model.graph().nodes().iter().filter_map(|n| n.op.matrix()) {
        if !seen.insert(weight) {
            continue;
        }
        // Zeros in a dense matrix are found only while it is loaded.
        bytes += match stored_entries(weights, weight, chosen.get(&weight)) {
            Some(entries) => GpuCsr::about(weights.describe(weight)?.1, entries),
            None => matrix(weight)?.1,
        };
    }
    let steps = fuse_decode(model.graph());
    for weight in vector_groups(model, &steps).into_iter().flatten() {
        let shape = weights.describe(weight)?.1;
        bytes += shape.elements().unwrap_or(0) as u64 * 4;
    }
    // The second halves of low-rank pairs lie there once more, if they are of one format.
    for ups in groups(&steps).filter_map(Group::packed_pairs) {
        let all = ups.into_iter().map(matrix).collect::<Result<Vec<_>>>()?;
        let formats: HashSet<Format> = all.iter().map(|(format, _)| *format).collect();
        if formats.len() == 1 && formats.is_subset(&HashSet::from([Format::F16, Format::F32])) {
            bytes += all.iter().map(|(_, bytes)| bytes).sum::<u64>();
        }
    }
    Ok(bytes)
}

/// Entries of a matrix that will lie as the compressed rows that its file has.
fn stored_entries(weights: &dyn Weights, weight: Weight, chosen: Option<&Chosen>) -> Option<u64> {
    let shape = weights.describe(weight).ok()?.1;
    let entries = weights.entries(weight)?;
    let most = SparseWeights::default().below(weight)? * shape.elements()? as f64;
    let half = chosen.is_none_or(|c| c.format == Format::F16);
    (half && (entries as f64) < most).then_some(entries)
}

fn activations(model: &Model) -> u64 {
    let graph = model.graph();
    let bytes = |value: Value| {
        let rows = match value.domain {
            Domain::Tokens => CHUNK,
            Domain::Outputs => 1,
        };
        (rows * value.width.next_multiple_of(8) * 4) as u64
    };
    let mut uses = graph.uses();
    let (mut alive, mut most) = (0u64, 0u64);
    for node in graph.nodes() {
        for id in &node.outputs {
            alive += bytes(graph.value(*id));
        }
        most = most.max(alive);
        for id in &node.inputs {
            if let Some(left) = uses.get_mut(id.0) {
                *left = left.saturating_sub(1);
                if *left == 0 {
                    alive = alive.saturating_sub(bytes(graph.value(*id)));
                }
            }
        }
    }
    most
}
