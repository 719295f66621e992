//! Products that a sum follows: in the channel mix of RWKV-4 to RWKV-6 the receptance gates the value, which is then
//! added to the residual.

use super::{
    Kernel,
    grouping::{Found, Grouping},
};
use crate::{Op, ValueId};

/// `a ⊙ b + c`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct MultiplyAdd {
    pub(crate) a: ValueId,
    pub(crate) b: ValueId,
    pub(crate) c: ValueId,
}

impl Grouping<'_> {
    pub(super) fn gates(&mut self) {
        for index in 0..self.steps.len() {
            if let Some(found) = self.gate(index) {
                self.join_found(found);
            }
        }
    }

    fn gate(&self, index: usize) -> Option<Found> {
        let (Op::Multiply, [a, b], [product]) = self.node(index)? else {
            return None;
        };
        let (a, b) = (*a, *b);
        let at = self.only_reader(*product)?;
        let (Op::Add, terms, y) = self.node(at)? else {
            return None;
        };
        let c = terms.iter().copied().find(|t| t != product)?;
        Some(Found {
            kernel: Kernel::MultiplyAdd(MultiplyAdd { a, b, c }),
            members: vec![index, at],
            at,
            outputs: y.to_vec(),
        })
    }
}
