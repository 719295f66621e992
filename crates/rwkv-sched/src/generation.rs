//! Generating token by token: a prompt in chunks, then one token a step.

use crate::{Batch, Error, Executor, Logits, Result, SlotId, TokenId, Wanted, sampling::Sampler};

/// Feeds `tokens` to `slot` in chunks of `chunk`, reporting how many are done after each; the logits are those of the
/// last token (or of all, if wanted).
///
/// # Errors
/// [`Error::EmptyPrompt`], or what [`Executor::run`] says; a token out of range is found before anything runs.
pub fn prefill(
    executor: &mut dyn Executor,
    slot: SlotId,
    tokens: &[TokenId],
    chunk: usize,
    wanted: Wanted,
    progress: &mut dyn FnMut(usize, &Logits) -> std::ops::ControlFlow<()>,
) -> Result<Logits> {
    let vocab = executor.config().vocab;
    if let Some(&token) = tokens.iter().find(|t| **t as usize >= vocab) {
        return Err(Error::TokenRange { token, vocab });
    }
    let mut logits = Logits::default();
    let mut done = 0;
    for part in tokens.chunks(chunk.max(1)) {
        done += part.len();
        let wanted = if wanted == Wanted::Last && done < tokens.len() {
            Wanted::None
        } else {
            wanted
        };
        logits = executor.run(&Batch::single(slot, part, wanted))?;
        if progress(done, &logits).is_break() {
            break;
        }
    }
    if done == 0 {
        Err(Error::EmptyPrompt)
    } else {
        Ok(logits)
    }
}

/// A sequence that goes on token by token: an iterator that samples a token, and feeds it to the model when the next
/// one is asked for. So the state never passes the last token that was handed out.
pub struct Generation<'e> {
    executor: &'e mut dyn Executor,
    slot: SlotId,
    sampler: Sampler,
    /// Tokens that add nothing to their count for the repetition penalties, sorted.
    uncounted: Vec<TokenId>,
    logits: Vec<f32>,
    /// The last token handed out: not in the state yet.
    pending: Option<TokenId>,
}

impl<'e> Generation<'e> {
    /// Goes on from `logits`, the last row of a prompt that was fed to `slot`. `uncounted` are the tokens that the
    /// sampler's penalties do not count (`SamplerParams`).
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`] when there are no logits.
    pub fn new(
        executor: &'e mut dyn Executor,
        slot: SlotId,
        sampler: Sampler,
        uncounted: Vec<TokenId>,
        logits: &Logits,
    ) -> Result<Self> {
        let logits = logits.last().ok_or(Error::EmptyPrompt)?.to_vec();
        let mut uncounted = uncounted;
        uncounted.sort_unstable();
        Ok(Self {
            executor,
            slot,
            sampler,
            uncounted,
            logits,
            pending: None,
        })
    }

    fn step(&mut self) -> Result<TokenId> {
        if let Some(token) = self.pending {
            let logits = self
                .executor
                .run(&Batch::single(self.slot, &[token], Wanted::Last))?;
            self.logits = logits.last().ok_or(Error::EmptyPrompt)?.to_vec();
            self.pending = None;
        }
        let token = self.sampler.sample(&self.logits)?;
        self.sampler
            .accept(token, self.uncounted.binary_search(&token).is_err());
        self.pending = Some(token);
        Ok(token)
    }
}

impl Iterator for Generation<'_> {
    type Item = Result<TokenId>;

    /// The next token; a sequence has no end of its own.
    fn next(&mut self) -> Option<Self::Item> {
        Some(self.step())
    }
}
