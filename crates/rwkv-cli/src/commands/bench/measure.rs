//! Running what is measured: a warm-up, the rounds, and rounds by the GPU's clock.
//!
//! The rounds that count run without timestamps, which cost a readback a step; the GPU's times come from a round of their
//! own.

use anyhow::Result;
use rwkv_gpu::Timing;
use rwkv_sched::{
    Batch, BatchSpan, Executor, ExecutorStats, SlotId, StepTimes, TokenId, Wanted, prefill,
};
use std::{
    ops::ControlFlow,
    time::{Duration, Instant},
};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Workload {
    /// A prompt of so many tokens for one sequence; only the logits after the last are wanted.
    Prefill { tokens: u32 },
    /// So many steps of one token for each of `batch` sequences.
    Decode { tokens: u32, batch: u32 },
}

/// One round.
pub(super) struct Round {
    pub(super) elapsed: Duration,
    /// What the executor counted meanwhile.
    pub(super) stats: ExecutorStats,
    /// The steps by the GPU's clock, where it was asked for.
    pub(super) times: Vec<StepTimes>,
}

/// All rounds of a workload.
pub(super) struct Measured {
    pub(super) rounds: Vec<Round>,
    /// The round whose passes were timed.
    pub(super) passes: Option<Round>,
    /// The round whose kernels were timed.
    pub(super) kernels: Option<Round>,
}

/// Ctrl-C was pressed: what was measured so far answers nothing.
#[derive(Debug)]
pub(super) struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

impl Workload {
    /// Tokens that go through the model in a round.
    pub(super) fn tokens(self) -> u64 {
        match self {
            Self::Prefill { tokens } => u64::from(tokens),
            Self::Decode { tokens, batch } => u64::from(tokens) * u64::from(batch),
        }
    }

    /// Steps of a round, and those among them that make logits.
    pub(super) fn steps(self, chunk: usize) -> (u64, u64) {
        match self {
            Self::Prefill { tokens } => (u64::from(tokens).div_ceil(chunk.max(1) as u64), 1),
            Self::Decode { tokens, .. } => (u64::from(tokens), u64::from(tokens)),
        }
    }

    /// Runs it once to warm up, `repeat` times to measure, and once more for each kind of timing that can be had.
    pub(super) fn measure(
        self,
        executor: &mut dyn Executor,
        repeat: u32,
        profile: bool,
        stop: &dyn Fn() -> bool,
    ) -> Result<Measured> {
        self.round(executor, stop)?;
        let rounds = (0..repeat)
            .map(|_| self.round(executor, stop))
            .collect::<Result<_>>()?;
        let passes = self.timed(executor, Timing::Passes, stop)?;
        let kernels = if profile {
            self.timed(executor, Timing::Kernels, stop)?
        } else {
            None
        };
        Ok(Measured {
            rounds,
            passes,
            kernels,
        })
    }

