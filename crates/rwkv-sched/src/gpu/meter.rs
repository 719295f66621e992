//! Counts a GPU executor's steps, and times them by the host's clock and, if asked to, by the GPU's.

use crate::{ExecutorStats, Result, StepTimes};
use rwkv_gpu::{CacheCounts, Dispatch, Gpu, Recorder, Timer, Timing};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// What a submission tells of itself, in this order: `begin`, `dispatch` for each step, `recorded`, `submitted`, and, where others were
/// submitted in between after another `begin`, `finished`; or instead of that `waits`, where any thread waits.
#[derive(Default)]
pub(super) struct Meter {
    stats: ExecutorStats,
    timer: Option<Timer>,
    times: Vec<StepTimes>,
    stage: Option<Instant>,
    dispatches: u64,
    record: Duration,
    submit: Duration,
    /// Nanoseconds of [waits](Wait).
    waited: Arc<AtomicU64>,
}

/// A step that somebody waits for.
pub(super) struct Wait {
    tokens: usize,
    record: Duration,
    submit: Duration,
    begun: Instant,
    waited: Arc<AtomicU64>,
}

impl Wait {
    /// Its results were read.
    pub(super) fn finished(self) {
        let wait = self.begun.elapsed();
        told(self.tokens, self.record, self.submit, wait);
        let nanos = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
        self.waited.fetch_add(nanos, Relaxed);
    }
}

/// Tells the log of a step.
fn told(tokens: usize, record: Duration, submit: Duration, wait: Duration) {
    tracing::trace!(
        tokens,
        record_us = record.as_micros(),
        submit_us = submit.as_micros(),
        wait_us = wait.as_micros(),
        "step"
    );
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
        tracing::trace!("submitted");
        self.stats.dispatches += std::mem::take(&mut self.dispatches);
        self.stats.record += self.record;
        self.stats.submit += self.submit;
        Ok(())
    }

    /// The results of `tokens` tokens were read.
    pub(super) fn finished(&mut self, tokens: usize) {
        let wait = self.lap();
        told(tokens, self.record, self.submit, wait);
        self.stats.steps += 1;
        self.stats.wait += wait;
        self.collect();
    }

    /// The results of `tokens` tokens are waited for, by whatever thread.
    pub(super) fn waits(&mut self, tokens: usize) -> Wait {
        self.stats.steps += 1;
        self.collect();
        Wait {
            tokens,
            record: self.record,
            submit: self.submit,
            begun: Instant::now(),
            waited: self.waited.clone(),
        }
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
        ExecutorStats {
            wait: self.stats.wait + Duration::from_nanos(self.waited.load(Relaxed)),
            ..self.stats
        }
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
