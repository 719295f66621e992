//! Memory that does not suffice, from the check before anything is loaded to the last buffer; and devices that are lost.
//!
//! Each test opens the adapter for itself: bytes in use are those of everything on an opened GPU.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use rwkv_gpu::{Gpu, Kind};
use rwkv_kernels::Kernels;
use rwkv_sched::{
    Batch, Error, Executor, GpuExecutor, LoadOptions, Model, Quantization, Shortfall, SlotId,
    Version, Wanted,
};
use support::{
    decoding::{decoded_alone, seeded},
    feed, gpus, own_gpu,
    random_model::{Dimensions, Packing, Random},
    relative_error, run, span,
};

fn dimensions(version: Version) -> Dimensions {
    Dimensions {
        version,
        layers: 2,
        heads: 4,
        head_size: 32,
        ffn: 256,
        vocab: 300,
        ranks: [16, 16, 16, 32],
    }
}

fn load(model: &Model, gpu: &Gpu, options: &LoadOptions) -> rwkv_sched::Result<GpuExecutor> {
    GpuExecutor::new(model, gpu, options, &mut |_| {})
}

fn unchecked() -> LoadOptions {
    LoadOptions {
        check_memory: false,
        ..LoadOptions::default()
    }
}

/// What was being made, its bytes and those in use.
fn exhausted(error: &Error) -> (&str, u64, u64) {
    let gpu = match error {
        Error::Gpu(error) | Error::Kernel(rwkv_kernels::Error::Gpu(error)) => error,
        other => panic!("{other}"),
    };
    match gpu {
        rwkv_gpu::Error::OutOfMemory {
            what,
            bytes: Some(bytes),
            in_use,
            limit: Some(_),
        } => (what, *bytes, *in_use),
        other => panic!("{other}"),
    }
}

/// Logits of a few steps with a prompt.
fn logits(executor: &mut dyn Executor) -> Vec<f32> {
    executor.reset(SlotId(0)).unwrap();
    let tokens = Random::new(9).tokens(40, 300);
    let rows = feed(executor, 0, &tokens[..38], 38).into_iter();
    rows.chain(feed(executor, 0, &tokens[38..], 1))
        .flatten()
        .collect()
}

/// Each limit lets one more allocation succeed than the one before. Whichever fails, the error names it, nothing stays, and
/// in the end the model is loaded in the same process.
#[test]
fn every_allocation_may_fail() {
    for version in [Version::V7, Version::V6, Version::V4] {
        let model = dimensions(version).model(Packing::Mixed, 3);
        let gpu = own_gpu();
        let mut wanted = load(&model, &gpu, &unchecked()).unwrap();
        let want = logits(&mut wanted);
        drop(wanted);
        gpu.finish().unwrap();
        let allocated = || {
            let report = gpu.device().generate_allocator_report();
            report.map(|r| r.total_allocated_bytes)
        };
        let nothing = allocated();
        let mut limit = 0;
        let mut refused = Vec::new();
        let mut executor = loop {
            gpu.set_memory_limit(Some(limit));
            let error = match load(&model, &gpu, &unchecked()) {
                Ok(executor) => break executor,
                Err(error) => error,
            };
            let (what, bytes, in_use) = exhausted(&error);
            assert!(bytes + in_use > limit, "{error}");
            let text = error.to_string();
            assert!(!text.contains('\n') && text.contains(what), "{text}");
            refused.push(what.to_owned());
            assert_eq!(gpu.memory().in_use, 0, "{error}");
            // Nor does the driver have anything left of it.
            assert_eq!(allocated(), nothing, "{error}");
            limit = bytes + in_use;
        };
        // Every matrix alone or in a stack, the vectors, states and activations.
        for part in [
            "Head",
            "Embedding",
            "FfnValue",
            "wkv state of layer 1",
            "shift state",
            "results",
        ] {
            assert!(
                refused.iter().any(|what| what.contains(part)),
                "{part} of {refused:?}"
            );
        }
        let buffers = gpu.counts().buffers;
        assert!(refused.len() > 30, "{refused:?} of {buffers}");
        gpu.set_memory_limit(None);
        assert_eq!(logits(&mut executor), want, "{version}");
        drop(executor);
        assert_eq!(gpu.memory().in_use, 0);
        let mut again = load(&model, &gpu, &LoadOptions::default()).unwrap();
        assert_eq!(logits(&mut again), want, "{version}");
    }
}