    /// The second of two rounds with `timing` (the first makes its queries), or none where the device cannot.
    fn timed(
        self,
        executor: &mut dyn Executor,
        timing: Timing,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<Round>> {
        if !executor.set_timing(timing)? {
            return Ok(None);
        }
        let round = self
            .round(executor, stop)
            .and_then(|_| self.round(executor, stop));
        executor.set_timing(Timing::Off)?;
        round.map(Some)
    }

    fn round(self, executor: &mut dyn Executor, stop: &dyn Fn() -> bool) -> Result<Round> {
        match self {
            Self::Prefill { tokens } => {
                executor.reset(SlotId(0))?;
                let prompt = tokens_of(0, executor.config().vocab, tokens);
                let chunk = executor.chunk();
                clock(executor, |executor| {
                    prefill(
                        executor,
                        SlotId(0),
                        &prompt,
                        chunk,
                        Wanted::Last,
                        &mut |_, _| {
                            if stop() {
                                return ControlFlow::Break(());
                            }
                            ControlFlow::Continue(())
                        },
                    )?;
                    check(stop)
                })
            }
            Self::Decode { tokens, batch } => {
                let vocab = executor.config().vocab;
                let mut decoder = Decoder::new(executor, batch)?;
                for (slot, span) in (0..batch).zip(&mut decoder.batch.spans) {
                    span.tokens = tokens_of(slot, vocab, 1);
                }
                // Not timed: what resetting has left for the GPU to do is done after it.
                decoder.step(executor)?;
                clock(executor, |executor| {
                    for _ in 0..tokens {
                        decoder.step(executor)?;
                        check(stop)?;
                    }
                    Ok(())
                })
            }
        }
    }
}

/// Sequences that go on from step to step.
struct Decoder {
    batch: Batch,
}

impl Decoder {
    /// New sequences in the first slots; their first tokens are still to be set.
    fn new(executor: &mut dyn Executor, batch: u32) -> Result<Self> {
        let mut spans = Vec::new();
        for slot in (0..batch).map(SlotId) {
            executor.reset(slot)?;
            spans.push(BatchSpan {
                slot,
                tokens: vec![0],
                wanted: Wanted::Last,
            });
        }
        Ok(Self {
            batch: Batch { spans },
        })
    }

    /// Feeds every sequence its token, and chooses the next ones.
    fn step(&mut self, executor: &mut dyn Executor) -> Result<()> {
        let logits = executor.run(&self.batch)?;
        for (span, row) in self.batch.spans.iter_mut().zip(logits.rows()) {
            span.tokens.clear();
            span.tokens.push(next_token(row));
        }
        Ok(())
    }
}

/// The token that a sequence goes on with: the most probable one, the first of equals.
fn next_token(logits: &[f32]) -> TokenId {
    let mut best = (0, f32::NEG_INFINITY);
    for (token, &logit) in (0u32..).zip(logits) {
        if logit > best.1 {
            best = (token, logit);
        }
    }
    best.0
}

/// `count` tokens that look random and are the same every time, others for each sequence.
fn tokens_of(sequence: u32, vocab: usize, count: u32) -> Vec<TokenId> {
    let mut state = u64::from(sequence) + 1;
    let vocab = vocab.max(1) as u64;
    (0..count)
        .map(|_| {
            // Knuth's MMIX generator; its upper half is the better one.
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            u32::try_from((state >> 33) % vocab).unwrap_or(0)
        })
        .collect()
}

fn clock(
    executor: &mut dyn Executor,
    work: impl FnOnce(&mut dyn Executor) -> Result<()>,
) -> Result<Round> {
    drop(executor.take_times());
    let before = executor.stats();
    let start = Instant::now();
    work(executor)?;
    let elapsed = start.elapsed();
    Ok(Round {
        elapsed,
        stats: executor.stats().since(&before),
        times: executor.take_times(),
    })
}

fn check(stop: &dyn Fn() -> bool) -> Result<()> {
    if stop() {
        return Err(Interrupted.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_probable_token() {
        #[track_caller]
        fn check(logits: &[f32], want: TokenId) {
            assert_eq!(next_token(logits), want, "{logits:?}");
        }
        check(&[], 0);
        check(&[1.0, 3.0, 2.0], 1);
        check(&[1.0, 3.0, 3.0], 1);
        check(&[f32::NAN, -1.0, -2.0], 1);
        check(&[f32::NEG_INFINITY, f32::NEG_INFINITY], 0);
    }

    #[test]
    fn tokens_are_in_the_vocabulary_and_differ() {
        for vocab in [1, 2, 256, 65_536] {
            let tokens = tokens_of(3, vocab, 1000);
            assert!(tokens.iter().all(|t| (*t as usize) < vocab));
            let distinct: std::collections::HashSet<_> = tokens.iter().collect();
            assert!(distinct.len() >= vocab.min(1000) / 2, "{}", distinct.len());
        }
        assert_ne!(tokens_of(0, 65_536, 4), tokens_of(1, 65_536, 4));
    }
}
