//! The second halves of low-rank pairs.

use super::grouping::Grouping;
use crate::{BlockWeight as B, Lora, ValueId, Weight};
use rwkv_kernels::ops::Function;

/// The second half of a low-rank pair.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Pair {
    pub(crate) hidden: ValueId,
    pub(crate) up: Weight,
}

/// A pair that makes a value, the step of its second half, and the bias that this adds.
pub(super) struct FoundPair {
    pub(super) pair: Pair,
    pub(super) at: usize,
    pub(super) bias: Option<Weight>,
}

impl Grouping<'_> {
    /// The pair `lora`, if it makes `y = function(up · hidden + bias)`.
    pub(super) fn pair(&self, y: ValueId, lora: Lora, function: Function) -> Option<FoundPair> {
        let at = *self.maker.get(&y)?;
        let step = self.linear(at)?;
        let fits = matches!(step.weight, Weight::Block(_, B::LoraUp(of)) if of == lora)
            && step.function == function
            && step.residual.is_none();
        let pair = Pair {
            hidden: step.x,
            up: step.weight,
        };
        let bias = step.bias;
        fits.then_some(FoundPair { pair, at, bias })
    }
}
