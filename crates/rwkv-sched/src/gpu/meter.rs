//! Counts a GPU executor's steps, and times them by the host's clock and, if asked to, by the GPU's.

use crate::{ExecutorStats, Result, StepTimes};
use rwkv_gpu::{CacheCounts, Dispatch, Gpu, Recorder, Timer, Timing};
use std::time::{Duration, Instant};

/// What a submission tells of itself, in this order: `begin`, `dispatch` for each step, `recorded`, `submitted`, and, where others were
/// submitted in between after another `begin`, `finished`.
#[derive(Default)]
pub(super) struct Meter {
    stats: ExecutorStats,
    timer: Option<Timer>,
    times: Vec<StepTimes>,
    stage: Option<Instant>,
    dispatches: u64,
    record: Duration,
    submit: Duration,
}

impl Meter {
    /// A plan was looked up.
    pub(super) fn plan(&mut self, known: bool) {
        count(&mut self.stats.plans, known);
    }

    /// A step was asked for, that was recorded before or was not.
    pub(super) fn prepared(&mut self, known: bool) {
        count(&mut self.stats.prepared, known);
    }

    /// Whether the GPU's clock is read, a submission at a time.
    pub(super) fn is_timing(&self) -> bool {
        self.timer.is_some()
    }

    /// The plans of the first steps were made, and their pipelines compiled.
    pub(super) fn warmed_up(&mut self, time: Duration) {
        self.stats.warm_up += time;
    }

    /// Kernels were timed.
    pub(super) fn tuned(&mut self, time: Duration) {
        self.stats.tuning += time;
    }

    pub(super) fn begin(&mut self) {
        self.stage = Some(Instant::now());
    }

    /// Records `dispatches` so many times in one pass.
    pub(super) fn dispatch(
        &mut self,
        recorder: &mut Recorder,
        dispatches: &[Dispatch],
        times: usize,
    ) -> Result<()> {
        self.dispatches += (dispatches.len() * times) as u64;
        let all = std::iter::repeat_n(dispatches, times).flatten();
        if let Some(timer) = &mut self.timer {
            timer.dispatch(recorder, "step", all)?;
        } else {
            recorder.dispatch(all);
        }
        Ok(())
    }

    /// So many dispatches were recorded before.
    pub(super) fn launch(&mut self, dispatches: usize) {
        self.dispatches += dispatches as u64;
    }

    pub(super) fn recorded(&mut self) {
        self.record = self.lap();
    }

    /// To be called before waiting.
    pub(super) fn submitted(&mut self) -> Result<()> {
        if let Some(timer) = &mut self.timer {
            timer.submitted()?;
        }
        self.submit = self.lap();
        self.stats.dispatches += std::mem::take(&mut self.dispatches);
        self.stats.record += self.record;
        self.stats.submit += self.submit;
        Ok(())
    }

    /// The results of `tokens` tokens were read.
    pub(super) fn finished(&mut self, tokens: usize) {
        let wait = self.lap();
        tracing::trace!(
            tokens,
            record_us = self.record.as_micros(),
            submit_us = self.submit.as_micros(),
            wait_us = wait.as_micros(),
            "step"
        );
        self.stats.steps += 1;
        self.stats.wait += wait;
        self.collect();
    }

    /// The time since the last stage began; the next one begins.
    fn lap(&mut self) -> Duration {
        let now = Instant::now();
        let begun = self.stage.replace(now);
        begun.map_or(Duration::ZERO, |begun| now.saturating_duration_since(begun))
    }

    fn collect(&mut self) {
        if let Some(timer) = &mut self.timer {
            while let Some(spans) = timer.take() {
                self.times.push(StepTimes { spans });
            }
        }
    }

    pub(super) fn stats(&self) -> ExecutorStats {
        self.stats
    }

    pub(super) fn set_timing(&mut self, gpu: &Gpu, timing: Timing) -> Result<bool> {
        self.collect();
        self.timer = Timer::new(gpu, timing)?;
        Ok(self.timer.is_some())
    }

    pub(super) fn take_times(&mut self) -> Vec<StepTimes> {
        self.collect();
        std::mem::take(&mut self.times)
    }
}

fn count(counts: &mut CacheCounts, known: bool) {
    let count = if known {
        &mut counts.hits
    } else {
        &mut counts.misses
    };
    *count += 1;
}