/// What is refused before anything is loaded.
#[track_caller]
fn shortfall(model: &Model, gpu: &Gpu, options: &LoadOptions) -> Shortfall {
    let buffers = gpu.counts().buffers;
    let error = load(model, gpu, options).err();
    assert_eq!(gpu.counts().buffers, buffers, "no buffer was made");
    match error {
        Some(Error::DoesNotFit(shortfall)) => *shortfall,
        other => panic!("{other:?}"),
    }
}

/// A model loads and runs within what it is said to need, and is refused with a byte less; the estimate is hardly
/// more than what is taken.
#[test]
fn what_is_said_to_fit_fits() {
    for version in [Version::V7, Version::V6, Version::V4] {
        for (packing, slots) in [(Packing::F16, 1), (Packing::Q8_0, 3)] {
            let dimensions = Dimensions {
                ffn: 1024,
                vocab: 3000,
                ..dimensions(version)
            };
            let model = dimensions.model(packing, 3);
            let options = LoadOptions {
                slots,
                ..LoadOptions::default()
            };
            let gpu = own_gpu();
            gpu.set_memory_limit(Some(0));
            let short = shortfall(&model, &gpu, &options);
            let needed = short.needed();
            assert_eq!((short.missing(), short.fewer_slots), (needed, None));
            assert!(short.limited && short.quantization.is_none(), "{short}");
            gpu.set_memory_limit(Some(needed - 1));
            let short = shortfall(&model, &gpu, &options);
            assert_eq!((short.missing(), short.needed()), (1, needed));
            assert_eq!(short.fewer_slots, (slots > 1).then_some(slots - 1));
            gpu.set_memory_limit(Some(needed));
            let mut executor = load(&model, &gpu, &options).unwrap();
            let tokens = Random::new(1).tokens(600, dimensions.vocab);
            for part in tokens.chunks(executor.chunk()) {
                run(&mut executor, &Batch::single(SlotId(0), part, Wanted::Last));
            }
            let all = (0u32..)
                .take(slots)
                .map(|slot| span(slot, &[1], Wanted::Last));
            run(
                &mut executor,
                &Batch {
                    spans: all.collect(),
                },
            );
            let peak = gpu.memory().peak;
            // Partial sums are counted at their most, which small models do not take; on a hardware GPU they take some.
            let own = (needed - Kernels::MOST_SCRATCH_BYTES) as f64 / peak as f64;
            let least = if gpu.kind() == Kind::Software {
                0.8
            } else {
                0.0
            };
            assert!(
                peak <= needed && (least..1.2).contains(&own),
                "{version} {packing:?}: {needed} said, {peak} taken, {own}"
            );
        }
    }
}

/// What is offered fits too.
#[test]
fn offers_fit() {
    let dimensions = Dimensions {
        heads: 8,
        ffn: 1024,
        vocab: 2000,
        ..dimensions(Version::V7)
    };
    let model = dimensions.model(Packing::F16, 3);
    let gpu = own_gpu();
    gpu.set_memory_limit(Some(1));
    let options = LoadOptions {
        slots: 8,
        ..LoadOptions::default()
    };
    let all = shortfall(&model, &gpu, &options);
    let mut offered = Vec::new();
    for percent in (5..80).rev().step_by(5) {
        let limit = all.needed() - all.weights / 100 * percent;
        gpu.set_memory_limit(Some(limit));
        let short = shortfall(&model, &gpu, &options);
        if let Some((weight_type, needed)) = short.quantization {
            assert!(needed <= limit, "{short}");
            offered.push(weight_type.name());
            let quantized = LoadOptions {
                quantization: Some(Quantization::from(weight_type)),
                ..options.clone()
            };
            load(&model, &gpu, &quantized).unwrap();
        }
        if let Some(slots) = short.fewer_slots {
            let fewer = LoadOptions {
                slots,
                ..options.clone()
            };
            load(&model, &gpu, &fewer).unwrap();
        }
        assert_eq!(gpu.memory().in_use, 0);
    }
    offered.dedup();
    assert!(
        offered.len() >= 3 && offered.ends_with(&["q8_0"]),
        "{offered:?}"
    );
}

