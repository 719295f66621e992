//! Several devices at once: micro-batches that follow each other through the layers, and replicas that share the sequences.
//! Logits, tokens and states are those of one device, however work is shared out; what fails ends, and says so.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests fail by panicking; sizes are small"
)]

mod support;

use proptest::{prelude::*, test_runner::TestRunner};
use rwkv_gpu::Gpu;
use rwkv_sched::{
    Batch, Decoding, Device, Error, Executor, LoadOptions, Model, Placement, ReplicatedExecutor,
    Share, Simd, SlotId, SplitExecutor, State, Version, Wanted, WeightsDType, load, load_shared,
    sampling::{Sampler, SamplerParams},
};
use std::{ops::ControlFlow, sync::OnceLock};
use support::{
    cpu,
    decoding::{by_hand, counted, decoded},
    dimensions, own_gpu, proptest_config,
    random_model::{Dimensions, Packing, Random},
    relative_error, reset, run,
    small::{VOCAB, small},
    span, states, states_error,
};

const SLOTS: usize = 6;

/// The same adapter, opened twice: two devices.
fn two() -> &'static [Device; 2] {
    static TWO: OnceLock<[Device; 2]> = OnceLock::new();
    TWO.get_or_init(|| [own_gpu(), own_gpu()].map(Device::Gpu))
}

fn options(slots: usize, micro_batches: Option<usize>) -> LoadOptions {
    LoadOptions {
        slots,
        weights_dtype: WeightsDType::F32,
        deterministic: true,
        micro_batches,
        simd: Simd::Twins,
        ..LoadOptions::default()
    }
}

fn split(model: &Model, devices: &[Device], options: &LoadOptions) -> SplitExecutor {
    let placement = Placement::evenly(model.config().layers, devices).unwrap();
    SplitExecutor::new(model, &placement, options, &mut |_| {}).unwrap()
}

fn replicated(model: &Model, replicas: &[&[Device]], options: &LoadOptions) -> ReplicatedExecutor {
    let placements = replicas
        .iter()
        .map(|devices| Placement::evenly(model.config().layers, devices).unwrap());
    let placements: Vec<Placement> = placements.collect();
    ReplicatedExecutor::load(model, &placements, options, &mut |_| {}).unwrap()
}

/// What one device makes, in deterministic mode: bits that do not depend on the batch.
fn alone(model: &Model, device: &Device) -> Box<dyn Executor> {
    load(model, device, &options(SLOTS, None), &mut |_| {}).unwrap()
}

/// Every way of sharing a model between two GPUs and the CPU whose bits are those of one.
fn shared(model: &Model) -> Vec<Box<dyn Executor>> {
    let [first, second] = two();
    let both = two().as_slice();
    let mut all: Vec<Box<dyn Executor>> = Vec::new();
    for micro_batches in [None, Some(1), Some(3), Some(SLOTS)] {
        all.push(Box::new(split(model, both, &options(SLOTS, micro_batches))));
    }
    let single: [&[Device]; 2] = [std::slice::from_ref(first), std::slice::from_ref(second)];
    all.push(Box::new(replicated(model, &single, &options(SLOTS, None))));
    let splits: [&[Device]; 2] = [both, std::slice::from_ref(first)];
    all.push(Box::new(replicated(model, &splits, &options(SLOTS, None))));
    all
}

fn sequences(random: &mut Random, slots: &[u32]) -> Vec<Decoding> {
    let decoding = |slot: &u32| {
        let params = SamplerParams {
            temperature: [0.0, 0.9][random.below(2)],
            top_k: random.below(9) as u32,
            presence_penalty: random.below(3) as f32 / 4.0,
            frequency_penalty: random.below(3) as f32 / 4.0,
            seed: random.below(1000) as u64,
            ..SamplerParams::default()
        };
        Decoding {
            slot: SlotId(*slot),
            token: random.below(VOCAB) as u32,
            sampler: Sampler::new(params).unwrap(),
        }
    };
    slots.iter().map(decoding).collect()
}

