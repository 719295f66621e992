//! What a run of `bench` tells: plain data, made from what was measured.

use super::{
    copy_bandwidth::Copy,
    kernels::{self, KernelTime},
    measure::{Measured, Workload},
    spread::Spread,
};
use rwkv_gpu::CacheCounts;
use rwkv_sched::{Executor, ExecutorStats, ModelConfig, WeightReads};
use serde::Serialize;
use std::time::Duration;

/// Everything. What was not or could not be measured is `null`.
#[derive(Serialize)]
pub(super) struct Report {
    pub(super) program: &'static str,
    /// Made for debugging: its times mean little.
    pub(super) debug_build: bool,
    pub(super) model: Model,
    pub(super) device: DeviceInfo,
    /// Rounds that were measured, after a warm-up.
    pub(super) repeat: u32,
    /// Without tuning.
    pub(super) load_seconds: f64,
    /// Part of loading; absent on the processor.
    pub(super) pipelines: Option<Pipelines>,
    pub(super) host_memory: HostMemory,
    pub(super) device_memory: DeviceMemory,
    pub(super) copy: Option<Copy>,
    pub(super) workloads: Vec<WorkloadReport>,
    /// Over the whole run; absent on the processor.
    pub(super) caches: Option<Caches>,
}

#[derive(Serialize)]
pub(super) struct Model {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) layers: usize,
    pub(super) width: usize,
    pub(super) vocab: usize,
    /// As `--quant` was written.
    pub(super) quant: Option<String>,
    /// Bytes that a step reads whatever its tokens, more for each token (a row of the embedding), and more where logits
    /// are wanted (the head).
    pub(super) step_bytes: u64,
    pub(super) token_bytes: u64,
    pub(super) head_bytes: u64,
}

#[derive(Serialize)]
pub(super) struct DeviceInfo {
    pub(super) name: String,
    pub(super) backend: Option<String>,
    pub(super) driver: Option<String>,
    /// Shaders check bounds, which slows them down.
    pub(super) checks: bool,
}

/// What the first steps launch, compiled before they come.
#[derive(Serialize)]
pub(super) struct Pipelines {
    pub(super) seconds: f64,
    pub(super) compiled: u64,
    /// Of those, which an earlier run had kept on disk.
    pub(super) kept: u64,
    /// Kernels whose cut was measured, now or in an earlier run, and the seconds that went into it now.
    pub(super) tuned_kernels: u64,
    pub(super) tuning_seconds: f64,
}

#[derive(Serialize)]
pub(super) struct HostMemory {
    /// The most that was resident, mapped files too.
    pub(super) peak_resident_bytes: Option<u64>,
    /// The most that was seen of the process's own, while loading and after each workload.
    pub(super) peak_private_bytes: Option<u64>,
}

#[derive(Serialize)]
pub(super) struct DeviceMemory {
    /// Weights, states and activations.
    pub(super) used_bytes: u64,
    /// What the allocator has taken from the driver.
    pub(super) reserved_bytes: Option<u64>,
}

/// One workload.
#[derive(Serialize)]
pub(super) struct WorkloadReport {
    /// `prefill` or `decode`.
    pub(super) name: &'static str,
    /// Sequences at once.
    pub(super) batch: u32,
    /// Of one round, all sequences together.
    pub(super) tokens: u64,
    /// Of one round.
    pub(super) steps: u64,
    pub(super) tokens_per_second: Option<Spread>,
    pub(super) weight_bytes_per_token: f64,
    pub(super) weight_bytes_per_second: Option<f64>,
    pub(super) share_of_copy_bandwidth: Option<f64>,
    /// By the GPU's clock.
    pub(super) gpu_microseconds_per_token: Option<f64>,
    /// From 0 to 1: the GPU's time by its own clock over the host's, in the round that takes timestamps.
    pub(super) gpu_busy: Option<f64>,
    /// Absent on the processor.
    pub(super) launches: Option<Launches>,
    pub(super) kernels: Option<Vec<KernelTime>>,
}

/// What the host does for the GPU.
#[derive(Serialize)]
pub(super) struct Launches {
    pub(super) dispatches: u64,
    pub(super) dispatches_per_token: f64,
    pub(super) record_microseconds_per_token: f64,
    pub(super) submit_microseconds_per_token: f64,
    pub(super) wait_microseconds_per_token: f64,
    /// What is left: choosing the next token, checking the batch, copying logits, and layers that run on the CPU.
    pub(super) rest_microseconds_per_token: f64,
    /// In all measured rounds.
    pub(super) buffers_made_after_warm_up: u64,
}

#[derive(Serialize)]
pub(super) struct Caches {
    pub(super) plans: Cache,
    pub(super) parameters: Cache,
    pub(super) pipelines: Cache,
    pub(super) buffer_pool: Cache,
}

#[derive(Serialize)]
pub(super) struct Cache {
    pub(super) hits: u64,
    pub(super) misses: u64,
    /// From 0 to 1.
    pub(super) hit_rate: Option<f64>,
    /// The same in all measured rounds; absent where they asked for nothing.
    pub(super) hit_rate_after_warm_up: Option<f64>,
}

impl Model {
    pub(super) fn of(
        name: String,
        config: &ModelConfig,
        quant: Option<String>,
        reads: WeightReads,
    ) -> Self {
        Self {
            name,
            version: config.version.to_string(),
            layers: config.layers,
            width: config.width,
            vocab: config.vocab,
            quant,
            step_bytes: reads.step,
            token_bytes: reads.token,
            head_bytes: reads.outputs,
        }
    }
}