/// Loading and dropping a model returns all its memory, and so does what it runs.
#[test]
fn flat() {
    let model = dimensions(Version::V7).model(Packing::F16, 3);
    let gpu = own_gpu();
    let settle = || {
        gpu.finish().unwrap();
        let report = gpu.device().generate_allocator_report();
        report.map(|r| (r.total_allocated_bytes, r.total_reserved_bytes))
    };
    let mut first = None;
    for round in 0..50 {
        let mut executor = load(&model, &gpu, &LoadOptions::default()).unwrap();
        logits(&mut executor);
        decoded_alone(&mut executor, seeded(7), 3, None);
        drop(executor);
        assert_eq!(gpu.memory().in_use, 0, "round {round}");
        let now = settle();
        // What wgpu keeps for itself is there after a few rounds.
        if round == 5 {
            first = now;
        } else if round > 5 {
            assert_eq!(now, first, "round {round}");
        }
    }
}

/// Where there is no memory for running ahead of the caller, the host samples, and gets the same.
#[test]
fn decoding_needs_no_more() {
    let model = dimensions(Version::V7).model(Packing::F16, 3);
    let gpu = own_gpu();
    let mut decoded = [false, true].map(|limited| {
        let mut executor = load(&model, &gpu, &LoadOptions::default()).unwrap();
        logits(&mut executor);
        let before = gpu.memory().in_use;
        gpu.set_memory_limit(limited.then_some(before));
        let tokens = decoded_alone(&mut executor, seeded(7), 20, None);
        // Without a limit, copies and the sampler's buffers came.
        assert_eq!(gpu.memory().in_use > before, !limited);
        gpu.set_memory_limit(None);
        (tokens, logits(&mut executor))
    });
    let (ahead, host) = decoded.split_at_mut(1);
    assert_eq!(ahead, host);
}

/// A prompt that there is no memory for, not even in pieces, fails and changes nothing; shorter ones go on.
#[test]
fn prompts_that_do_not_fit() {
    let model = dimensions(Version::V7).model(Packing::F16, 3);
    let gpu = own_gpu();
    let want = logits(&mut load(&model, &gpu, &LoadOptions::default()).unwrap());
    let mut executor = load(&model, &gpu, &LoadOptions::default()).unwrap();
    let token = Batch::single(SlotId(0), &[3], Wanted::Last);
    run(&mut executor, &token);
    let state = executor.state(SlotId(0)).unwrap();
    gpu.set_memory_limit(Some(gpu.memory().in_use));
    let tokens = Random::new(1).tokens(20_000, 300);
    let long = Batch::single(SlotId(0), &tokens, Wanted::Last);
    let error = executor.run(&long).unwrap_err();
    exhausted(&error);
    gpu.set_memory_limit(None);
    assert!(executor.state(SlotId(0)).unwrap() == state);
    assert_eq!(logits(&mut executor), want);
}

/// A lost device is an error for whoever uses it, and the model is loaded again in the same process.
#[test]
fn a_lost_device() {
    let model = dimensions(Version::V7).model(Packing::F16, 3);
    let lost_gpu = own_gpu();
    let mut executor = load(&model, &lost_gpu, &LoadOptions::default()).unwrap();
    let want = logits(&mut executor);
    lost_gpu.lose();
    let check = |error: Option<Error>| {
        let text = error.unwrap().to_string();
        assert!(text.contains("lost") && !text.contains('\n'), "{text}");
    };
    for _ in 0..2 {
        check(
            executor
                .run(&Batch::single(SlotId(0), &[1], Wanted::Last))
                .err(),
        );
        check(executor.state(SlotId(0)).err());
        check(executor.reset(SlotId(0)).err());
        check(load(&model, &lost_gpu, &LoadOptions::default()).err());
    }
    drop(executor);
    assert_eq!(lost_gpu.memory().in_use, 0);
    drop(lost_gpu);
    let mut again = load(&model, &own_gpu(), &LoadOptions::default()).unwrap();
    assert!(relative_error(&logits(&mut again), &want) < 1e-6);
    // Those of other tests are other devices.
    assert!(gpus()[0].gpu.check().is_ok());
}
