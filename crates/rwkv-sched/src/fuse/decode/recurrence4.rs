//! RWKV-4's recurrence with the receptance that its result is multiplied by.

use super::{
    Kernel,
    grouping::{Found, Grouping},
};
use crate::{Op, ValueId, Weight};

/// What it reads.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Recurrence4 {
    pub(crate) layer: usize,
    pub(crate) k: ValueId,
    pub(crate) v: ValueId,
    /// The receptance after its function.
    pub(crate) gate: ValueId,
    pub(crate) decay: Weight,
    pub(crate) bonus: Weight,
}

impl Grouping<'_> {
    /// What stands around the recurrence at `index`.
    pub(super) fn recurrence4(&self, index: usize) -> Option<Found> {
        let (
            Op::Wkv4 {
                layer,
                decay,
                bonus,
            },
            [k, v],
            [average],
        ) = self.node(index)?
        else {
            return None;
        };
        let last = self.only_reader(*average)?;
        let (Op::Multiply, factors, y) = self.node(last)? else {
            return None;
        };
        let gate = factors.iter().copied().find(|f| f != average)?;
        let what = Recurrence4 {
            layer: *layer,
            k: *k,
            v: *v,
            gate,
            decay: *decay,
            bonus: *bonus,
        };
        Some(Found {
            kernel: Kernel::Recurrence4(what),
            members: vec![index, last],
            at: last,
            outputs: y.to_vec(),
        })
    }
}
