//! What an engine counts.

use crate::ExecutorStats;
use std::time::Duration;

/// An engine at some moment: what there is now, and counts since it was spawned, which only grow.
#[derive(Clone, Copy, Debug, Default)]
pub struct EngineStats {
    /// Requests that wait for a slot.
    pub waiting: usize,
    /// Requests that have one.
    pub running: usize,
    /// Sessions, idle ones too.
    pub sessions: usize,
    /// Slots that hold a session's state, idle ones too.
    pub slots_used: usize,
    /// Requests that were taken in.
    pub requests: u64,
    /// Requests that came to their end.
    pub finished: u64,
    /// Requests that nobody read to their end.
    pub cancelled: u64,
    /// Requests that ended with an error.
    pub failed: u64,
    /// Steps that held prompts.
    pub chunks: u64,
    /// Tokens that those fed.
    pub prompt_tokens: u64,
    /// Steps that made a token for each sequence they held.
    pub token_steps: u64,
    /// Sequences of those steps, added up.
    pub batched: u64,
    /// Tokens that were handed out.
    pub tokens: u64,
    /// States that were read from a slot to the host.
    pub states_read: u64,
    /// States that were written from the host to a slot.
    pub states_written: u64,
    /// Sessions whose slot another one got.
    pub evictions: u64,
    /// Running requests that had to give their slot away.
    pub pauses: u64,
    /// Sequences that had run past what was read of them.
    pub undone: u64,
    /// Prompts that were looked up in the prefix cache, and those of which it knew a part.
    pub cache_lookups: u64,
    /// See there.
    pub cache_hits: u64,
    /// Of those, whose state had to be read from the store.
    pub cache_reads: u64,
    /// Tokens that need not be fed because of that.
    pub cached_tokens: u64,
    /// Switches from one blend of adapters to another.
    pub blend_switches: u64,
    /// Time in steps, by the host's clock.
    pub step_time: Duration,
    /// Time the GPU computed, by its own clock, where that was asked for ([`EngineOptions::gpu_clock`]).
    ///
    /// [`EngineOptions::gpu_clock`]: super::EngineOptions::gpu_clock
    pub gpu_time: Duration,
    /// What the executor counted.
    pub executor: ExecutorStats,
}

/// One of the counts.
type Count = fn(&EngineStats) -> u64;

/// Counts by the names that `metrics` has them under.
const COUNTERS: [(&str, Count); 19] = [
    ("rwkv_requests", |s| s.requests),
    ("rwkv_requests_finished", |s| s.finished),
    ("rwkv_requests_cancelled", |s| s.cancelled),
    ("rwkv_requests_failed", |s| s.failed),
    ("rwkv_chunks", |s| s.chunks),
    ("rwkv_prompt_tokens", |s| s.prompt_tokens),
    ("rwkv_token_steps", |s| s.token_steps),
    ("rwkv_batched", |s| s.batched),
    ("rwkv_tokens", |s| s.tokens),
    ("rwkv_evictions", |s| s.evictions),
    ("rwkv_pauses", |s| s.pauses),
    ("rwkv_cache_lookups", |s| s.cache_lookups),
    ("rwkv_cache_hits", |s| s.cache_hits),
    ("rwkv_cache_reads", |s| s.cache_reads),
    ("rwkv_cached_tokens", |s| s.cached_tokens),
    ("rwkv_steps_prepared", |s| s.executor.prepared.hits),
    ("rwkv_steps_not_prepared", |s| s.executor.prepared.misses),
    ("rwkv_step_microseconds", |s| microseconds(s.step_time)),
    ("rwkv_gpu_microseconds", |s| microseconds(s.gpu_time)),
];

fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl EngineStats {
    /// Sequences of a step that made tokens, on average.
    pub fn mean_batch(&self) -> f64 {
        self.batched as f64 / self.token_steps.max(1) as f64
    }

    /// Tells `metrics` what has changed since `earlier`.
    pub(super) fn report(&self, earlier: &Self) {
        for (name, count) in COUNTERS {
            let more = count(self).saturating_sub(count(earlier));
            if more > 0 {
                metrics::counter!(name).increment(more);
            }
        }
        metrics::gauge!("rwkv_waiting").set(self.waiting as f64);
        metrics::gauge!("rwkv_running").set(self.running as f64);
    }
}
