//! Steps by the thousand, whose shapes change all the time: memory stays flat, and no cache grows past its bound. In a
//! file of its own, since bytes are those of the whole process and of everything on an opened GPU.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "tests fail by panicking; sizes are small"
)]

mod support;

use rwkv_gpu::{Gpu, OpenOptions};
use rwkv_sched::{
    Batch, BatchSpan, Decoding, Executor, GpuExecutor, SlotId, State, Version, Wanted,
    WeightsDType,
    sampling::{Sampler, SamplerParams},
};
use std::{ops::ControlFlow, time::Instant};
use support::{
    on_gpu, open,
    random_model::{Dimensions, Packing, Random},
    span,
};

const SLOTS: usize = 6;

/// Plans that are kept at most, and blocks of parameters.
const MOST_KEPT: [usize; 2] = [64, 4096];

/// Sequences that come and go.
struct Traffic {
    executor: GpuExecutor,
    random: Random,
    vocab: usize,
    /// By slot; those that have ended are gone.
    sequences: Vec<Option<Decoding>>,
    /// Of one that has left and may come back.
    saved: Option<State>,
    steps: u64,
}

impl Traffic {
    fn new(gpu: &Gpu) -> Self {
        let dimensions = Dimensions {
            version: Version::V7,
            layers: 1,
            heads: 1,
            head_size: 32,
            ffn: 64,
            vocab: 61,
            ranks: [8, 8, 8, 8],
        };
        let model = dimensions.model(Packing::Mixed, 11);
        Self {
            executor: on_gpu(&model, SLOTS, gpu, WeightsDType::F16),
            random: Random::new(12),
            vocab: dimensions.vocab,
            sequences: (0..SLOTS).map(|_| None).collect(),
            saved: None,
            steps: 0,
        }
    }

    /// Something happens: mostly, those that are there are decoded for a while.
    fn go_on(&mut self) {
        match self.random.below(10) {
            0 => self.join(),
            1 => self.leave(),
            2..5 => self.prompts(),
            _ => self.decode(),
        }
    }

    /// A sequence begins, now and then where another one was left.
    fn join(&mut self) {
        let Some(slot) = self.sequences.iter().position(Option::is_none) else {
            return;
        };
        let id = SlotId(slot as u32);
        match self.saved.take() {
            Some(state) => self.executor.set_state(id, &state).unwrap(),
            None => self.executor.reset(id).unwrap(),
        }
        // Seldom one of more than a small plan's tokens.
        let most = [40, 40, 100, 300][self.random.below(4)];
        let batch = Batch::single(id, &self.random.prompt(most, self.vocab), Wanted::Last);
        self.run(&batch);
        let params = SamplerParams {
            temperature: [0.0, 1.0][self.random.below(2)],
            ..SamplerParams::default()
        };
        self.sequences[slot] = Some(Decoding {
            slot: id,
            token: self.random.below(self.vocab) as u32,
            sampler: Sampler::new(params).unwrap(),
        });
    }

    fn leave(&mut self) {
        let slot = self.random.below(SLOTS);
        if self.sequences[slot].take().is_some() && self.random.below(2) == 0 {
            let state = self.executor.state(SlotId(slot as u32)).unwrap();
            self.saved = Some(state);
        }
    }

    /// Some sequences are told more, each as much as it is.
    fn prompts(&mut self) {
        let mut spans: Vec<BatchSpan> = Vec::new();
        for slot in 0..SLOTS as u32 {
            if self.random.below(3) == 0 {
                let wanted = [Wanted::None, Wanted::Last, Wanted::All][self.random.below(3)];
                spans.push(span(slot, &self.random.prompt(50, self.vocab), wanted));
            }
        }
        self.random.shuffle(&mut spans);
        if !spans.is_empty() {
            self.run(&Batch { spans });
        }
    }

    fn run(&mut self, batch: &Batch) {
        self.executor.run(batch).unwrap();
        self.steps += 1;
    }

