//! Memory for prompts: it comes with them and goes again, and where it is missing they run in pieces.
//!
//! Each test opens the adapter for itself: bytes in use are those of everything on an opened GPU.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use rwkv_gpu::Gpu;
use rwkv_sched::{
    Batch, Burst, Decoding, Device, DeviceMemory, Error, Executor, GpuExecutor, LoadOptions,
    Logits, Model, SlotId, State, TokenId, Version, Wanted, WeightsDType, sampling::Sampler,
};
use std::ops::ControlFlow;
use support::{
    decoding::{decoded_alone, greedy, seeded},
    own_gpu,
    random_model::{Dimensions, Packing, Random},
    relative_error, run, span, split, states, states_error,
};

const VOCAB: usize = 300;
const CHUNK: usize = 1024;

/// After so many steps more tokens are tried again.
const PATIENCE: usize = 1024;

fn model(version: Version) -> Model {
    let dimensions = Dimensions {
        version,
        layers: 2,
        heads: 4,
        head_size: 32,
        ffn: 384,
        vocab: VOCAB,
        ranks: [16, 16, 16, 32],
    };
    dimensions.model(Packing::F16, 3)
}

fn load(model: &Model, gpu: &Gpu, slots: usize) -> GpuExecutor {
    let options = LoadOptions {
        slots,
        ..LoadOptions::default()
    };
    let mut executor = GpuExecutor::new(model, gpu, &options, &mut |_| {}).unwrap();
    executor.set_longest_chunk(CHUNK);
    executor
}

/// Spans of three slots.
fn batch(lengths: [usize; 3], wanted: [Wanted; 3]) -> Batch {
    let mut random = Random::new(8);
    let all = lengths.into_iter().zip(wanted);
    let spans = (0u32..).zip(all);
    let spans =
        spans.map(|(slot, (length, wanted))| span(slot, &random.tokens(length, VOCAB), wanted));
    Batch {
        spans: spans.collect(),
    }
}

fn is_exhausted(error: &Error) -> bool {
    let error = error.to_string();
    error.contains("memory") && !error.contains('\n')
}

/// A model that only decodes, or whose prompts are short, holds no memory for long ones; it comes with one, once, and goes
/// when none has come for long.
#[test]
fn it_comes_and_goes() {
    for version in [Version::V7, Version::V6, Version::V4] {
        let model = model(version);
        let gpu = own_gpu();
        let mut executor = load(&model, &gpu, 1);
        let rounding = !gpu.capabilities().cooperative_matrices.is_empty();
        let of = |tokens| {
            DeviceMemory::activations_of(&model, tokens, rounding)
                - DeviceMemory::activations_of(&model, 0, rounding)
        };
        let loaded = gpu.memory().in_use;
        let mut random = Random::new(4);
        let mut prompt = |executor: &mut GpuExecutor, tokens: usize| {
            let tokens = random.tokens(tokens, VOCAB);
            run(executor, &Batch::single(SlotId(0), &tokens, Wanted::Last));
            gpu.memory().in_use - loaded
        };
        decoded_alone(&mut executor, seeded(7), 20, None);
        let decoding = prompt(&mut executor, 1);
        assert!(decoding < of(256) / 4, "{version}: {decoding}");
        let short = [3, 40, 200, 256].map(|tokens| prompt(&mut executor, tokens));
        assert!(short[3] < of(256) * 3 / 2, "{version}: {short:?}");
        // Whatever their lengths, since there is room for all of them.
        assert!(short[3] - short[0] < of(256) / 8, "{version}: {short:?}");
        let long = [CHUNK, 700, 900, 600].map(|tokens| prompt(&mut executor, tokens));
        assert!(long[0] > of(CHUNK) * 3 / 4, "{version}: {long:?}");
        assert!(long[3] < of(CHUNK) * 3 / 2, "{version}: {long:?}");
        let pipelines = executor.stats().pipelines.misses;
        // As often as it takes.
        let after = (0..1100).map(|_| prompt(&mut executor, 1)).last().unwrap();
        assert!(after < of(256) / 2, "{version}: {after}, {short:?}");
        let again = prompt(&mut executor, CHUNK);
        assert!(
            again <= long[3] + long[3] / 8,
            "{version}: {again}, {long:?}"
        );
        assert_eq!(executor.stats().pipelines.misses, pipelines);
    }
}

