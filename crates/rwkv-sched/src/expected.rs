//! What an executor is told that it will be asked for.

use crate::BatchShape;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// The shape of the batch that an executor will likely be asked for next: whoever decides about steps tells it, also while a step runs.
/// Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    /// Tokens, spans and outputs; 0 is nothing.
    packed: Arc<AtomicU64>,
}

/// Bits of spans and of outputs; tokens have the others.
const BITS: u32 = 20;
const MASK: u64 = (1 << BITS) - 1;

impl Expected {
    /// From now on `shape` is expected, and nothing else.
    pub fn tell(&self, shape: Option<BatchShape>) {
        let packed = shape.and_then(pack).unwrap_or(0);
        self.packed.store(packed, Ordering::Relaxed);
    }

    /// What is expected, if that was not asked before.
    pub(crate) fn take(&self) -> Option<BatchShape> {
        // Most of the time there is nothing, and reading costs less.
        if self.packed.load(Ordering::Relaxed) == 0 {
            return None;
        }
        unpack(self.packed.swap(0, Ordering::Relaxed))
    }
}

/// Nothing for a batch so large that it need not be told in advance.
fn pack(shape: BatchShape) -> Option<u64> {
    let field = |count: usize| u64::try_from(count).ok().filter(|count| *count <= MASK);
    let [tokens, spans, outputs] = [shape.tokens, shape.spans, shape.outputs].map(field);
    Some(tokens? << (2 * BITS) | spans? << BITS | outputs?)
}

fn unpack(packed: u64) -> Option<BatchShape> {
    let field = |at: u32| usize::try_from(packed >> (at * BITS) & MASK).ok();
    let shape = BatchShape {
        tokens: field(2)?,
        spans: field(1)?,
        outputs: field(0)?,
    };
    (shape.tokens > 0).then_some(shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn told_once() {
        let expected = Expected::default();
        let other = expected.clone();
        assert_eq!(other.take(), None);
        for (tokens, spans, outputs) in [(1, 1, 1), (2048, 1, 0), (MASK, 17, 3)] {
            let count = |n: u64| usize::try_from(n).unwrap_or(0);
            let shape = BatchShape {
                tokens: count(tokens),
                spans,
                outputs,
            };
            expected.tell(Some(shape));
            assert_eq!((other.take(), other.take()), (Some(shape), None));
        }
        let large = BatchShape {
            tokens: 1 << 30,
            spans: 1,
            outputs: 0,
        };
        for nothing in [Some(large), None] {
            expected.tell(Some(BatchShape {
                tokens: 5,
                spans: 1,
                outputs: 0,
            }));
            expected.tell(nothing);
            assert_eq!(other.take(), None);
        }
    }
}
