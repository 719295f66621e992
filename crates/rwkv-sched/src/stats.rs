//! What an executor counts and times.

use rwkv_gpu::{CacheCounts, TimedSpan};
use std::time::Duration;

/// Counts since an executor was made; they only grow, so that the difference of two tells what happened in between.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExecutorStats {
    /// Steps that were submitted.
    pub steps: u64,
    /// Kernels that those launched.
    pub dispatches: u64,
    /// Host time that went into writing the batch and recording the steps.
    pub record: Duration,
    /// Host time that went into submitting them.
    pub submit: Duration,
    /// Host time from there until the results were read.
    pub wait: Duration,
    /// Host time, while the executor was made, until what its first steps launch was resolved and compiled.
    pub warm_up: Duration,
    /// Lookups of plans, one a step.
    pub plans: CacheCounts,
    /// Steps that a GPU was asked for one by one, and first ones of those that run ahead: a hit was recorded while the GPU ran
    /// another one.
    pub prepared: CacheCounts,
    /// Requests of kernel parameters, while plans are made.
    pub params: CacheCounts,
    /// Lookups of compiled pipelines: a miss compiles one.
    pub pipelines: CacheCounts,
    /// Those misses whose pipeline a run before has kept on disk.
    pub pipelines_kept: u64,
    /// Host time, while the executor was made, that went into timing kernels.
    pub tuning: Duration,
    /// Kernels, of certain shapes and formats, whose cut was measured on this adapter, now or in an earlier run.
    pub tuned: u64,
    /// Requests to the buffer pool.
    pub buffers: CacheCounts,
    /// Buffers made, for whatever use.
    pub buffers_made: u64,
}

impl ExecutorStats {
    /// What two executors have counted that share every step.
    pub(crate) fn beside(self, other: Self) -> Self {
        let sum = |a: CacheCounts, b: CacheCounts| CacheCounts {
            hits: a.hits + b.hits,
            misses: a.misses + b.misses,
        };
        Self {
            steps: self.steps.max(other.steps),
            dispatches: self.dispatches + other.dispatches,
            record: self.record + other.record,
            submit: self.submit + other.submit,
            wait: self.wait + other.wait,
            warm_up: self.warm_up + other.warm_up,
            plans: sum(self.plans, other.plans),
            prepared: sum(self.prepared, other.prepared),
            params: sum(self.params, other.params),
            pipelines: sum(self.pipelines, other.pipelines),
            pipelines_kept: self.pipelines_kept + other.pipelines_kept,
            tuning: self.tuning + other.tuning,
            tuned: self.tuned + other.tuned,
            buffers: sum(self.buffers, other.buffers),
            buffers_made: self.buffers_made + other.buffers_made,
        }
    }

    /// What was counted after `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            steps: self.steps.saturating_sub(earlier.steps),
            dispatches: self.dispatches.saturating_sub(earlier.dispatches),
            record: self.record.saturating_sub(earlier.record),
            submit: self.submit.saturating_sub(earlier.submit),
            wait: self.wait.saturating_sub(earlier.wait),
            warm_up: self.warm_up.saturating_sub(earlier.warm_up),
            plans: self.plans.since(earlier.plans),
            prepared: self.prepared.since(earlier.prepared),
            params: self.params.since(earlier.params),
            pipelines: self.pipelines.since(earlier.pipelines),
            pipelines_kept: self.pipelines_kept.saturating_sub(earlier.pipelines_kept),
            tuning: self.tuning.saturating_sub(earlier.tuning),
            tuned: self.tuned.saturating_sub(earlier.tuned),
            buffers: self.buffers.since(earlier.buffers),
            buffers_made: self.buffers_made.saturating_sub(earlier.buffers_made),
        }
    }
}

/// A step by the GPU's clock.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepTimes {
    /// Its passes or its kernels, in the order of recording, as [`rwkv_gpu::Timing`] said.
    pub spans: Vec<TimedSpan>,
}

impl StepTimes {
    /// Adds what followed by another clock, from where this ends.
    pub(crate) fn append(&mut self, other: Self) {
        let end = self.spans.iter().map(|s| s.end).reduce(f64::max);
        let begin = other.spans.iter().map(|s| s.begin).reduce(f64::min);
        let shift = end.zip(begin).map_or(0.0, |(end, begin)| end - begin);
        self.spans
            .extend(other.spans.into_iter().map(|span| TimedSpan {
                begin: span.begin + shift,
                end: span.end + shift,
                ..span
            }));
    }

    /// Seconds from the first begin to the last end; 0 for a step without kernels.
    pub fn seconds(&self) -> f64 {
        let begin = self.spans.iter().map(|s| s.begin).reduce(f64::min);
        let end = self.spans.iter().map(|s| s.end).reduce(f64::max);
        begin
            .zip(end)
            .map_or(0.0, |(begin, end)| (end - begin).max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_lasts_from_its_first_begin_to_its_last_end() {
        #[track_caller]
        fn check(spans: &[(f64, f64)], want: f64) {
            let spans = spans.iter().map(|&(begin, end)| TimedSpan {
                name: String::new(),
                begin,
                end,
            });
            let seconds = StepTimes {
                spans: spans.collect(),
            }
            .seconds();
            assert!((seconds - want).abs() < 1e-12, "{seconds}, {want}");
        }
        check(&[], 0.0);
        check(&[(1.0, 1.5)], 0.5);
        check(&[(1.0, 1.5), (1.25, 3.0), (1.5, 2.0)], 2.0);
        // A clock that runs backwards.
        check(&[(2.0, 1.0)], 0.0);
    }
}