/// What prompts need is compiled before they come.
#[test]
fn kernels_are_there_before() {
    for version in [Version::V7, Version::V6, Version::V4] {
        let mut executor = load(&model(version), &own_gpu(), 1);
        executor.set_longest_chunk(256);
        let before = executor.stats().pipelines.misses;
        let prompt = Random::new(4).tokens(executor.chunk(), VOCAB);
        run(
            &mut executor,
            &Batch::single(SlotId(0), &prompt, Wanted::Last),
        );
        assert_eq!(executor.stats().pipelines.misses, before, "{version}");
    }
}

/// What a batch made.
type Outcome = (Vec<f32>, Vec<State>);

fn outcome(executor: &mut dyn Executor, logits: &Logits) -> Outcome {
    (logits.rows().flatten().copied().collect(), states(executor))
}

#[track_caller]
fn check_alike(got: &Outcome, want: &Outcome, what: &str) {
    let errors = [
        relative_error(&got.0, &want.0),
        states_error(&got.1, &want.1),
    ];
    assert!(errors.iter().all(|e| *e < 1e-4), "{what}: {errors:?}");
}

/// However little memory there is, a batch makes what it would make, or fails and changes nothing. Chunks get shorter where
/// steps as they come all the time do not fit.
#[test]
fn batches_in_pieces() {
    use Wanted::{All, Last};
    for version in [Version::V7, Version::V4] {
        let model = model(version);
        for (wanted, is_usual) in [
            ([Last, Wanted::None, Last], true),
            ([Last, Wanted::None, All], false),
        ] {
            let batch = batch([100, 20, 280], wanted);
            let gpu = own_gpu();
            let mut executor = load(&model, &gpu, 3);
            let nothing = states(&mut executor);
            let loaded = gpu.memory().in_use;
            let logits = executor.run(&batch).unwrap();
            let taken = gpu.memory().peak - loaded;
            let want = outcome(&mut executor, &logits);
            drop(executor);
            let (mut failed, mut cut) = (0, 0);
            // From none at all to all that it takes.
            for part in [
                None,
                Some(0),
                Some(2),
                Some(8),
                Some(24),
                Some(48),
                Some(64),
            ] {
                let what = format!("{version}, {wanted:?}, {part:?}/64 of {taken}");
                let mut executor = load(&model, &gpu, 3);
                let in_use = gpu.memory().in_use;
                let limit = part.map_or(0, |part| in_use + taken * part / 64);
                gpu.set_memory_limit(Some(limit));
                let before = executor.stats().steps;
                let made = executor.run(&batch);
                assert!(gpu.memory().in_use <= limit.max(in_use), "{what}");
                gpu.set_memory_limit(None);
                match made {
                    Ok(logits) => {
                        check_alike(&outcome(&mut executor, &logits), &want, &what);
                        let in_pieces = executor.stats().steps - before > 1;
                        let shorter = executor.chunk() < CHUNK;
                        assert_eq!(shorter, in_pieces && is_usual, "{what}");
                        assert!(executor.chunk().is_power_of_two(), "{what}");
                        cut += usize::from(in_pieces);
                    }
                    Err(error) => {
                        assert!(is_exhausted(&error), "{what}: {error}");
                        assert!(states(&mut executor) == nothing, "{what}: {error}");
                        failed += 1;
                    }
                }
                // It goes on with what there is then.
                let chunk = executor.chunk();
                for slot in 0..3 {
                    executor.reset(SlotId(slot)).unwrap();
                }
                let logits = executor.run(&batch).unwrap();
                check_alike(&outcome(&mut executor, &logits), &want, &what);
                assert_eq!(executor.chunk(), chunk, "{what}");
            }
            assert!(
                failed > 0 && cut > 1,
                "{version}: {failed} failed, {cut} cut"
            );
        }
    }
}