impl Pipelines {
    /// From what an executor tells right after it was made.
    pub(super) fn of(stats: &ExecutorStats) -> Option<Self> {
        (stats.pipelines.misses > 0).then_some(Self {
            seconds: stats.warm_up.as_secs_f64(),
            compiled: stats.pipelines.misses,
            kept: stats.pipelines_kept,
            tuned_kernels: stats.tuned,
            tuning_seconds: stats.tuning.as_secs_f64(),
        })
    }
}

impl WorkloadReport {
    /// What `measured` says of `workload` on an executor.
    pub(super) fn of(
        workload: Workload,
        measured: &Measured,
        reads: WeightReads,
        executor: &dyn Executor,
    ) -> Self {
        let tokens = workload.tokens();
        let (steps, with_logits) = workload.steps(executor.chunk());
        let seconds = measured.rounds.iter().map(|r| r.elapsed.as_secs_f64());
        let speed = Spread::of(seconds.map(|s| tokens as f64 / s));
        // A step with logits reads the head too; the tokens' own rows are the same however they are cut into steps.
        let round_bytes = (steps - with_logits) * reads.bytes(0, false)
            + with_logits * reads.bytes(0, true)
            + tokens * reads.token;
        let per_token = round_bytes as f64 / tokens as f64;
        let gpu = measured.passes.as_ref().map(|round| {
            let seconds: f64 = round.times.iter().map(rwkv_sched::StepTimes::seconds).sum();
            seconds / tokens as f64
        });
        // Devices with some layers each could all be busy all the time.
        let stages = executor.stages().max(1) as f64;
        // Nothing was timed where there are no passes, or the clock stood still.
        let gpu = gpu.filter(|seconds| *seconds > 0.0);
        let host = measured.passes.as_ref();
        let host = host.map(|round| round.elapsed.as_secs_f64() / tokens as f64);
        let (name, batch) = match workload {
            Workload::Prefill { prompts, .. } => ("prefill", prompts),
            Workload::Decode { batch, .. } => ("decode", batch),
        };
        Self {
            name,
            batch,
            tokens,
            steps,
            tokens_per_second: speed,
            weight_bytes_per_token: per_token,
            weight_bytes_per_second: speed.map(|s| s.median * per_token),
            share_of_copy_bandwidth: None,
            gpu_microseconds_per_token: gpu.map(|s| s * 1e6),
            gpu_busy: gpu.zip(host).map(|(gpu, host)| gpu / host / stages),
            launches: Launches::of(measured, tokens),
            kernels: measured
                .kernels
                .as_ref()
                .map(|round| kernels::table(&round.times)),
        }
    }

    /// As a title.
    pub(super) fn title(&self) -> String {
        match self.name {
            "prefill" if self.batch == 1 => format!("prefill {}", self.tokens),
            "prefill" => {
                let each = self.tokens / u64::from(self.batch.max(1));
                format!("prefill {} × {each}", self.batch)
            }
            name => format!("{name} × {}", self.batch),
        }
    }

    /// Relates the weights that were read to a copy's bytes a second.
    pub(super) fn relate(&mut self, copy: Option<&Copy>) {
        self.share_of_copy_bandwidth = self
            .weight_bytes_per_second
            .zip(copy)
            .map(|(read, copy)| read / copy.bytes_per_second);
    }
}

impl Launches {
    fn of(measured: &Measured, tokens: u64) -> Option<Self> {
        let mut all = ExecutorStats::default();
        let mut elapsed = Duration::ZERO;
        for round in &measured.rounds {
            all.steps += round.stats.steps;
            all.dispatches += round.stats.dispatches;
            all.record += round.stats.record;
            all.submit += round.stats.submit;
            all.wait += round.stats.wait;
            all.buffers_made += round.stats.buffers_made;
            elapsed += round.elapsed;
        }
        if all.steps == 0 {
            return None;
        }
        let rounds = measured.rounds.len() as u64;
        let counted = (rounds * tokens) as f64;
        let micros = |time: Duration| time.as_secs_f64() * 1e6 / counted;
        let rest = elapsed.saturating_sub(all.record + all.submit + all.wait);
        Some(Self {
            dispatches: all.dispatches / rounds,
            dispatches_per_token: all.dispatches as f64 / counted,
            record_microseconds_per_token: micros(all.record),
            submit_microseconds_per_token: micros(all.submit),
            wait_microseconds_per_token: micros(all.wait),
            rest_microseconds_per_token: micros(rest),
            buffers_made_after_warm_up: all.buffers_made,
        })
    }
}

impl Caches {
    /// Those of an executor that has counted `stats`, of which `rounds` in those that were measured.
    pub(super) fn of(stats: &ExecutorStats, rounds: &[ExecutorStats]) -> Option<Self> {
        let cache = |counts: fn(&ExecutorStats) -> CacheCounts| {
            let mut warm = CacheCounts::default();
            for round in rounds.iter().map(counts) {
                warm.hits += round.hits;
                warm.misses += round.misses;
            }
            let all = counts(stats);
            Cache {
                hits: all.hits,
                misses: all.misses,
                hit_rate: all.rate(),
                hit_rate_after_warm_up: warm.rate(),
            }
        };
        (stats.steps > 0).then(|| Self {
            plans: cache(|stats| stats.plans),
            parameters: cache(|stats| stats.params),
            pipelines: cache(|stats| stats.pipelines),
            buffer_pool: cache(|stats| stats.buffers),
        })
    }
}
