//! The shape of a batch, and the one whose plan it runs by.
//!
//! Batches of many sequences hardly ever have a shape twice, and resolving one takes as long as a step of a small model. So they are
//! padded to one of few shapes: rows of activations that nobody reads, spans without tokens that are in no slot. Weights are
//! never padded, and no state is read or written for what is not there.

use crate::{BatchShape, Domain, batch::Tables};
use rwkv_kernels::{Span, Token};

/// The slot of no sequence: kernels leave alone what is in none of their pages.
const NOWHERE: u32 = u32::MAX;

/// Up to so many tokens there are four numbers between a power of two and the next one, then eight: with few tokens, what a step
/// reads does not depend on them.
const FEW: usize = 128;

/// The next number of tokens that batches are padded to: itself up to 8, up to a fifth more till 128, up to an eighth more then.
fn rung(tokens: usize) -> usize {
    let kept = if tokens <= FEW { 3 } else { 4 };
    let bits = usize::BITS - tokens.leading_zeros();
    let step = 1 << bits.saturating_sub(kept);
    tokens.checked_next_multiple_of(step).unwrap_or(tokens)
}

impl BatchShape {
    /// The shape that a batch is padded to: single if and only if it is, and all of its outputs are wanted if and only if they are.
    pub(super) fn padded(self) -> Self {
        let tokens = rung(self.tokens);
        // Of fewer there are powers of two, where those are still fewer.
        let fewer = |count: usize| match count {
            0 => 0,
            all if all == self.tokens => tokens,
            few => few
                .checked_next_power_of_two()
                .filter(|padded| *padded < tokens)
                .unwrap_or(few),
        };
        Self {
            tokens,
            spans: fewer(self.spans),
            outputs: fewer(self.outputs),
        }
    }

    /// Rows of a value.
    pub(super) fn rows(self, domain: Domain) -> usize {
        match domain {
            Domain::Tokens => self.tokens,
            Domain::Outputs => self.outputs,
        }
    }

    /// Tables of this shape from those of a batch that is padded to it.
    pub(super) fn pad(self, tables: &Tables) -> Tables {
        let mut padded = tables.clone();
        let last = |count: usize| u32::try_from(count.saturating_sub(1)).unwrap_or(u32::MAX);
        let behind = Token {
            id: 0,
            span: last(tables.spans.len()),
        };
        padded.tokens.resize(self.tokens, behind);
        let none = Span {
            start: last(tables.tokens.len()),
            length: 0,
            slot: NOWHERE,
            padding: 0,
        };
        padded.spans.resize(self.spans, none);
        padded.outputs.resize(self.outputs, 0);
        padded
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    #[test]
    fn rungs() {
        let up_to = |most: usize| (1..=most).map(rung).collect::<HashSet<_>>().len();
        assert_eq!(
            (1..=8).map(rung).collect::<Vec<_>>(),
            (1..=8).collect::<Vec<_>>()
        );
        assert_eq!([9, 17, 33, 129, 2049].map(rung), [10, 20, 40, 144, 2304]);
        assert_eq!(
            [32, 512, 2048, usize::MAX].map(rung),
            [32, 512, 2048, usize::MAX]
        );
        assert_eq!([up_to(32), up_to(256), up_to(2048)], [16, 32, 56]);
    }

    proptest! {
        #[test]
        fn padding_keeps_what_a_batch_is(
            tokens in 1usize..5000,
            spans in 1usize..300,
            outputs in 0usize..5000,
        ) {
            let (spans, outputs) = (spans.min(tokens), outputs.min(tokens));
            for (spans, outputs) in [(spans, outputs), (tokens, outputs), (spans, tokens), (tokens, tokens)] {
                let shape = BatchShape { tokens, spans, outputs };
                let padded = shape.padded();
                prop_assert!(padded.tokens >= tokens && padded.tokens * 4 <= tokens * 5);
                prop_assert!(padded.spans >= spans && padded.spans < 2 * spans.max(1));
                prop_assert!(padded.outputs >= outputs && padded.outputs < 2 * outputs.max(1));
                prop_assert_eq!(padded.is_single(), shape.is_single());
                prop_assert_eq!(padded.wants_all(), shape.wants_all());
                prop_assert_eq!(padded.outputs == 0, outputs == 0);
                prop_assert_eq!(padded.padded(), padded);
            }
        }
    }
}