/// Where memory was short, longer chunks are tried again and again, and are as they were once it is there.
#[test]
fn chunks_come_back() {
    let model = model(Version::V7);
    let batch = batch([100, 20, 280], [Wanted::Last, Wanted::None, Wanted::Last]);
    let gpu = own_gpu();
    let mut executor = load(&model, &gpu, 3);
    let loaded = gpu.memory().in_use;
    let logits = executor.run(&batch).unwrap();
    let taken = gpu.memory().peak - loaded;
    let want = outcome(&mut executor, &logits);
    drop(executor);
    let mut executor = load(&model, &gpu, 3);
    let again = |executor: &mut GpuExecutor, limit: Option<u64>, what: &str| {
        for slot in 0..3 {
            executor.reset(SlotId(slot)).unwrap();
        }
        let before = executor.stats().steps;
        gpu.set_memory_limit(limit);
        let logits = executor.run(&batch).unwrap();
        gpu.set_memory_limit(None);
        check_alike(&outcome(executor, &logits), &want, what);
        executor.stats().steps - before
    };
    let decode = |executor: &mut GpuExecutor| {
        for _ in 0..PATIENCE {
            executor
                .run(&Batch::single(SlotId(0), &[5], Wanted::Last))
                .unwrap();
        }
        executor.chunk()
    };
    let limit = Some(gpu.memory().in_use + taken / 2);
    assert!(again(&mut executor, limit, "short") > 1);
    let short = executor.chunk();
    assert!(short < CHUNK);
    assert_eq!(decode(&mut executor), 2 * short);
    assert!(again(&mut executor, limit, "still short") > 1);
    assert_eq!(executor.chunk(), short);
    let mut chunk = short;
    while chunk < CHUNK {
        chunk *= 2;
        assert_eq!(decode(&mut executor), chunk);
    }
    assert_eq!(again(&mut executor, None, "back"), 1);
    assert_eq!(executor.chunk(), CHUNK);
}

/// Steps of one token a sequence that there is no memory for at once say nothing of prompts.
#[test]
fn decoding_in_pieces() {
    const SLOTS: u32 = 64;
    let model = model(Version::V7);
    let spans = (0..SLOTS).map(|slot| span(slot, &[slot], Wanted::Last));
    let batch = Batch {
        spans: spans.collect(),
    };
    let gpu = own_gpu();
    let load = || {
        let options = LoadOptions {
            slots: SLOTS as usize,
            check_memory: false,
            ..LoadOptions::default()
        };
        GpuExecutor::new(&model, &gpu, &options, &mut |_| {}).unwrap()
    };
    let mut executor = load();
    let (loaded, chunk) = (gpu.memory().in_use, executor.chunk());
    let logits = executor.run(&batch).unwrap();
    let want = outcome(&mut executor, &logits);
    drop(executor);
    // As much less as it takes: what a step of all sequences needs is not there then.
    let mut limit = loaded;
    let (mut executor, logits) = loop {
        gpu.set_memory_limit(Some(limit));
        let mut executor = load();
        let logits = executor.run(&batch).unwrap();
        gpu.set_memory_limit(None);
        if executor.stats().steps > 1 {
            break (executor, logits);
        }
        limit -= 32 << 10;
    };
    check_alike(&outcome(&mut executor, &logits), &want, "in pieces");
    assert_eq!(executor.chunk(), chunk);
}

