//! From the logical graph to a shorter list of steps, each one kernel's work.
//!
//! `linear` gives matrix products their epilogues, for batches of every shape. `decode` groups what follows from there
//! into the few large kernels of a step in which every sequence has one token; a group whose kernel does not suit (the
//! adapter's limits, weights in another format) is taken apart again.

mod decode;
mod linear;

use crate::{Graph, ShiftHalf, ValueId, Weight};
pub(crate) use decode::{
    GatedHeads, Group, Kernel, Mix6, MultiplyAdd, PairUps, Recurrence4, Recurrence6, Recurrence7,
    join_channel_mixes, join_norms, join_outputs,
};
use rwkv_kernels::ops::Function;

#[cfg(test)]
pub(crate) use decode::tests::graph as small_graph;

/// What one kernel does.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// A node as it stands, by its index.
    Node(usize),
    /// `y = function(W x + bias) + residual`.
    Linear(LinearStep),
    /// Several of these in one kernel.
    Group(Box<Group>),
}

/// A matrix product with its epilogue.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LinearStep {
    pub(crate) x: ValueId,
    pub(crate) weight: Weight,
    pub(crate) bias: Option<Weight>,
    pub(crate) function: Function,
    pub(crate) residual: Option<ValueId>,
    pub(crate) y: ValueId,
    /// A shift vector that waits for being stored until nobody reads the old one any more.
    pub(crate) stores: Option<StoredShift>,
}

/// A row that becomes a shift vector of the state.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct StoredShift {
    pub(crate) layer: usize,
    pub(crate) half: ShiftHalf,
    pub(crate) x: ValueId,
}

impl Step {
    /// The values that it reads.
    pub(crate) fn inputs(&self, graph: &Graph) -> Vec<ValueId> {
        match self {
            Self::Node(index) => graph.nodes()[*index].inputs.clone(),
            Self::Linear(step) => {
                let stored = step.stores.map(|stored| stored.x);
                let others = step.residual.into_iter().chain(stored);
                [step.x].into_iter().chain(others).collect()
            }
            Self::Group(group) => group.inputs.clone(),
        }
    }

    /// The values that it makes, those that lie in one buffer together.
    pub(crate) fn buffers(&self, graph: &Graph) -> Vec<Vec<ValueId>> {
        match self {
            Self::Group(group) => group.buffers(),
            _ => vec![self.outputs(graph)],
        }
    }

    /// The values that it makes.
    pub(crate) fn outputs(&self, graph: &Graph) -> Vec<ValueId> {
        match self {
            Self::Node(index) => graph.nodes()[*index].outputs.clone(),
            Self::Linear(step) => vec![step.y],
            Self::Group(group) => group.outputs.clone(),
        }
    }
}

/// The steps that compute `graph`, in an order that respects it.
pub(crate) fn fuse(graph: &Graph) -> Vec<Step> {
    linear::steps(graph)
}

/// The same for batches in which every span is one token.
pub(crate) fn fuse_decode(graph: &Graph) -> Vec<Step> {
    decode::group(graph, linear::steps(graph))
}
