//! How well a model predicts a text: nats a token and a byte, and the perplexity.
//!
//! The text is cut into chunks of `context` tokens; before each, the state is reset to what sequences begin with. Every
//! token of a chunk predicts the one after it in the text, the chunk's last token the first of the next chunk too; only
//! the text's own last token has nothing to predict. What is left over after the last whole chunk makes no chunk: its
//! first token is predicted, the others are not looked at.

use crate::{Error, Result, Tokenizer};
use rayon::prelude::*;
use rwkv_sched::{Batch, BatchSpan, Executor, SlotId, TokenId, Wanted};
use std::ops::ControlFlow;

/// Logits that are held at a time, in bytes; 512 positions of 65,536 tokens would be 128 MiB a chunk.
const LOGITS_BYTES: usize = 64 << 20;

/// Which tokens of a chunk are counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Counted {
    /// All that a token of the chunk comes before: those from its second place on, and the one that follows it in the
    /// text. `context` a chunk; one fewer in the last one where the text ends with it.
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
    /// The first place of a chunk whose token is counted; all after it are, as far as tokens of the chunk predict them.
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

    /// Tokens of a text of `tokens` tokens that will go through the model.
    ///
    /// # Errors
    /// As [`chunks_of`](Self::chunks_of).
    pub fn fed_of(&self, tokens: usize) -> Result<usize> {
        let chunks = self.chunks_of(tokens)?;
        Ok(match self.counted {
            Counted::All => (chunks * self.context).min(tokens.saturating_sub(1)),
            Counted::Llama => chunks * (self.context - 1),
        })
    }
}

/// A chunk on its way: the tokens that are fed, each with the one that it predicts.
struct Chunk<'a> {
    fed: &'a [TokenId],
    targets: &'a [TokenId],
}

impl<'a> Chunk<'a> {
    /// The chunk of `tokens` that begins at `start`, which is a whole one.
    fn new(tokens: &'a [TokenId], start: usize, options: &PerplexityOptions) -> Self {
        let from = |place: usize| tokens.get(place..).unwrap_or_default();
        let most = match options.counted {
            Counted::All => options.context,
            // The chunk's last token predicts nothing that llama.cpp counts, and is not fed.
            Counted::Llama => options.context.saturating_sub(1),
        };
        let targets = from(start + 1);
        let targets = targets.get(..most).unwrap_or(targets);
        let fed = from(start).get(..targets.len()).unwrap_or_default();
        Self { fed, targets }
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
    let count = options.chunks_of(tokens.len())?;
    let starts = (0..count).map(|chunk| chunk * options.context);
    let chunks: Vec<Chunk<'_>> = starts.map(|at| Chunk::new(tokens, at, options)).collect();
    let mut all = chunks.iter().flat_map(|c| c.fed.iter().chain(c.targets));
    if let Some(&token) = all.find(|t| **t as usize >= vocab) {
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
        // Only the text's last chunk may be shorter than others.
        let end = group.iter().map(|chunk| chunk.fed.len()).max().unwrap_or(0);
        for (from, to) in pieces(
            options.first_counted() - 1,
            end,
            (rows / group.len()).max(1),
        ) {
            fed += step(executor, tokenizer, group, from, to, options, &mut measured)?;
            if to == end {
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

/// Places `from..to`, of `end`, that go through at once, at most `most` of them: first those whose logits are not
/// `wanted`.
fn pieces(wanted: usize, end: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
    let cut = move |start: usize, end: usize| {
        (start..end)
            .step_by(most)
            .map(move |from| (from, (from + most).min(end)))
    };
    cut(0, wanted.min(end)).chain(cut(wanted, end))
}

/// Feeds places `from..to` of every chunk of `group`, as far as it has them, and counts what they predict; returns how
/// many tokens were fed.
fn step(
    executor: &mut dyn Executor,
    tokenizer: &Tokenizer,
    group: &[Chunk<'_>],
    from: usize,
    to: usize,
    options: &PerplexityOptions,
    measured: &mut [Perplexity],
) -> Result<usize> {
    let counted = to >= options.first_counted();
    let wanted = if counted { Wanted::All } else { Wanted::None };
    let part = |all: &[TokenId]| -> Vec<TokenId> {
        let all = all.get(from..).unwrap_or_default();
        all.iter().take(to - from).copied().collect()
    };
    let spans = (0..).zip(group).map(|(slot, chunk)| BatchSpan {
        slot: SlotId(slot),
        tokens: part(chunk.fed),
        wanted,
    });
    let spans: Vec<_> = spans.filter(|span| !span.tokens.is_empty()).collect();
    let fed = spans.iter().map(|span| span.tokens.len()).sum();
    let logits = executor.run(&Batch { spans })?;
    if !counted {
        return Ok(fed);
    }
    // What each row predicts: the token after it.
    let targets = group.iter().zip(0..).flat_map(|(chunk, index)| {
        let next = part(chunk.targets);
        next.into_iter().map(move |token| (index, token))
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
    Ok(fed)
}

/// `−log softmax(logits)[token]`, infinite for a token that has no logit.
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
        // Chunks of `context` of a text of three chunks and `more` tokens.
        let check = |context, counted, more: usize, most, want: &[(usize, usize)]| {
            let options = PerplexityOptions {
                context,
                chunks: None,
                counted,
            };
            let text = vec![0; 3 * context + more];
            let chunk = Chunk::new(&text, 2 * context, &options);
            assert_eq!(chunk.fed.len(), chunk.targets.len());
            let first = options.first_counted() - 1;
            let got: Vec<_> = pieces(first, chunk.fed.len(), most).collect();
            assert_eq!(got, want, "{options:?}, {most}");
            let all: usize = (0..3)
                .map(|i| Chunk::new(&text, i * context, &options).fed.len())
                .sum();
            assert_eq!(options.fed_of(text.len()).ok(), Some(all), "{options:?}");
        };
        check(2, Counted::All, 0, 9, &[(0, 1)]);
        check(2, Counted::All, 1, 9, &[(0, 2)]);
        check(6, Counted::All, 0, 9, &[(0, 5)]);
        check(6, Counted::All, 5, 9, &[(0, 6)]);
        check(6, Counted::All, 0, 2, &[(0, 2), (2, 4), (4, 5)]);
        check(6, Counted::All, 1, 2, &[(0, 2), (2, 4), (4, 6)]);
        for more in [0, 1, 2] {
            check(3, Counted::Llama, more, 9, &[(0, 1), (1, 2)]);
            check(8, Counted::Llama, more, 9, &[(0, 4), (4, 7)]);
            check(
                9,
                Counted::Llama,
                more,
                3,
                &[(0, 3), (3, 4), (4, 7), (7, 8)],
            );
            check(4, Counted::Llama, more, 1, &[(0, 1), (1, 2), (2, 3)]);
        }
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