/// However many groups go round and wherever the caller stops: the tokens and the states of one device, bit for bit.
#[test]
fn decoding_is_that_of_one_device() {
    let short = [(4, 3)].as_slice();
    let all = [(5, 5), (9, 1), (80, 66), (0, 0)].as_slice();
    for (version, seed, stops) in [
        (Version::V7, 1, all),
        (Version::V4, 2, short),
        (Version::V7a, 3, short),
    ] {
        let model = small(version).model(Packing::F32, seed);
        let mut oracle = alone(&model, &two()[0]);
        for mut executor in shared(&model) {
            let executor = executor.as_mut();
            let mut random = Random::new(seed);
            let slots: [&[u32]; 3] = [&[4, 0, 1, 5, 2], &[2], &[3, 1, 0]];
            for (at, &(steps, stop)) in stops.iter().enumerate() {
                let start = sequences(&mut random, slots[at % slots.len()]);
                reset(oracle.as_mut());
                reset(executor);
                let (want, want_states) = by_hand(oracle.as_mut(), start.clone(), stop);
                let mut all = start;
                let got = decoded(executor, &mut all, (steps, stop)).unwrap();
                let what = format!("{version}, {}, {stop} of {steps}", executor.device());
                assert_eq!(got, want, "{what}");
                assert!(states(executor) == want_states, "{what}: other states");
                if let Some(last) = want.last() {
                    let pending: Vec<u32> = all.iter().map(|s| s.token).collect();
                    assert_eq!(&pending, last, "{what}");
                }
            }
        }
    }
}

/// Groups whose values pass from GPU to GPU through mapped memory: after some steps nothing is made any more, steps are recorded in
/// advance on both, and the tokens are those of one device.
#[test]
fn steady_steps() {
    const ALL: usize = 280;
    let dimensions = Dimensions {
        version: Version::V4,
        layers: 2,
        heads: 1,
        head_size: 128,
        ffn: 32,
        vocab: VOCAB,
        ranks: [8; 4],
    };
    let model = dimensions.model(Packing::F32, 4);
    let gpus = [own_gpu(), own_gpu()];
    let devices = gpus.clone().map(Device::Gpu);
    let mut subject = split(&model, &devices, &options(ALL, None));
    let slots: Vec<u32> = (0..ALL as u32).collect();
    let start = sequences(&mut Random::new(9), &slots);
    let made = || {
        let made = |gpu: &Gpu| {
            let counts = gpu.counts();
            (counts.buffers, counts.stagings, gpu.memory().in_use)
        };
        gpus.each_ref().map(made)
    };
    let (mut tokens, mut steady) = (Vec::new(), None);
    let before = subject.stats();
    let mut all = start.clone();
    let told = subject.decode(&mut all, 120, &counted, &mut |drawn| {
        tokens.push(drawn.to_vec());
        if tokens.len() == 40 {
            steady = Some(made());
        }
        ControlFlow::Continue(())
    });
    told.unwrap();
    let after = made();
    assert_eq!(steady.unwrap(), after);
    assert!(after[1].1 > 0, "values are passed on by another way");
    let prepared = subject.stats().since(&before).prepared;
    assert!(
        prepared.hits >= 460 && prepared.misses <= 20,
        "{prepared:?}"
    );
    let mut oracle = load(&model, &devices[0], &options(ALL, None), &mut |_| {}).unwrap();
    let want = decoded(oracle.as_mut(), &mut start.clone(), (24, 24)).unwrap();
    assert!(tokens[..24] == want);
}

/// A batch of prompts and tokens.
fn batch(random: &mut Random, slots: usize, vocab: usize, longest: usize) -> Batch {
    let mut batch = Batch::default();
    for slot in 0..slots as u32 {
        if random.below(4) > 0 {
            let count = 1 + random.below(longest);
            let wanted = [Wanted::None, Wanted::Last, Wanted::All][random.below(3)];
            batch
                .spans
                .push(span(slot, &random.tokens(count, vocab), wanted));
        }
    }
    if batch.spans.is_empty() {
        batch.spans.push(span(0, &[1], Wanted::Last));
    }
    // In any order.
    let turn = random.below(batch.spans.len());
    batch.spans.rotate_left(turn);
    batch
}

/// Random models, placements, batches and numbers of micro-batches; an error of logits and states for each batch.
fn random_shares(
    cases: u32,
    versions: &[Version],
    device: fn(u8) -> Device,
    right: fn(f64) -> bool,
) {
    for &version in versions {
        let strategy = (
            dimensions(version, 1),
            any::<u64>(),
            prop::collection::vec(any::<u8>(), 1..5),
            1..3usize,
            prop::option::of(1..9usize),
        );
        let result = TestRunner::new(proptest_config(cases)).run(&strategy, |case| {
            let (dimensions, seed, devices, replicas, micro_batches) = case;
            let dimensions = Dimensions {
                layers: 4,
                heads: dimensions.heads.min(2),
                ..dimensions
            };
            let model = dimensions.model(Packing::F32, seed);
            let devices: Vec<Device> = devices.into_iter().map(device).collect();
            let options = LoadOptions {
                deterministic: false,
                ..options(4, micro_batches)
            };
            let all: Vec<&[Device]> = (0..replicas).map(|_| devices.as_slice()).collect();
            let mut subject = replicated(&model, &all, &options);
            let mut oracle = cpu(&model, 4);
            let mut random = Random::new(seed);
            for longest in [1, 30, 1, 300] {
                let batch = batch(&mut random, 4, dimensions.vocab, longest);
                let got = run(&mut subject, &batch);
                let want = run(&mut oracle, &batch);
                prop_assert_eq!(got.len(), want.len());
                let error = relative_error(&got.concat(), &want.concat());
                prop_assert!(right(error), "{} on {}", error, subject.device());
            }
            let error = states_error(&states(&mut subject), &states(&mut oracle));
            prop_assert!(right(error), "states {} on {}", error, subject.device());
            Ok(())
        });
        result.unwrap_or_else(|error| panic!("{version}: {error}"));
    }
}

