//! Into how many micro-batches a batch is cut.

use crate::Batch;

/// What a step costs beside its tokens, in tokens, about: at so many a GPU is busy for twice as long as its kernels take to
/// begin and its weights to be read.
const OVERHEAD: usize = 128;

/// Into how many micro-batches a batch is best cut that goes through `stages` stages, each of which takes `most` tokens at a
/// time; prompts, or one token a sequence.
///
/// With k micro-batches of T tokens in all, the last stage is done after k + s − 1 turns of T / k tokens and an overhead a:
/// (k + s − 1)(T / k + a) is least for k² = (s − 1) T / a. Steps of one token a sequence follow each other without end, so
/// that each stage has one to work on.
pub(super) fn parts(batch: &Batch, stages: usize, most: usize) -> usize {
    let tokens = batch.tokens();
    let single = tokens == batch.spans.len();
    let best = if single {
        stages
    } else {
        ((stages.saturating_sub(1)) * tokens / OVERHEAD).isqrt()
    };
    best.clamp(1, tokens.max(1))
        .max(tokens.div_ceil(most.max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BatchSpan, SlotId, Wanted};
    use proptest::prelude::*;

    fn batch(lengths: &[usize]) -> Batch {
        let span = |(slot, length): (u32, &usize)| BatchSpan {
            slot: SlotId(slot),
            tokens: (0..).map(|n| n + 100 * slot).take(*length).collect(),
            wanted: [Wanted::None, Wanted::Last, Wanted::All][slot as usize % 3],
        };
        Batch {
            spans: (0..).zip(lengths).map(span).collect(),
        }
    }

    proptest! {
        /// Every token once and in order, as many logits, no micro-batch larger than another by more than the last is smaller.
        #[test]
        fn nothing_is_lost(lengths in prop::collection::vec(1..40usize, 1..9), parts in 1..20usize) {
            let whole = batch(&lengths);
            let cut = whole.cut(parts);
            prop_assert!(cut.len() <= parts);
            let size = whole.tokens().div_ceil(parts);
            prop_assert!(cut.iter().rev().skip(1).all(|part| part.tokens() == size));
            let outputs = |batch: &Batch| batch.tables(1000, 100).map(|t| t.outputs.len()).ok();
            let made: Option<usize> = cut.iter().map(outputs).sum();
            prop_assert_eq!(made, outputs(&whole));
            for span in &whole.spans {
                let parts = cut.iter().flat_map(|part| &part.spans).filter(|s| s.slot == span.slot);
                let parts: Vec<&BatchSpan> = parts.collect();
                let tokens: Vec<u32> = parts.iter().flat_map(|s| s.tokens.clone()).collect();
                prop_assert_eq!(&tokens, &span.tokens);
                prop_assert_eq!(parts.last().map(|s| s.wanted), Some(span.wanted));
                let last_too_early = parts.iter().rev().skip(1).any(|s| s.wanted == Wanted::Last);
                prop_assert!(!last_too_early);
            }
        }
    }

    #[test]
    fn how_many() {
        #[track_caller]
        fn check(lengths: &[usize], stages: usize, most: usize, want: usize) {
            assert_eq!(parts(&batch(lengths), stages, most), want);
        }
        // Of one stage only what it cannot take at once.
        check(&[2048], 1, 2048, 1);
        check(&[2049], 1, 2048, 2);
        // One token a sequence.
        check(&[1; 256], 2, 2048, 2);
        check(&[1; 3], 4, 2048, 3);
        check(&[1], 2, 2048, 1);
        // Prompts.
        check(&[100], 2, 2048, 1);
        check(&[2048], 2, 2048, 4);
        check(&[2048; 16], 2, 2048, 16);
        check(&[2048; 64], 2, 2048, 64);
        check(&[512], 2, 64, 8);
    }
}
