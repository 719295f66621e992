//! How many bytes of weights a step reads, which is what decoding costs at best.

use crate::{Domain, Graph, Op, Weight};
use std::{collections::HashSet, iter::Sum};

/// Bytes of weights that a step reads, each weight once, as they are stored where the model runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WeightReads {
    /// Whatever the step's tokens.
    pub step: u64,
    /// For each token: its rows of tables, such as the embedding.
    pub token: u64,
    /// Where any logits are wanted: the head.
    pub outputs: u64,
}

impl WeightReads {
    /// Bytes of a step of so many tokens, with logits or without.
    pub fn bytes(self, tokens: u64, outputs: bool) -> u64 {
        let outputs = if outputs { self.outputs } else { 0 };
        self.step + outputs + tokens.saturating_mul(self.token)
    }

    /// Adds up `graph`, from the bytes of a matrix and of an operation's vectors; tables have a row a token of the
    /// vocabulary.
    pub(crate) fn of(
        graph: &Graph,
        vocab: usize,
        matrix: &dyn Fn(Weight) -> u64,
        vectors: &dyn Fn(&Op) -> u64,
    ) -> Self {
        let mut reads = Self::default();
        let mut seen = HashSet::new();
        for node in graph.nodes() {
            let wanted_only = node
                .outputs
                .iter()
                .all(|id| graph.value(*id).domain == Domain::Outputs);
            let total = if wanted_only {
                &mut reads.outputs
            } else {
                &mut reads.step
            };
            *total += vectors(&node.op);
            match node.op {
                Op::Embed { table } => {
                    reads.token += matrix(table) / vocab.max(1) as u64;
                }
                _ => {
                    if let Some(weight) = node.op.matrix()
                        && seen.insert(weight)
                    {
                        *total += matrix(weight);
                    }
                }
            }
        }
        reads
    }
}

impl Sum for WeightReads {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |a, b| Self {
            step: a.step + b.step,
            token: a.token + b.token,
            outputs: a.outputs + b.outputs,
        })
    }
}