/// However little memory there is, a burst makes what it would make, or fails before anything has changed: nothing is taken once it
/// is under way, also not to undo what ran ahead.
#[test]
fn bursts() {
    type Told = Vec<Vec<Option<TokenId>>>;
    fn burst(executor: &mut GpuExecutor, prompts: &Batch, may_stop: bool) -> Result<Told, Error> {
        let one = |slot: u32| Decoding {
            slot: SlotId(slot),
            token: 5,
            sampler: Sampler::new(greedy()).unwrap(),
        };
        let mut told = Told::new();
        let burst = Burst {
            prompts,
            sequences: &mut [0, 2].map(one),
            going_on: 2,
            steps: 40,
            counted: &|_| true,
            may_stop,
        };
        executor.burst(burst, &mut |drawn| {
            told.push(drawn.to_vec());
            if may_stop && told.len() == 20 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        Ok(told)
    }
    let model = model(Version::V7);
    let prompts = batch([30, 9, 50], [Wanted::Last, Wanted::None, Wanted::Last]);
    for (prompts, may_stop) in [
        (&prompts, false),
        (&prompts, true),
        (&Batch::default(), true),
    ] {
        let gpu = own_gpu();
        let mut executor = load(&model, &gpu, 3);
        let nothing = states(&mut executor);
        let loaded = gpu.memory().in_use;
        let want = burst(&mut executor, prompts, may_stop).unwrap();
        let taken = gpu.memory().peak - loaded;
        let want_states = states(&mut executor);
        drop(executor);
        // The last of it are the smallest parts.
        let less = (0..12).map(|part| part * 256);
        let less = less.chain((1..=8).map(|part| taken * part / 8));
        let mut fewer = 0;
        for less in less {
            let what = format!("{may_stop}, {less} less than {taken}");
            let mut executor = load(&model, &gpu, 3);
            let limit = gpu.memory().in_use + taken - less;
            gpu.set_memory_limit(Some(limit));
            let made = burst(&mut executor, prompts, may_stop);
            gpu.set_memory_limit(None);
            match made {
                Ok(told) => {
                    assert_eq!(told, want, "{what}");
                    let error = states_error(&states(&mut executor), &want_states);
                    assert!(error < 1e-4, "{what}: {error}");
                }
                Err(error) => {
                    assert!(is_exhausted(&error), "{what}: {error}");
                    assert!(states(&mut executor) == nothing, "{what}: {error}");
                    fewer += 1;
                }
            }
        }
        assert!(fewer < 4, "{may_stop}: {fewer} failed");
    }
}

/// Where layers are on several devices, each cuts what comes to it as its memory demands.
#[test]
fn pieces_on_several_devices() {
    for version in [Version::V7, Version::V7a] {
        let model = model(version);
        let batch = batch([90, 40, 60], [Wanted::Last, Wanted::None, Wanted::All]);
        let gpus = [own_gpu(), own_gpu()];
        let load = || {
            let ends = [1, 2].into_iter().zip(&gpus);
            let ends: Vec<_> = ends
                .map(|(end, gpu)| (end, Device::Gpu(gpu.clone())))
                .collect();
            split(&model, 3, &ends, WeightsDType::F16)
        };
        let mut executor = load();
        let logits = executor.run(&batch).unwrap();
        let want = outcome(&mut executor, &logits);
        drop(executor);
        for (short, gpu) in gpus.iter().enumerate() {
            // The least memory that lets it run, within a sixteenth of a MiB.
            let mut spare = 0;
            let (made, mut executor) = loop {
                let mut executor = load();
                gpu.set_memory_limit(Some(gpu.memory().in_use + spare));
                let made = executor.run(&batch);
                gpu.set_memory_limit(None);
                match made {
                    Ok(logits) => break (logits, executor),
                    Err(error) => assert!(is_exhausted(&error), "{error}"),
                }
                spare += 64 << 10;
            };
            let what = format!("{version}, device {short}, {spare} bytes");
            check_alike(&outcome(&mut executor, &made), &want, &what);
            assert!(executor.chunk() < 190, "{what}");
        }
    }
}
