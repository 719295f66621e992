//! Timing kernels changes what they cost and nothing else; what was found is kept between runs.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod support;

use rwkv_gpu::{Gpu, OpenOptions};
use rwkv_kernels::tuning::VERSION;
use rwkv_sched::{Batch, Executor, GpuExecutor, LoadOptions, LoadStage, Model, SlotId, Wanted};
use std::{fs, path::Path, time::Duration};
use support::{
    feed, open,
    random_model::{Dimensions, Packing},
    relative_error, run, span,
};

/// Only the first few candidates.
const LIMIT: Duration = Duration::ZERO;

fn model() -> Model {
    let dimensions = Dimensions {
        version: rwkv_sched::Version::V7,
        layers: 2,
        heads: 2,
        head_size: 64,
        ffn: 512,
        vocab: 96,
        ranks: [32, 32, 32, 32],
    };
    dimensions.model(Packing::F16, 11)
}

fn gpu(folder: &Path) -> Gpu {
    open(&OpenOptions {
        cache_dir: Some(folder.to_path_buf()),
        ..OpenOptions::default()
    })
}

fn executor(model: &Model, gpu: &Gpu, slots: usize) -> GpuExecutor {
    let options = LoadOptions {
        slots,
        // By hand, with a limit of its own.
        tune: false,
        ..LoadOptions::default()
    };
    GpuExecutor::new(model, gpu, &options, &mut |_| {}).unwrap()
}

/// Tokens of two sequences, one by one and then together.
fn logits(executor: &mut GpuExecutor) -> Vec<f32> {
    let mut all: Vec<f32> = feed(executor, 0, &[3, 14, 15, 92], 1).concat();
    for token in [6, 5] {
        let spans = [0, 1].map(|slot| span(slot, &[token + slot], Wanted::Last));
        let batch = Batch {
            spans: spans.to_vec(),
        };
        all.extend(run(executor, &batch).concat());
    }
    all
}

#[test]
fn tuned() {
    let folder = tempfile::tempdir().unwrap();
    let (model, gpu) = (model(), gpu(folder.path()));
    let mut usual = executor(&model, &gpu, 2);
    let want = logits(&mut usual);
    assert_eq!(usual.stats().tuned, 0);

    let mut tuned = executor(&model, &gpu, 2);
    // What a sequence has seen is forgotten.
    feed(&mut tuned, 0, &[1, 2, 3], 1);
    let mut seen = Vec::new();
    let found = tuned
        .tune(LIMIT, &mut |progress| seen.push(progress))
        .unwrap();
    // The products of one stack and of one matrix, the head, the recurrence and, in F16, the channel mix's value.
    assert!(found >= 5, "{found} kernels");
    assert!(
        seen.iter()
            .all(|p| p.stage == LoadStage::Tuning && p.done <= p.total)
    );
    assert!(!seen.is_empty());
    let error = relative_error(&logits(&mut tuned), &want);
    assert!(error < 1e-4, "{error:e}");

    // The next run knows it all.
    let mut next = executor(&model, &gpu, 2);
    assert_eq!(next.stats().tuned, found as u64);
    assert_eq!(
        next.tune(LIMIT, &mut |_| panic!("nothing to time"))
            .unwrap(),
        0
    );
    tuned.reset(SlotId(0)).unwrap();
    tuned.reset(SlotId(1)).unwrap();
    // The order of atomic sums is another each time.
    let error = relative_error(&logits(&mut next), &logits(&mut tuned));
    assert!(error < 1e-6, "{error:e}");

    // But not what was damaged.
    let path = gpu
        .cache_file("tuner", VERSION)
        .unwrap()
        .with_extension("json");
    let kept = fs::read(&path).unwrap();
    fs::write(&path, &kept[..kept.len() / 2]).unwrap();
    assert_eq!(executor(&model, &gpu, 2).stats().tuned, 0);
}

/// Prompts are cut as measured fastest, and the next run knows it.
#[test]
fn chunks() {
    let folder = tempfile::tempdir().unwrap();
    let (model, gpu) = (model(), gpu(folder.path()));
    let tune = || {
        let mut executor = executor(&model, &gpu, 1);
        executor.set_longest_chunk(1024);
        let found = executor.tune(LIMIT, &mut |_| {}).unwrap();
        (executor, found)
    };
    let (mut first, found) = tune();
    let (chunk, tuned) = (first.chunk(), first.stats().tuned);
    assert!([256, 512, 1024].contains(&chunk), "{chunk}");
    assert!(found > 1, "{found}");
    let (mut next, again) = tune();
    assert_eq!((next.chunk(), again), (chunk, 0));
    assert!(next.stats().tuned <= tuned);
    // Slots are as they were.
    let mut usual = executor(&model, &gpu, 1);
    let want = feed(&mut usual, 0, &[3, 14, 15], 3).concat();
    for executor in [&mut first, &mut next] {
        let got = feed(executor, 0, &[3, 14, 15], 3).concat();
        assert!(relative_error(&got, &want) < 1e-4);
    }
    // Others than the longest one are chosen among.
    first.set_longest_chunk(256);
    assert_eq!(first.chunk(), 256);
}

/// Every sum has one order there.
#[test]
fn not_in_deterministic_mode() {
    let folder = tempfile::tempdir().unwrap();
    let (model, gpu) = (model(), gpu(folder.path()));
    let options = LoadOptions {
        deterministic: true,
        ..LoadOptions::default()
    };
    let mut executor = GpuExecutor::new(&model, &gpu, &options, &mut |_| {}).unwrap();
    assert_eq!(executor.tune(LIMIT, &mut |_| {}).unwrap(), 0);
}