/// However a batch is shared out, not a bit of what is computed changes.
#[test]
fn random_shares_on_the_cpu() {
    random_shares(12, &Version::ALL, |_| Device::Cpu, |error| error <= 0.0);
}

#[test]
fn random_shares_anywhere() {
    let device = |number: u8| match number % 3 {
        number @ 0..2 => two()[usize::from(number)].clone(),
        _ => Device::Cpu,
    };
    let versions = [Version::V4, Version::V6, Version::V7, Version::V7a];
    random_shares(2, &versions, device, |error| error <= 1e-5);
}

/// Prompts long enough to be cut without being asked to.
#[test]
fn long_prompts() {
    let model = small(Version::V7).model(Packing::F32, 13);
    let [gpu, other] = two();
    let mut random = Random::new(2);
    let spans = (0..3).map(|slot| span(slot, &random.tokens(700, VOCAB), Wanted::Last));
    let batch = Batch {
        spans: spans.collect(),
    };
    let mut oracle = cpu(&model, SLOTS);
    let want = run(&mut oracle, &batch).concat();
    for devices in [
        vec![gpu.clone(), other.clone()],
        vec![gpu.clone(), Device::Cpu],
    ] {
        let mut subject = split(&model, &devices, &options(SLOTS, None));
        let before = subject.stats().steps;
        let got = run(&mut subject, &batch).concat();
        assert!(relative_error(&got, &want) <= 1e-5, "{}", subject.device());
        let error = states_error(&states(&mut subject), &states(&mut oracle));
        assert!(error <= 1e-5, "{error}");
        // √(2,100 / 128) is 4; the CPU takes 256 at once.
        let least = if subject.chunk() == 256 { 9 } else { 4 };
        assert_eq!(subject.stats().steps - before, least);
    }
}

/// A device that has no memory for more does with what it has, a token at a time in the end, or refuses, and the other device is
/// as it was. One that is lost: an error, and no hang.
#[test]
fn failing_devices() {
    let model = small(Version::V7).model(Packing::F32, 21);
    let mut refused = 0;
    for failing in 0..2 {
        let gpus = [own_gpu(), own_gpu()];
        let devices = gpus.clone().map(Device::Gpu);
        let whole = options(SLOTS, Some(3));
        let mut all: Vec<Box<dyn Executor>> = vec![Box::new(split(&model, &devices, &whole))];
        let single: [&[Device]; 2] = [&devices[..1], &devices[1..]];
        all.push(Box::new(replicated(&model, &single, &whole)));
        let mut random = Random::new(7);
        let small_batch = batch(&mut Random::new(8), SLOTS, VOCAB, 1);
        for executor in &mut all {
            let executor = executor.as_mut();
            // More than what there is room for from the start.
            let length = executor.chunk() + 44;
            let large = |wanted, random: &mut Random| Batch {
                spans: (0..4)
                    .map(|slot| span(slot, &random.tokens(length, VOCAB), wanted))
                    .collect(),
            };
            run(executor, &small_batch);
            // No more than is in use, and not even as much again.
            for (wanted, limit) in [
                (Wanted::Last, gpus[failing].memory().in_use),
                (Wanted::All, 0),
            ] {
                let large = large(wanted, &mut random);
                gpus[failing].set_memory_limit(Some(limit));
                reset(executor);
                let mut oracle = cpu(&model, SLOTS);
                let want = run(&mut oracle, &large).concat();
                match executor.run(&large) {
                    Ok(logits) => {
                        let got: Vec<f32> = logits.rows().flatten().copied().collect();
                        assert!(relative_error(&got, &want) <= 1e-5, "{limit}");
                    }
                    Err(error) => {
                        let error = error.to_string();
                        assert!(error.contains("memory") && !error.contains('\n'), "{error}");
                        assert_eq!(limit, 0, "{error}");
                        refused += 1;
                    }
                }
                gpus[failing].set_memory_limit(None);
                reset(executor);
                let got = run(executor, &large).concat();
                assert!(relative_error(&got, &want) <= 1e-5);
            }
        }
        gpus[failing].lose();
        for executor in &mut all {
            let mut decoding = sequences(&mut random, &[0, 1, 2, 3]);
            let error = decoded(executor.as_mut(), &mut decoding, (9, 9)).unwrap_err();
            assert!(!error.to_string().is_empty());
            assert!(executor.run(&small_batch).is_err());
        }
    }
    assert!(refused > 0);
}

