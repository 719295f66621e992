//! The few kernels of a step in which every sequence has one token.
//!
//! A layer of version 7 becomes seven (docs/ARCHITECTURE.md): norm and shift; receptance, key, value and the first halves
//! of the low-rank pairs; the recurrence with everything around it; the output; norm and shift; the channel mix's key; its
//! value. With one sequence it is five (`one_token`): norms go with the products after them; or three, where the channel
//! mix can be one, and the recurrence and the output. One of versions 4 and 5 becomes eight, since its channel mix has a receptance too, and version 6 takes two more for the mixes that depend on
//! the data.

mod gates;
mod grouping;
mod mixes6;
mod norms;
mod one_token;
mod pairs;
mod projections;
mod recurrence4;
mod recurrence6;
mod recurrence7;
#[cfg(test)]
pub(crate) mod tests;

use super::{LinearStep, Step};
use crate::{Graph, Node, Op, ValueId, Weight};
pub(crate) use gates::MultiplyAdd;
use grouping::Grouping;
pub(crate) use mixes6::Mix6;
pub(crate) use one_token::{join_channel_mixes, join_norms, join_outputs};
pub(crate) use recurrence4::Recurrence4;
pub(crate) use recurrence6::Recurrence6;
pub(crate) use recurrence7::{GatedHeads, PairUps, Recurrence7};

/// Steps that one kernel does together.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Group {
    pub(crate) kernel: Kernel,
    /// What it stands for, in an order that respects the graph.
    pub(crate) parts: Vec<Step>,
    /// The values that it reads, and those that others read.
    pub(crate) inputs: Vec<ValueId>,
    pub(crate) outputs: Vec<ValueId>,
}

/// Which kernel.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Kernel {
    /// The embedding and the norm after it: two nodes.
    EmbedNorm,
    /// A norm and a token shift: two nodes, or three where it is the row before and one mix. Its results are the mixes,
    /// then the normed row and the one before it, as far as others read them.
    NormShift,
    /// RWKV-6's five mixes that depend on the data, with the second halves of their pairs.
    Mix6(Box<Mix6>),
    /// Matrix products of the results of one token shift.
    Project,
    /// RWKV-4's recurrence and its gate.
    Recurrence4(Recurrence4),
    /// The recurrence of RWKV-5 and RWKV-6 with the decay, the norm and the gate.
    Recurrence6(Box<Recurrence6>),
    /// RWKV-7's recurrence with the second halves of the low-rank pairs, its keys, the norm, the bonus and the gate.
    Recurrence7(Box<Recurrence7>),
    /// One token's [`Recurrence7`](Self::Recurrence7) and the output projection, which is added to `x`, the residual stream
    /// and one of its inputs, where it lies.
    RecurrenceOutput7 { what: Box<Recurrence7>, x: ValueId },
    /// The second halves of RWKV-7's low-rank pairs and what follows them where the recurrence is taken apart.
    PairUps(Box<PairUps>),
    /// The end of RWKV-7's recurrence where only that is one kernel, and only a product reads it.
    GatedHeads(Box<GatedHeads>),
    /// A norm, a token shift and the products of its mixes, of one token; its last result is the normed row, or after it a
    /// value that is set to zero for a [`ChannelMix`](Self::ChannelMix) to add to.
    NormProjects { clears: Option<ValueId> },
    /// One token's channel mix, from its norm to the residual, with its shift vector: adds to `y`, which an earlier group
    /// has set to zero, and which is one of its inputs therefore, after the residual stream.
    ChannelMix { y: ValueId },
    /// A product element by element and a sum: two nodes.
    MultiplyAdd(MultiplyAdd),
}

impl Group {
    /// The values that lie in one buffer each.
    pub(crate) fn buffers(&self) -> Vec<Vec<ValueId>> {
        if self.outputs.is_empty() {
            return Vec::new();
        }
        // What is set to zero is added to while the others are read.
        if let Kernel::NormProjects { clears: Some(y) } = &self.kernel {
            let others = self.outputs.iter().copied().filter(|id| id != y);
            return vec![others.collect(), vec![*y]];
        }
        vec![self.outputs.clone()]
    }

    /// The nodes that stand in it as they are.
    pub(crate) fn nodes<'g>(&self, graph: &'g Graph) -> impl Iterator<Item = &'g Node> {
        let index = |step: &Step| match step {
            Step::Node(index) => Some(*index),
            _ => None,
        };
        let nodes: Vec<_> = self.parts.iter().filter_map(index).collect();
        nodes
            .into_iter()
            .filter_map(|index| graph.nodes().get(index))
    }

    /// The products that it has.
    pub(crate) fn products(&self) -> impl Iterator<Item = &LinearStep> {
        self.parts.iter().filter_map(|part| match part {
            Step::Linear(step) => Some(step),
            _ => None,
        })
    }

    /// The vectors that its kernel reads one after the other, if it does.
    pub(crate) fn vectors(&self, graph: &Graph) -> Option<Vec<Weight>> {
        match &self.kernel {
            Kernel::Mix6(what) => Some(what.vectors.clone()),
            Kernel::Recurrence6(what) => Some(what.vectors.clone()),
            Kernel::Recurrence7(what) | Kernel::RecurrenceOutput7 { what, .. } => {
                Some(what.vectors.clone())
            }
            Kernel::NormShift | Kernel::NormProjects { .. } | Kernel::ChannelMix { .. } => {
                Some(self.nodes(graph).flat_map(|n| n.op.vectors()).collect())
            }
            _ => None,
        }
    }

    /// The second halves of low-rank pairs that its kernel reads from a copy in which they lie one after the other.
    pub(crate) fn packed_pairs(&self) -> Option<Vec<Weight>> {
        match &self.kernel {
            Kernel::Recurrence6(what) => what.decay.map(|pair| vec![pair.up]),
            Kernel::Recurrence7(what) | Kernel::RecurrenceOutput7 { what, .. } => {
                Some(what.pairs().map(|pair| pair.up).collect())
            }
            Kernel::PairUps(what) => Some(what.ends.iter().map(|end| end.pair.up).collect()),
            _ => None,
        }
    }
}

/// Groups `steps`, whose order respects `graph`.
pub(super) fn group(graph: &Graph, steps: Vec<Step>) -> Vec<Step> {
    let mut grouping = Grouping::new(graph, steps);
    grouping.recurrences();
    grouping.mixes6();
    grouping.norms();
    grouping.projections();
    grouping.gates();
    grouping.finish()
}

impl Grouping<'_> {
    fn recurrences(&mut self) {
        for index in 0..self.steps.len() {
            let found = match self.node(index) {
                Some((Op::Wkv4 { .. }, ..)) => self.recurrence4(index),
                Some((Op::Wkv6 { .. }, ..)) => self.recurrence6(index),
                Some((Op::Wkv7 { .. }, ..)) => self.recurrence7(index),
                _ => None,
            };
            if let Some(found) = found {
                self.join_found(found);
            }
        }
    }
}
