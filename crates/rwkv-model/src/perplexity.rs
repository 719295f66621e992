//! How well a model predicts a text: nats a token and a byte, and the perplexity.

use crate::{Error, Result, Tokenizer};
use rwkv_sched::{Batch, BatchSpan, Executor, SlotId, TokenId, Wanted};
use std::ops::{ControlFlow, Range};

/// Which predictions count. The text is cut into chunks of `context` tokens, and each is read from an empty state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    /// Every position: each token of a chunk predicts the one after it, the last one the first of the next chunk. So
    /// every token but the text's first counts once. The last chunk may be shorter.
    #[default]
    All,
    /// What llama.cpp's `llama-perplexity` counts: in each whole chunk, the predictions after its tokens `context / 2`
    /// to `context − 2`.
    Llama,
}

/// What to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PerplexityOptions {
    /// Tokens a chunk, at least 2.
    pub context: usize,
    /// Chunks at most.
    pub chunks: Option<usize>,
    /// Which predictions count.
    pub method: Method,
}

impl Default for PerplexityOptions {
    fn default() -> Self {
        Self {
            context: 512,
            chunks: None,
            method: Method::All,
        }
    }
}

/// The loss over the predictions that count.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Perplexity {
    /// Chunks read.
    pub chunks: usize,
    /// Tokens that were predicted.
    pub tokens: u64,
    /// Bytes of those tokens.
    pub bytes: u64,
    /// The sum of their negative log likelihoods.
    pub nats: f64,
    /// The sum of the squares of the same.
    squares: f64,
}

impl Perplexity {
    /// Mean negative log likelihood of a token.
    pub fn nats_per_token(&self) -> f64 {
        self.nats / self.tokens as f64
    }

    /// Negative log likelihood of a byte: comparable between tokenizers.
    pub fn nats_per_byte(&self) -> f64 {
        self.nats / self.bytes as f64
    }

    /// The exponential of [`nats_per_token`](Self::nats_per_token).
    pub fn perplexity(&self) -> f64 {
        self.nats_per_token().exp()
    }

    /// The standard error of [`perplexity`](Self::perplexity), as if tokens were independent.
    pub fn standard_error(&self) -> f64 {
        let mean = self.nats_per_token();
        let variance = (self.squares / self.tokens as f64 - mean * mean).max(0.0);
        (variance / (self.tokens.max(2) - 1) as f64).sqrt() * self.perplexity()
    }

    fn count(&mut self, nats: f64, bytes: usize) {
        self.tokens += 1;
        self.bytes += bytes as u64;
        self.nats += nats;
        self.squares += nats * nats;
    }
}

/// Bytes of logits that a step may make.
const LOGITS: usize = 64 << 20;

/// A chunk: where its tokens are, and which of its positions count.
struct Chunk {
    tokens: Range<usize>,
    counted: Range<usize>,
}

/// Measures `tokens`, as many chunks at a time as the executor has slots (their states are reset). The result does not
/// depend on how many there are, but for rounding. `progress` is told how many chunks are done and how many there are,
/// and may break off: the result is then that of the chunks done.
///
/// # Errors
/// [`Error::TextTooShort`] for less than the method needs, [`Error::NotANumber`] for a model whose logits are not
/// finite, and what the executor says.
pub fn perplexity(
    executor: &mut dyn Executor,
    tokenizer: &Tokenizer,
    tokens: &[TokenId],
    options: &PerplexityOptions,
    progress: &mut dyn FnMut(&Perplexity, usize) -> ControlFlow<()>,
) -> Result<Perplexity> {
    let chunks = chunks(tokens.len(), options)?;
    let vocab = executor.config().vocab;
    let slots = executor.slots().max(1);
    let mut result = Perplexity::default();
    for group in chunks.chunks(slots) {
        for slot in (0u32..).take(group.len()) {
            executor.reset(SlotId(slot))?;
        }
        // Kept apart by chunk, and summed in their order: then batches of another size give the same sum.
        let mut losses: Vec<Vec<(f64, usize)>> = vec![Vec::new(); group.len()];
        let step = (LOGITS / 4 / vocab.max(1) / group.len()).clamp(1, executor.chunk());
        let longest = group.iter().map(|c| c.tokens.len()).max().unwrap_or(0);
        let mut at = 0;
        while at < longest {
            // A step has logits for all of its tokens or for none.
            let boundary = group.first().map_or(0, |c| c.counted.start);
            let end = match at {
                before if before < boundary => boundary.min(at + executor.chunk()),
                _ => at + step,
            };
            let mut batch = Batch::default();
            let mut places = Vec::new();
            for ((slot, chunk), place) in (0u32..).zip(group).zip(0..) {
                let length = chunk.tokens.len();
                let (from, to) = (at.min(length), end.min(length));
                if from == to {
                    continue;
                }
                let wanted = if from >= boundary {
                    Wanted::All
                } else {
                    Wanted::None
                };
                let start = chunk.tokens.start;
                let span = tokens.get(start + from..start + to).unwrap_or_default();
                batch.spans.push(BatchSpan {
                    slot: SlotId(slot),
                    tokens: span.to_vec(),
                    wanted,
                });
                if wanted == Wanted::All {
                    places.extend((from..to).map(|position| (place, position)));
                }
            }
            let logits = executor.run(&batch)?;
            for (row, (place, position)) in logits.rows().zip(places) {
                let (Some(chunk), Some(losses)) = (group.get(place), losses.get_mut(place)) else {
                    continue;
                };
                if !chunk.counted.contains(&position) {
                    continue;
                }
                let Some(&next) = tokens.get(chunk.tokens.start + position + 1) else {
                    continue;
                };
                let loss = negative_log_likelihood(row, next).ok_or(Error::NotANumber)?;
                losses.push((loss, tokenizer.token(next).map_or(0, <[u8]>::len)));
            }
            at = end;
        }
        for losses in losses {
            let mut chunk = Perplexity::default();
            for (nats, bytes) in losses {
                chunk.count(nats, bytes);
            }
            result.chunks += 1;
            result.tokens += chunk.tokens;
            result.bytes += chunk.bytes;
            result.nats += chunk.nats;
            result.squares += chunk.squares;
        }
        if progress(&result, chunks.len()).is_break() {
            break;
        }
    }
    Ok(result)
}

