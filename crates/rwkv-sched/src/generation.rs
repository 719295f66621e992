//! Generating token by token: a prompt in chunks, then one token a step.

use crate::{
    Batch, Burst, Decoding, Error, Executor, Logits, Result, SlotId, TokenId, Wanted,
    sampling::Sampler,
};
use std::ops::ControlFlow;

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
    progress: &mut dyn FnMut(usize, &Logits) -> ControlFlow<()>,
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

    /// Hands up to `tokens` tokens to `take`, until it breaks off. Faster than asking for one after the other: a GPU goes
    /// on while the caller looks at what it made ([`Executor::decode`]).
    ///
    /// # Errors
    /// What [`Executor::decode`] says.
    pub fn run(
        self,
        tokens: usize,
        take: &mut dyn FnMut(TokenId) -> ControlFlow<()>,
    ) -> Result<()> {
        self.decode(tokens, true, take)
    }

    /// The same where nobody needs the slot's state any more: it may be that after later tokens, and no copy of it is made to
    /// go back to.
    ///
    /// # Errors
    /// What [`Executor::burst`] says.
    pub fn run_out(
        self,
        tokens: usize,
        take: &mut dyn FnMut(TokenId) -> ControlFlow<()>,
    ) -> Result<()> {
        self.decode(tokens, false, take)
    }

    fn decode(
        mut self,
        tokens: usize,
        may_stop: bool,
        take: &mut dyn FnMut(TokenId) -> ControlFlow<()>,
    ) -> Result<()> {
        if tokens == 0 {
            return Ok(());
        }
        let token = self.step()?;
        if take(token).is_break() {
            return Ok(());
        }
        let Self {
            executor,
            slot,
            sampler,
            uncounted,
            ..
        } = self;
        let counted = |token| uncounted.binary_search(&token).is_err();
        let mut sequences = [Decoding {
            slot,
            token,
            sampler,
        }];
        let burst = Burst {
            prompts: &Batch::default(),
            sequences: &mut sequences,
            going_on: 1,
            steps: tokens - 1,
            counted: &counted,
            may_stop,
        };
        let mut flow = ControlFlow::Continue(());
        executor.burst(burst, &mut |drawn| {
            // What was on its way when it broke off is told too.
            if flow.is_continue() {
                flow = drawn.iter().flatten().try_for_each(|token| take(*token));
            }
            flow
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