/// What is refused is refused before any device has changed anything.
#[test]
fn refused() {
    let model = small(Version::V7).model(Packing::F32, 23);
    for mut executor in shared(&model) {
        let executor = executor.as_mut();
        let before = states(executor);
        for (bad, message) in [
            (span(1, &[61], Wanted::Last), "token 61 is out of range"),
            (span(6, &[1], Wanted::Last), "slot 6 is out of range"),
            (span(0, &[1], Wanted::Last), "slot 0 occurs twice"),
        ] {
            let spans = vec![span(0, &[1], Wanted::Last), bad.clone()];
            let error = executor.run(&Batch { spans }).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
            let mut all = sequences(&mut Random::new(1), &[0, bad.slot.0]);
            all[1].token = bad.tokens[0];
            let error = decoded(executor, &mut all, (3, 3)).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
            assert!(states(executor) == before, "{error}");
        }
        assert!(executor.state(SlotId(6)).is_err());
        assert!(executor.reset(SlotId(6)).is_err());
        let mut tuned = State::zeros(model.state_layout());
        tuned.wkv.iter_mut().for_each(|wkv| wkv.fill(0.25));
        executor.set_initial_state(Some(&tuned)).unwrap();
        executor.reset(SlotId(5)).unwrap();
        assert_eq!(executor.state(SlotId(5)).unwrap(), tuned);
        assert_eq!(executor.state(SlotId(4)).unwrap(), before[4]);
        executor.set_state(SlotId(4), &tuned).unwrap();
        assert_eq!(executor.state(SlotId(4)).unwrap(), tuned);
    }
    let none = ReplicatedExecutor::new(Vec::new()).err();
    assert!(matches!(none, Some(Error::Placement { .. })));
}

/// A model that neither of two devices has memory for runs on both, and makes the tokens of one that has.
#[test]
fn more_than_fits_on_each() {
    for version in [Version::V4, Version::V7, Version::V7a] {
        let dimensions = Dimensions {
            layers: 12,
            head_size: 32,
            ffn: 256,
            vocab: 300,
            ..small(version)
        };
        let model = dimensions.model(Packing::F16, 17);
        let options = LoadOptions {
            slots: 2,
            deterministic: true,
            ..LoadOptions::default()
        };
        let gpus = [own_gpu(), own_gpu()];
        let devices = gpus.clone().map(Device::Gpu);
        let loaded = |devices: &[Device]| load_shared(&model, devices, None, &options, &mut |_| {});
        let all = |executor: &mut dyn Executor| {
            let mut decoding = sequences(&mut Random::new(5), &[0, 1]);
            decoded(executor, &mut decoding, (40, 40)).unwrap()
        };
        let want = {
            let mut whole = loaded(&devices[..1]).unwrap();
            all(whole.as_mut())
        };
        // With memory for it on each they share the sequences.
        assert_eq!(loaded(&devices).unwrap().replicas(), 2);
        gpus[0].set_memory_limit(Some(1));
        let Some(Error::DoesNotFit(short)) = loaded(&devices[..1]).err() else {
            panic!("{version}: it fits");
        };
        let needed = short.needed();
        // Two thirds on each; half on the one, all but a sixth on the other.
        for (first, second) in [(2, 2), (3, 1)] {
            gpus[0].set_memory_limit(Some(needed - short.weights * first / 6));
            gpus[1].set_memory_limit(Some(needed - short.weights * second / 6));
            for device in &devices {
                let alone = loaded(std::slice::from_ref(device)).err();
                assert!(matches!(alone, Some(Error::DoesNotFit(_))), "{version}");
            }
            let mut subject = loaded(&devices).unwrap();
            assert_eq!((subject.replicas(), subject.stages()), (1, 2));
            assert_eq!(all(subject.as_mut()), want, "{version}");
            for gpu in &gpus {
                let memory = gpu.memory();
                assert!(Some(memory.in_use) <= memory.limit);
            }
        }
        let forced = load_shared(
            &model,
            &devices,
            Some(Share::Sequences),
            &options,
            &mut |_| {},
        );
        assert!(matches!(forced.err(), Some(Error::DoesNotFit(_))));
    }
}