/// Cuts a text of `tokens` tokens.
fn chunks(tokens: usize, options: &PerplexityOptions) -> Result<Vec<Chunk>> {
    let context = options.context.max(2);
    let most = options.chunks.unwrap_or(usize::MAX);
    let needed = match options.method {
        Method::All => 2,
        Method::Llama => context,
    };
    if tokens < needed {
        return Err(Error::TextTooShort { tokens, needed });
    }
    Ok(match options.method {
        // Each position that has a next token counts.
        Method::All => (0..tokens - 1)
            .step_by(context)
            .take(most)
            .map(|start| {
                let length = context.min(tokens - 1 - start);
                Chunk {
                    tokens: start..start + length,
                    counted: 0..length,
                }
            })
            .collect(),
        Method::Llama => (0..tokens / context)
            .take(most)
            .map(|index| Chunk {
                tokens: index * context..(index + 1) * context,
                counted: context / 2..context - 1,
            })
            .collect(),
    })
}

/// −ln softmax(`logits`)[`token`], or `None` where a logit is not finite or the token has none.
fn negative_log_likelihood(logits: &[f32], token: TokenId) -> Option<f64> {
    let chosen = *logits.get(token as usize)?;
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|x| f64::from(x - largest).exp()).sum();
    let loss = sum.ln() + f64::from(largest) - f64::from(chosen);
    loss.is_finite().then_some(loss)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn which_positions_count() {
        #[track_caller]
        fn check(
            method: Method,
            tokens: usize,
            most: Option<usize>,
            want: &[(Range<usize>, usize)],
        ) {
            let options = PerplexityOptions {
                context: 8,
                chunks: most,
                method,
            };
            let got: Vec<_> = chunks(tokens, &options)
                .unwrap()
                .into_iter()
                .map(|c| (c.tokens, c.counted.len()))
                .collect();
            assert_eq!(got, want);
        }
        check(Method::All, 2, None, &[(0..1, 1)]);
        check(Method::All, 9, None, &[(0..8, 8)]);
        check(Method::All, 10, None, &[(0..8, 8), (8..9, 1)]);
        check(Method::All, 30, Some(2), &[(0..8, 8), (8..16, 8)]);
        check(Method::Llama, 23, None, &[(0..8, 3), (8..16, 3)]);
        check(Method::Llama, 24, Some(1), &[(0..8, 3)]);
        for (method, tokens) in [(Method::All, 1), (Method::All, 0), (Method::Llama, 7)] {
            let options = PerplexityOptions {
                context: 8,
                chunks: None,
                method,
            };
            assert!(chunks(tokens, &options).is_err());
        }
    }

    #[test]
    fn losses() {
        let loss = |logits: &[f32], token| negative_log_likelihood(logits, token);
        assert_eq!(loss(&[0.0, 0.0], 1), Some(2f64.ln()));
        assert!((loss(&[100.0, 0.0], 1).unwrap() - 100.0).abs() < 1e-9);
        assert_eq!(loss(&[f32::NAN, 0.0], 1), None);
        assert_eq!(loss(&[f32::INFINITY, 0.0], 1), None);
        assert_eq!(loss(&[0.0], 1), None);
    }
}
