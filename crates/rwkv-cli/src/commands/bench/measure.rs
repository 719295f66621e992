//! Running what is measured: a warm-up, the rounds, and rounds by the GPU's clock.
//!
//! The rounds that count run without timestamps, which cost a readback a step; the GPU's times come from a round of their
//! own.

use anyhow::Result;
use rwkv_gpu::Timing;
use rwkv_sched::{
    Batch, BatchSpan, Decoding, Executor, ExecutorStats, SlotId, StepTimes, TokenId, Wanted,
    prefill,
    sampling::{Sampler, SamplerParams},
};
use std::{
    ops::ControlFlow,
    time::{Duration, Instant},
};

/// How long a device that idled takes to reach its clocks: 200 ms on an H200.
const WARM_UP: Duration = Duration::from_millis(300);

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Workload {
    /// A prompt of so many tokens for each of `prompts` sequences; only the logits after the last are wanted.
    Prefill { tokens: u32, prompts: u32 },
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
            Self::Prefill { tokens, prompts } => u64::from(tokens) * u64::from(prompts),
            Self::Decode { tokens, batch } => u64::from(tokens) * u64::from(batch),
        }
    }

    /// Sequences that it has.
    pub(super) fn sequences(self) -> u32 {
        match self {
            Self::Prefill { prompts, .. } => prompts,
            Self::Decode { batch, .. } => batch,
        }
    }

    /// Steps of a round, and those among them that make logits.
    pub(super) fn steps(self, chunk: usize) -> (u64, u64) {
        match self {
            Self::Prefill { .. } => (self.tokens().div_ceil(chunk.max(1) as u64), 1),
            Self::Decode { tokens, .. } => (u64::from(tokens), u64::from(tokens)),
        }
    }

    /// Warms up, runs it `repeat` times to measure, and once more for each kind of timing that can be had.
    pub(super) fn measure(
        self,
        executor: &mut dyn Executor,
        repeat: u32,
        profile: bool,
        stop: &dyn Fn() -> bool,
    ) -> Result<Measured> {
        self.warm_up(executor, stop)?;
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

    /// A round that makes plans and kernels, and more of them until the clocks of a device that idled are up.
    fn warm_up(self, executor: &mut dyn Executor, stop: &dyn Fn() -> bool) -> Result<()> {
        self.round(executor, stop)?;
        let begun = Instant::now();
        while begun.elapsed() < WARM_UP {
            self.round(executor, stop)?;
        }
        Ok(())
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
            Self::Prefill { tokens, prompts } if prompts > 1 => {
                let vocab = executor.config().vocab;
                let span = |slot| BatchSpan {
                    slot: SlotId(slot),
                    tokens: tokens_of(slot, vocab, tokens),
                    wanted: Wanted::Last,
                };
                let all = Batch {
                    spans: (0..prompts).map(span).collect(),
                };
                for span in &all.spans {
                    executor.reset(span.slot)?;
                }
                // Several devices cut it themselves.
                let parts = if executor.stages() * executor.replicas() > 1 {
                    1
                } else {
                    all.tokens().div_ceil(executor.chunk().max(1))
                };
                let parts = all.cut(parts);
                clock(executor, |executor| {
                    for part in &parts {
                        executor.run(part)?;
                        check(stop)?;
                    }
                    Ok(())
                })
            }
            Self::Prefill { tokens, .. } => {
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
                let greedy = SamplerParams {
                    temperature: 0.0,
                    ..SamplerParams::default()
                };
                let mut sequences = Vec::new();
                for slot in 0..batch {
                    executor.reset(SlotId(slot))?;
                    let first = tokens_of(slot, vocab, 1).first().copied();
                    sequences.push(Decoding {
                        slot: SlotId(slot),
                        token: first.unwrap_or(0),
                        sampler: Sampler::new(greedy.clone())?,
                    });
                }
                let mut go = |executor: &mut dyn Executor, steps: usize| -> Result<()> {
                    executor.decode(&mut sequences, steps, &|_| false, &mut |_| {
                        if stop() {
                            return ControlFlow::Break(());
                        }
                        ControlFlow::Continue(())
                    })?;
                    check(stop)
                };
                // Not timed: what resetting has left for the GPU to do is done after it.
                go(executor, 1)?;
                clock(executor, |executor| go(executor, tokens as usize))
            }
        }
    }
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
