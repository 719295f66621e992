//! How well a model predicts a text: nats a token and a byte, and the perplexity.
//!
//! The text is cut into chunks of `context` tokens, each predicted from an empty state; what is left over at the end is
//! not looked at. A token that has no token before it in its chunk is fed and never counted.

use crate::{Error, Result, Tokenizer};
use rayon::prelude::*;
use rwkv_sched::{Batch, BatchSpan, Executor, SlotId, TokenId, Wanted};
use std::ops::ControlFlow;

/// Logits that are held at a time, in bytes; 512 positions of 65,536 tokens would be 128 MiB a chunk.
const LOGITS_BYTES: usize = 64 << 20;

/// Which tokens of a chunk are counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Counted {
    /// All but the first, which nothing in the chunk comes before: `context` − 1 a chunk.
    #[default]
    All,
    /// What llama.cpp's `llama-perplexity` counts: the tokens from place `context / 2` + 1 on (places from 0), so that
    /// each has at least half a chunk before it: `context` − `context / 2` − 1 a chunk. As that program does for RWKV,
    /// no token is put before a chunk; it also wants a text of two chunks at least, and so does this.
    Llama,
}

/// What to measure.
#[derive(Clone, Copy, Debug)]
pub struct PerplexityOptions {
    /// Tokens a chunk.
    pub context: usize,
    /// Chunks to measure at most, from the beginning of the text; `None` is all.
    pub chunks: Option<usize>,
    /// Which tokens count.
    pub counted: Counted,
}

impl Default for PerplexityOptions {
    fn default() -> Self {
        Self {
            context: 512,
            chunks: None,
            counted: Counted::default(),
        }
    }
}

impl PerplexityOptions {
    /// The first place of a chunk whose token is counted; all after it are.
    fn first_counted(&self) -> usize {
        match self.counted {
            Counted::All => 1,
            Counted::Llama => self.context / 2 + 1,
        }
    }

    /// Chunks of a text of `tokens` tokens that will be measured, at least one.
    ///
    /// # Errors
    /// [`Error::Context`] for a context in which nothing is counted, [`Error::ShortText`] for a text of too few tokens.
    pub fn chunks_of(&self, tokens: usize) -> Result<usize> {
        if self.first_counted() >= self.context {
            return Err(Error::Context {
                context: self.context,
                least: match self.counted {
                    Counted::All => 2,
                    Counted::Llama => 3,
                },
            });
        }
        let least = match self.counted {
            Counted::All => 1,
            Counted::Llama => 2,
        };
        let whole = tokens / self.context;
        let chunks = self.chunks.unwrap_or(usize::MAX).min(whole);
        if whole < least || chunks == 0 {
            return Err(Error::ShortText {
                tokens,
                needs: self.context.saturating_mul(least),
                chunks: least,
                context: self.context,
            });
        }
        Ok(chunks)
    }
}

/// What was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Perplexity {
    /// Chunks that were measured.
    pub chunks: usize,
    /// Tokens that were counted.
    pub tokens: u64,
    /// Bytes of the counted tokens; a token without text has none.
    pub bytes: u64,
    /// Negative log-likelihood of the counted tokens, in nats.
    pub nats: f64,
    /// The sum of its squares.
    squares: f64,
}

impl Perplexity {
    /// The mean over the counted tokens.
    pub fn nats_per_token(&self) -> f64 {
        self.nats / self.tokens as f64
    }

    /// The same likelihood over the bytes of the counted tokens, which vocabularies can be compared by. Infinite where
    /// they have no bytes.
    pub fn nats_per_byte(&self) -> f64 {
        self.nats / self.bytes as f64
    }

    /// e to the nats a token.
    pub fn perplexity(&self) -> f64 {
        self.nats_per_token().exp()
    }

    /// The perplexity's standard error, if tokens were independent: as llama.cpp tells it. 0 for a single token.
    pub fn standard_error(&self) -> f64 {
        let (n, mean) = (self.tokens as f64, self.nats_per_token());
        let variance = self.squares / n - mean * mean;
        (variance.max(0.0) / (n - 1.0).max(1.0)).sqrt() * self.perplexity()
    }

    /// Adds one counted token of `bytes` bytes.
    fn count(&mut self, nats: f64, bytes: usize) {
        self.tokens += 1;
        self.bytes += bytes as u64;
        self.nats += nats;
        self.squares += nats * nats;
    }