    /// Those that are there, or some of them, for up to 24 steps, which may break off.
    fn decode(&mut self) {
        let all = self.random.below(4) > 0;
        let mut chosen: Vec<usize> = (0..SLOTS)
            .filter(|&slot| self.sequences[slot].is_some())
            .collect();
        if !all {
            chosen.retain(|_| self.random.below(2) == 0);
        }
        let mut some: Vec<Decoding> = chosen
            .iter()
            .filter_map(|&slot| self.sequences[slot].take())
            .collect();
        if some.is_empty() {
            return self.join();
        }
        let steps = 1 + self.random.below(24);
        let until = self.random.below(2 * steps);
        let mut taken = 0;
        let take = &mut |_: &[u32]| {
            taken += 1;
            if taken > until {
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        };
        self.executor
            .decode(&mut some, steps, &|_| true, take)
            .unwrap();
        self.steps += taken as u64;
        for (slot, sequence) in chosen.into_iter().zip(some) {
            self.sequences[slot] = Some(sequence);
        }
    }
}

/// What must not grow.
#[derive(Clone, Copy, Debug, Default)]
struct Memory {
    /// Of buffers.
    gpu: u64,
    /// What the allocator has of the driver.
    reserved: u64,
    /// Of the process's own, where the system tells.
    host: u64,
}

impl Memory {
    fn now(gpu: &Gpu) -> Self {
        Self {
            gpu: gpu.memory().in_use,
            reserved: gpu.reserved_bytes().unwrap_or(0),
            host: private_bytes().unwrap_or(0),
        }
    }

    fn max(self, other: Self) -> Self {
        Self {
            gpu: self.gpu.max(other.gpu),
            reserved: self.reserved.max(other.reserved),
            host: self.host.max(other.host),
        }
    }
}

/// `RssAnon` of Linux's proc(5).
fn private_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes << 10)
}

/// `steps` steps: the second half takes no more memory than the first did, but for a quarter and for `slack` bytes of the
/// host's, since shapes of batches are drawn at random and the largest may come late.
fn endure(steps: u64, slack: u64) {
    // Steps are fast where shaders do not check.
    let gpu = open(&OpenOptions::default());
    let mut traffic = Traffic::new(&gpu);
    let (start, half, mut next) = (Instant::now(), steps / 2, 0);
    let mut told = steps / 10;
    let [mut before, mut after] = [Memory::default(); 2];
    let mut largest_kept = [0, 0];
    while traffic.steps < steps {
        traffic.go_on();
        if traffic.steps < next {
            continue;
        }
        next = traffic.steps + steps / 200;
        let now = Memory::now(&gpu);
        if traffic.steps <= half {
            before = before.max(now);
        } else {
            after = after.max(now);
        }
        let kept = traffic.executor.kept();
        for (largest, (kept, most)) in largest_kept.iter_mut().zip(kept.into_iter().zip(MOST_KEPT))
        {
            assert!(
                kept <= most,
                "{kept} of {most} after {} steps",
                traffic.steps
            );
            *largest = kept.max(*largest);
        }
        if traffic.steps >= told {
            told += steps / 10;
            let rate = traffic.steps as f64 / start.elapsed().as_secs_f64();
            println!(
                "{} steps, {rate:.0} a second: {now:?}; kept {kept:?} of {MOST_KEPT:?}",
                traffic.steps
            );
        }
    }
    let stats = traffic.executor.stats();
    println!(
        "{} steps in {:.0?}: {before:?}, then {after:?}; kept {largest_kept:?}; {stats:?}",
        traffic.steps,
        start.elapsed()
    );
    // Plans went and came.
    assert!(largest_kept[0] == MOST_KEPT[0] && stats.plans.misses > 2 * MOST_KEPT[0] as u64);
    assert!(
        before.gpu > 0 && after.gpu <= before.gpu + before.gpu / 4,
        "{before:?}, {after:?}"
    );
    assert!(
        after.reserved <= before.reserved + before.reserved / 4,
        "{before:?}, {after:?}"
    );
    assert!(after.host <= before.host + slack, "{before:?}, {after:?}");
    // All that sequences were told they have: the executor works on as a new one does.
    drop(traffic);
    assert_eq!(gpu.memory().in_use, 0);
}

#[test]
fn a_few_thousand_steps() {
    endure(4_000, 24 << 20);
}

/// A day's worth, or `STEPS` steps: a million take hours on a software adapter.
#[test]
#[ignore = "hours on a software adapter"]
fn a_million_steps() {
    let steps = std::env::var("STEPS").ok();
    endure(
        steps.map_or(1_000_000, |steps| steps.parse().unwrap()),
        24 << 20,
    );
}
