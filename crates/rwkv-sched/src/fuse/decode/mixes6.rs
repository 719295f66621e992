//! RWKV-6's mixes, of which each depends on the data: the second halves of the five low-rank pairs and what they weigh.

use super::{
    Kernel,
    grouping::{Found, Grouping},
    pairs::Pair,
};
use crate::{Lora, Mix, Op, ValueId, Weight};
use rwkv_kernels::ops::{Function, MIXES6};

/// What they read.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Mix6 {
    /// The normed row and the one before it.
    pub(crate) x: ValueId,
    pub(crate) previous: ValueId,
    pub(crate) pairs: [Pair; MIXES6],
    /// What the products of the pairs are added to, in the same order.
    pub(crate) vectors: Vec<Weight>,
}

impl Mix6 {
    /// The second matrices of the pairs.
    pub(crate) fn ups(&self) -> [Weight; MIXES6] {
        self.pairs.map(|pair| pair.up)
    }
}

/// Those of version 6.
const MIXES: [Mix; MIXES6] = [Mix::Decay, Mix::Key, Mix::Value, Mix::Receptance, Mix::Gate];

impl Grouping<'_> {
    pub(super) fn mixes6(&mut self) {
        for index in 0..self.steps.len() {
            if let Some(found) = self.mix6(index) {
                self.join_found(found);
            }
        }
    }

    /// The mixes of a row and the one before it, which the step at `index` finds.
    fn mix6(&self, index: usize) -> Option<Found> {
        let (Op::Previous { .. }, [x], [previous]) = self.node(index)? else {
            return None;
        };
        // Steps, pair, bias and result of each.
        let find = |mix: Mix| {
            self.readers.get(previous)?.iter().find_map(|lerp| {
                let (Op::Lerp, [a, b, t], [y]) = self.node(*lerp)? else {
                    return None;
                };
                let found = self.pair(*t, Lora::Mix(mix), Function::Identity)?;
                let right = (a, b) == (x, previous);
                right.then_some((*lerp, found.at, found.pair, found.bias?, *y))
            })
        };
        let found: Vec<_> = MIXES.into_iter().map_while(find).collect();
        let pairs: Vec<Pair> = found.iter().map(|f| f.2).collect();
        let what = Mix6 {
            x: *x,
            previous: *previous,
            pairs: pairs.try_into().ok()?,
            vectors: found.iter().map(|f| f.3).collect(),
        };
        Some(Found {
            kernel: Kernel::Mix6(Box::new(what)),
            members: found.iter().flat_map(|f| [f.0, f.1]).collect(),
            at: found.iter().map(|f| f.0).max()?,
            outputs: found.iter().map(|f| f.4).collect(),
        })
    }
}