    /// Adds a chunk's sums.
    fn add(&mut self, chunk: &Self) {
        self.chunks += 1;
        self.tokens += chunk.tokens;
        self.bytes += chunk.bytes;
        self.nats += chunk.nats;
        self.squares += chunk.squares;
    }
}

/// Measures how well `executor` predicts `tokens`, as many chunks at once as it has slots; their states are lost.
///
/// `tokenizer` says how many bytes a token has. `progress` is told what was measured so far, after every step, as chunks
/// that are done and tokens that were fed in all; it may break off, and the result is then that of the chunks that
/// are done. The same text, model, device and number of slots give the same bits.
///
/// # Errors
/// What [`PerplexityOptions::chunks_of`] says, [`Error::NoProbability`] for a model whose logits overflow, or what
/// [`Executor::run`] says.
pub fn perplexity(
    executor: &mut dyn Executor,
    tokenizer: &Tokenizer,
    tokens: &[TokenId],
    options: &PerplexityOptions,
    progress: &mut dyn FnMut(&Perplexity, usize) -> ControlFlow<()>,
) -> Result<Perplexity> {
    let vocab = executor.config().vocab;
    let chunks = options.chunks_of(tokens.len())?;
    let chunks: Vec<&[TokenId]> = tokens.chunks_exact(options.context).take(chunks).collect();
    if let Some(&token) = chunks
        .iter()
        .copied()
        .flatten()
        .find(|t| **t as usize >= vocab)
    {
        return Err(rwkv_sched::Error::TokenRange { token, vocab }.into());
    }
    let slots = executor.slots().max(1);
    // Rows of logits that may be held, which are divided among the chunks.
    let rows = (LOGITS_BYTES / 4 / vocab.max(1)).min(executor.chunk());
    let mut total = Perplexity::default();
    let mut fed = 0;
    for group in chunks.chunks(slots) {
        let mut measured = vec![Perplexity::default(); group.len()];
        for (_, slot) in group.iter().zip(0..) {
            executor.reset(SlotId(slot))?;
        }
        for (from, to) in pieces(options, (rows / group.len()).max(1)) {
            step(executor, tokenizer, group, from, to, options, &mut measured)?;
            fed += (to - from) * group.len();
            if to + 1 == options.context {
                for chunk in &measured {
                    total.add(chunk);
                }
            }
            if progress(&total, fed).is_break() {
                return Ok(total);
            }
        }
    }
    Ok(total)
}

/// Places `from..to` that go through at once, at most `most` of them: first those whose logits are not wanted. The last
/// token of a chunk predicts nothing that is counted, and is not fed.
fn pieces(options: &PerplexityOptions, most: usize) -> impl Iterator<Item = (usize, usize)> {
    let wanted = options.first_counted() - 1;
    let end = options.context - 1;
    let cut = move |start: usize, end: usize| {
        (start..end)
            .step_by(most)
            .map(move |from| (from, (from + most).min(end)))
    };
    cut(0, wanted).chain(cut(wanted, end))
}

/// Feeds places `from..to` of every chunk of `group`, and counts what they predict.
fn step(
    executor: &mut dyn Executor,
    tokenizer: &Tokenizer,
    group: &[&[TokenId]],
    from: usize,
    to: usize,
    options: &PerplexityOptions,
    measured: &mut [Perplexity],
) -> Result<()> {
    let counted = to >= options.first_counted();
    let wanted = if counted { Wanted::All } else { Wanted::None };
    let spans = (0..).zip(group).map(|(slot, chunk)| BatchSpan {
        slot: SlotId(slot),
        tokens: chunk.get(from..to).unwrap_or_default().to_vec(),
        wanted,
    });
    let logits = executor.run(&Batch {
        spans: spans.collect(),
    })?;
    if !counted {
        return Ok(());
    }
    // What each row predicts: the token after it.
    let targets = group.iter().zip(0..).flat_map(|(chunk, index)| {
        let next = chunk.get(from + 1..=to).unwrap_or_default();
        next.iter().map(move |token| (index, *token))
    });
    let rows: Vec<(&[f32], (usize, TokenId))> = logits.rows().zip(targets).collect();
    let nats: Vec<f64> = rows
        .par_iter()
        .map(|(row, (_, token))| nats(row, *token))
        .collect();
    // One after the other: the order of a sum of floats matters.
    for ((_, (index, token)), nats) in rows.iter().zip(nats) {
        if !nats.is_finite() {
            return Err(Error::NoProbability { token: *token });
        }
        let bytes = tokenizer.token(*token).map_or(0, <[u8]>::len);
        if let Some(chunk) = measured.get_mut(*index) {
            chunk.count(nats, bytes);
        }
    }
    Ok(())
}

/// −log softmax(logits)[token], infinite for a token that has no logit.
fn nats(logits: &[f32], token: TokenId) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|x| f64::from((x - largest).exp())).sum();
    let own = logits.get(token as usize).copied();
    let own = own.unwrap_or(f32::NEG_INFINITY);
    sum.ln() - (f64::from(own) - f64::from(largest))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic, reason = "tests fail by panicking")]

    use super::*;

    #[test]
    fn places() {
        let check = |context, counted, most, want: &[(usize, usize)]| {
            let options = PerplexityOptions {
                context,
                chunks: None,
                counted,
            };
            let got: Vec<_> = pieces(&options, most).collect();
            assert_eq!(got, want, "{options:?}, {most}");
        };
        check(2, Counted::All, 9, &[(0, 1)]);
        check(6, Counted::All, 9, &[(0, 5)]);
        check(6, Counted::All, 2, &[(0, 2), (2, 4), (4, 5)]);
        check(3, Counted::Llama, 9, &[(0, 1), (1, 2)]);
        check(8, Counted::Llama, 9, &[(0, 4), (4, 7)]);
        check(9, Counted::Llama, 3, &[(0, 3), (3, 4), (4, 7), (7, 8)]);
        check(4, Counted::Llama, 1, &[(0, 1), (1, 2), (2, 3)]);
    }

    #[test]
    fn chunks() {
        let check = |context, counted, chunks, tokens, want: Result<usize, &str>| {
            let options = PerplexityOptions {
                context,
                chunks,
                counted,
            };
            let got = options.chunks_of(tokens).map_err(|e| e.to_string());
            match (&got, want) {
                (Ok(got), Ok(want)) => assert_eq!(*got, want, "{options:?}"),
                (Err(got), Err(want)) => assert!(got.contains(want), "{got}, not {want}"),
                _ => panic!("{options:?}: {got:?}, not {want:?}"),
            }
        };
        check(512, Counted::All, None, 511, Err("has 511 tokens"));
        check(512, Counted::All, None, 512, Ok(1));
        check(512, Counted::All, None, 1535, Ok(2));
        check(512, Counted::All, Some(1), 1535, Ok(1));
        check(512, Counted::All, Some(9), 1535, Ok(2));
        check(512, Counted::Llama, Some(1), 1023, Err("needs 1024"));
        check(512, Counted::Llama, Some(1), 1024, Ok(1));
        check(1, Counted::All, None, 9, Err("at least 2"));
        check(0, Counted::All, None, 9, Err("at least 2"));
        check(2, Counted::Llama, None, 9, Err("at least 3"));
        check(3, Counted::Llama, None, 9, Ok(3));
        check(usize::MAX, Counted::Llama, None, 9, Err("has 9 tokens"));
    }

    #[test]
    fn probabilities() {
        let check = |logits: &[f32], token, want: f64| {
            let got = nats(logits, token);
            let same = match (got.is_finite(), want.is_finite()) {
                (true, true) => (got - want).abs() < 1e-6 * want.abs().max(1.0),
                _ => got.to_string() == want.to_string(),
            };
            assert!(same, "{logits:?}: {got}, not {want}");
        };
        check(&[0.0; 4], 2, 4f64.ln());
        check(&[1000.0, 0.0], 0, 0.0);
        check(&[1000.0, 0.0], 1, 1000.0);
        check(&[-3e38, -3e38], 1, 2f64.ln());
        check(&[3e38, -3e38], 1, 6e38);
        check(&[f32::NEG_INFINITY, 1.0], 1, 0.0);
        check(&[f32::NEG_INFINITY, 1.0], 0, f64::INFINITY);
        check(&[f32::INFINITY, 1.0], 1, f64::NAN);
        check(&[f32::NAN, 1.0], 1, f64::NAN);
        check(&[1.0], 7, f64::INFINITY);
    }
}
