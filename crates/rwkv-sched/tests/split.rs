//! Models whose layers are on several devices, against the oracle: wherever they are cut, logits and states are those of
//! one executor.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests fail by panicking; sizes are small"
)]

mod support;

use proptest::{prelude::*, test_runner::TestRunner};
use rwkv_gpu::Timing;
use rwkv_sched::{
    Adapter, Batch, BlockWeight as B, Device, Error, Executor, GpuExecutor, LoadOptions, LowRank,
    Model, Placement, Quantization, Simd, SlotId, SplitExecutor, State, Version, Wanted, Weight,
    WeightsDType, load_placed,
};
use std::sync::Arc;
use support::{
    cpu,
    decoding::{decoded_alone, greedy},
    dimensions, feed, gpus, on_gpu, own_gpu, proptest_config,
    random_model::{Dimensions, Packing, Random},
    relative_error, run,
    small::{LAYERS, small},
    span, split, states, states_error,
};

const SLOTS: usize = 6;

fn gpu(number: usize) -> Device {
    Device::Gpu(gpus()[number].gpu.clone())
}

/// Chunks of prompts, steps of one token, sequences that join and leave, every kind of wish for logits.
fn batches(random: &mut Random, vocab: usize) -> Vec<Batch> {
    let mut tokens = |count| random.tokens(count, vocab);
    let spans = [
        vec![span(2, &tokens(19), Wanted::None)],
        vec![span(2, &tokens(7), Wanted::Last)],
        vec![span(2, &tokens(1), Wanted::Last)],
        // A prompt joins.
        vec![
            span(0, &tokens(11), Wanted::All),
            span(2, &tokens(1), Wanted::Last),
        ],
        vec![
            span(2, &tokens(1), Wanted::Last),
            span(0, &tokens(1), Wanted::Last),
        ],
        (0..SLOTS as u32)
            .map(|slot| span(slot, &tokens(1), Wanted::Last))
            .collect(),
        // One leaves, and another one's logits are not wanted.
        vec![
            span(5, &tokens(1), Wanted::None),
            span(0, &tokens(1), Wanted::Last),
            span(3, &tokens(3), Wanted::Last),
        ],
        vec![span(0, &tokens(1), Wanted::None)],
        vec![span(0, &tokens(1), Wanted::Last)],
    ];
    spans.into_iter().map(|spans| Batch { spans }).collect()
}

/// Runs the same batches on both.
#[track_caller]
fn agree(name: &str, subject: &mut dyn Executor, oracle: &mut dyn Executor, bound: f64) {
    let batches = batches(&mut Random::new(7), subject.config().vocab);
    for (index, batch) in batches.iter().enumerate() {
        let (got, want) = (run(subject, batch), run(oracle, batch));
        assert_eq!(got.len(), want.len(), "{name}");
        let error = relative_error(&got.concat(), &want.concat());
        assert!(error <= bound, "{name}, batch {index}: error {error:.1e}");
    }
    let error = states_error(&states(subject), &states(oracle));
    assert!(error <= bound, "{name}: states {error:.1e}");
}

/// Every version, cut at 0, 1, the middle and after all layers.
#[test]
fn first_layers_on_the_gpu() {
    for (at, version) in Version::ALL.into_iter().enumerate() {
        let cuts: [(Packing, f64, &[usize]); 2] = [
            (Packing::F32, 1e-5, &[0, 1, LAYERS / 2, LAYERS]),
            (Packing::F16, 2e-3, &[LAYERS - 1]),
        ];
        for (packing, bound, cuts) in cuts {
            let model = small(version).model(packing, 3);
            for &layers in cuts {
                let gpu = &gpus()[(at + layers) % gpus().len()];
                let placement = Placement::first_on_gpu(LAYERS, layers, gpu.gpu.clone()).unwrap();
                let options = LoadOptions {
                    slots: SLOTS,
                    weights_dtype: packing.weights_dtype(),
                    simd: Simd::Twins,
                    ..LoadOptions::default()
                };
                let mut subject = load_placed(&model, &placement, &options, &mut |_| {}).unwrap();
                let name = format!("{version}, {packing:?}, {}: {}", gpu.name, subject.device());
                agree(&name, subject.as_mut(), &mut cpu(&model, SLOTS), bound);
            }
        }
    }
}

/// Several GPUs, and the CPU before, between and after them.
#[test]
fn several_devices() {
    let all: [&[(usize, Device)]; 4] = [
        &[(2, gpu(0)), (LAYERS, gpu(1))],
        &[(1, gpu(3)), (3, Device::Cpu), (LAYERS, gpu(2))],
        &[(1, Device::Cpu), (LAYERS, gpu(0))],
        &[(1, gpu(0)), (2, gpu(1)), (3, gpu(2)), (LAYERS, gpu(3))],
    ];
    for version in [Version::V4, Version::V6, Version::V7, Version::V7a] {
        let model = small(version).model(Packing::F32, 5);
        for ends in all {
            let mut subject = split(&model, SLOTS, ends, WeightsDType::F32);
            let name = format!("{version}: {}", subject.device());
            agree(&name, &mut subject, &mut cpu(&model, SLOTS), 1e-5);
        }
    }
}

/// Runs `cases` random models of each version whole and cut somewhere, each part where `device` says for a random number,
/// and hands the errors of logits and states to `right`.
fn random_cuts(cases: u32, device: fn(u8) -> Device, right: fn([f64; 2]) -> bool) {
    let cuts = prop::collection::vec(any::<(bool, u8)>(), 6);
    for version in Version::ALL {
        let strategy = (dimensions(version, 1), any::<u64>(), cuts.clone());
        let result = TestRunner::new(proptest_config(cases)).run(&strategy, |case| {
            let (dimensions, seed, cuts) = case;
            let dimensions = Dimensions {
                layers: cuts.len(),
                heads: dimensions.heads.min(2),
                ..dimensions
            };
            let model = dimensions.model(Packing::F32, seed);
            let last = cuts.len() - 1;
            let ends = (1..).zip(&cuts).enumerate();
            let ends: Vec<_> = ends
                .filter(|(layer, (_, (cut, _)))| *cut || *layer == last)
                .map(|(_, (end, (_, number)))| (end, device(*number)))
                .collect();
            let tokens = Random::new(seed).tokens(9, dimensions.vocab);
            let all = |executor: &mut dyn Executor| {
                let mut rows = feed(executor, 0, &tokens[..6], 4);
                rows.extend(feed(executor, 0, &tokens[6..], 1));
                (rows.concat(), states(executor))
            };
            let want = all(&mut cpu(&model, 1));
            let mut subject = split(&model, 1, &ends, WeightsDType::F32);
            let got = all(&mut subject);
            let errors = [
                relative_error(&got.0, &want.0),
                states_error(&got.1, &want.1),
            ];
            prop_assert!(right(errors), "{errors:?} on {}", subject.device());
            Ok(())
        });
        result.unwrap_or_else(|error| panic!("{version}: {error}"));
    }
}

/// To cut a model changes not a bit of what is computed.
#[test]
fn random_cuts_on_the_cpu() {
    random_cuts(
        20,
        |_| Device::Cpu,
        |errors| errors.iter().all(|e| *e <= 0.0),
    );
}

#[test]
fn random_cuts_anywhere() {
    let device = |number: u8| match number % 8 {
        number @ 0..4 => gpu(usize::from(number)),
        _ => Device::Cpu,
    };
    random_cuts(1, device, |errors| errors.iter().all(|e| *e <= 1e-5));
}

/// A sequence goes on from one placement to another: its state has the same order everywhere.
#[test]
fn states_travel() {
    for version in [Version::V4, Version::V5_2, Version::V6, Version::V7a] {
        let model = small(version).model(Packing::F32, 9);
        let tokens = Random::new(1).tokens(30, 61);
        let want = feed(&mut cpu(&model, 1), 0, &tokens, 30).concat();
        let ends = [(1, gpu(0)), (LAYERS, Device::Cpu)];
        let mut executors: Vec<Box<dyn Executor>> = vec![
            Box::new(split(&model, 2, &ends, WeightsDType::F32)),
            Box::new(on_gpu(&model, 2, &gpus()[0].gpu, WeightsDType::F32)),
            Box::new(split(
                &model,
                2,
                &[(3, gpu(1)), (LAYERS, gpu(0))],
                WeightsDType::F32,
            )),
            Box::new(cpu(&model, 2)),
            Box::new(split(&model, 2, &ends, WeightsDType::F32)),
        ];
        let mut got = Vec::new();
        let mut state: Option<State> = None;
        for (executor, part) in executors.iter_mut().zip(tokens.chunks(6)) {
            if let Some(state) = &state {
                executor.set_state(SlotId(1), state).unwrap();
                assert_eq!(&executor.state(SlotId(1)).unwrap(), state);
            }
            got.extend(feed(executor.as_mut(), 1, part, 6).concat());
            let now = executor.state(SlotId(1)).unwrap();
            now.check(model.state_layout()).unwrap();
            state = Some(now);
        }
        let error = relative_error(&got, &want);
        assert!(error <= 1e-5, "{version}: error {error:.1e}");
    }
}

/// Quantized as on one device, wherever the layers are that it names.
#[test]
fn quantized() {
    let dimensions = Dimensions {
        head_size: 32,
        ffn: 96,
        ..small(Version::V7)
    };
    let model = dimensions.model(Packing::F32, 11);
    for text in ["q8_0", "q8_0:1-2", "int8:3-3"] {
        let quantization: Quantization = text.parse().unwrap();
        let oracle = model.quantized(&quantization, &mut |_| {}).unwrap();
        let placement = Placement::first_on_gpu(LAYERS, 2, gpus()[0].gpu.clone()).unwrap();
        let options = LoadOptions {
            slots: SLOTS,
            weights_dtype: WeightsDType::F32,
            quantization: Some(quantization),
            simd: Simd::Twins,
            ..LoadOptions::default()
        };
        let mut subject = SplitExecutor::new(&model, &placement, &options, &mut |_| {}).unwrap();
        agree(text, &mut subject, &mut cpu(&oracle, SLOTS), 2e-3);
    }
}

/// Long prompts in the longest chunks.
#[test]
fn long_prompts() {
    let model = small(Version::V7).model(Packing::F32, 13);
    let tokens = Random::new(2).tokens(700, 61);
    let ends = [(2, gpu(0)), (LAYERS, Device::Cpu)];
    let mut subject = split(&model, 1, &ends, WeightsDType::F32);
    let chunk = subject.chunk();
    assert_eq!(chunk, cpu(&model, 1).chunk());
    let got = feed(&mut subject, 0, &tokens, chunk).concat();
    let want = feed(&mut cpu(&model, 1), 0, &tokens, 700).concat();
    assert!(relative_error(&got, &want) <= 1e-5);
}

/// What is asked of the parts is what the whole has: weights that a step reads, bytes, counts, times.
#[test]
fn sums() {
    for version in [Version::V4, Version::V7, Version::V7a] {
        let model = small(version).model(Packing::F16, 15);
        let whole = on_gpu(&model, 1, &gpus()[0].gpu, WeightsDType::F16);
        let ends = [(1, gpu(0)), (LAYERS, gpu(0))];
        let mut parts = split(&model, 1, &ends, WeightsDType::F16);
        assert_eq!(parts.weight_reads(), whole.weight_reads(), "{version}");
        assert_eq!(parts.blend_bytes(), 0);
        assert!(parts.device_bytes() > whole.weights_bytes());
        assert_eq!(parts.slots(), 1);
        let name = whole.device();
        assert_eq!(parts.device(), format!("1 layer on {name}, 3 on {name}"));

        feed(&mut parts, 0, &[1], 1);
        let before = parts.stats();
        let times = parts.set_timing(Timing::Kernels).unwrap();
        parts.take_times();
        feed(&mut parts, 0, &[1, 2, 3], 1);
        let counted = parts.stats().since(&before);
        assert_eq!((counted.steps, counted.plans.misses), (3, 0), "{version}");
        let steps = parts.take_times();
        assert_eq!(steps.len(), if times { 3 } else { 0 });
        for step in steps {
            let kernels: f64 = step.spans.iter().map(rwkv_gpu::TimedSpan::seconds).sum();
            let dispatches = counted.dispatches as usize / 3;
            assert_eq!(step.spans.len(), dispatches, "{version}");
            assert!(step.seconds() > 0.0 && kernels <= 1.01 * step.seconds());
            assert!(step.seconds() < 60.0, "as of one clock");
        }
    }
}

/// A model that a GPU has too little memory for runs with as many layers there as it is said would fit, and makes the same
/// tokens; one more does not fit.
#[test]
fn more_than_fits() {
    for version in [Version::V4, Version::V6, Version::V7, Version::V7a] {
        let dimensions = Dimensions {
            layers: 12,
            head_size: 32,
            ffn: 256,
            vocab: 300,
            ..small(version)
        };
        let model = dimensions.model(Packing::F16, 17);
        let gpu = own_gpu();
        let options = LoadOptions::default();
        let shortfall = |result: rwkv_sched::Result<Box<dyn Executor>>| match result.err() {
            Some(Error::DoesNotFit(short)) => *short,
            other => panic!("{version}: {other:?}"),
        };
        let placed = |layers| {
            let placement = Placement::first_on_gpu(12, layers, gpu.clone()).unwrap();
            load_placed(&model, &placement, &options, &mut |_| {})
        };
        let want = decoded_alone(&mut cpu(&model, 1), greedy(), 40, None);
        gpu.set_memory_limit(Some(1));
        let short = shortfall(placed(12));
        let (all, weights) = (short.needed(), short.weights);
        assert_eq!((short.part, short.fewer_layers), (None, None));
        for share in [1, 4, 9] {
            gpu.set_memory_limit(Some(all - weights * share / 12));
            let short = shortfall(placed(12));
            let text = short.to_string();
            let fit = short.fewer_layers.expect("some layers fit");
            assert!(text.contains(&format!(" --gpu-layers {fit}, ")), "{text}");
            assert!((1..12).contains(&fit));
            let buffers = gpu.counts().buffers;
            if fit < 11 {
                let more = shortfall(placed(fit + 1));
                assert_eq!(more.part, Some(0..fit + 1));
                assert_eq!(more.fewer_layers, Some(fit));
                let text = more.to_string();
                let start = format!("layers 0-{fit} need ");
                assert!(text.starts_with(&start) && !text.contains('\n'), "{text}");
            }
            assert_eq!(gpu.counts().buffers, buffers, "no buffer was made");
            let mut executor = placed(fit).unwrap();
            let tokens = decoded_alone(executor.as_mut(), greedy(), 40, None);
            assert_eq!(tokens, want, "{version}, {fit} layers");
            let long = Random::new(1).tokens(600, 300);
            let chunk = executor.chunk();
            feed(executor.as_mut(), 0, &long, chunk);
            let limit = all - weights * share / 12;
            assert!(gpu.memory().peak <= limit, "{version}, {fit} layers");
            drop(executor);
            assert_eq!(gpu.memory().in_use, 0);
        }
    }
}

/// Each device has its layers' weights and states, and no others.
#[test]
fn weights_are_where_they_are_used() {
    let model = small(Version::V7).model(Packing::F16, 19);
    let gpu = own_gpu();
    let all = GpuExecutor::new(&model, &gpu, &LoadOptions::default(), &mut |_| {}).unwrap();
    let whole = all.weights_bytes();
    drop(all);
    gpu.finish().unwrap();
    let mut before = 0;
    for layers in 1..LAYERS {
        let placement = Placement::first_on_gpu(LAYERS, layers, gpu.clone()).unwrap();
        let options = LoadOptions {
            slots: 200,
            ..LoadOptions::default()
        };
        let executor = SplitExecutor::new(&model, &placement, &options, &mut |_| {}).unwrap();
        let taken = gpu.memory().in_use;
        let states = model.state_layout().bytes() / LAYERS as u64 * 200;
        // A layer's states and weights; buffers of activations come in sizes.
        let more = taken - before;
        if before > 0 {
            let least = states + whole / (2 * LAYERS as u64);
            assert!((least..2 * least).contains(&more), "{more}, not {least}");
        }
        before = taken;
        drop(executor);
        assert_eq!(gpu.memory().in_use, 0);
    }
}

/// What fails on one device leaves nothing on the others, and what was in use stays in use.
#[test]
fn failures() {
    let model = small(Version::V7).model(Packing::F32, 21);
    let (good, full) = (own_gpu(), own_gpu());
    let ends = [
        (2, Device::Gpu(good.clone())),
        (LAYERS, Device::Gpu(full.clone())),
    ];
    let mut subject = split(&model, 2, &ends, WeightsDType::F32);
    let tokens = Random::new(4).tokens(6, 61);
    let want = feed(&mut subject, 0, &tokens, 6);
    let states_before = states(&mut subject);

    // Batches that cannot run.
    for (bad, message) in [
        (span(1, &[61], Wanted::Last), "token 61 is out of range"),
        (span(2, &[1], Wanted::Last), "slot 2 is out of range"),
        (span(0, &[1], Wanted::Last), "slot 0 occurs twice"),
    ] {
        let spans = vec![span(0, &[1, 2], Wanted::All), bad];
        let error = subject.run(&Batch { spans }).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
        assert!(states(&mut subject) == states_before, "{error}");
    }

    // Initial states.
    let layout = model.state_layout();
    let mut tuned = State::zeros(layout);
    tuned.wkv.iter_mut().for_each(|wkv| wkv.fill(0.25));
    full.set_memory_limit(Some(full.memory().in_use));
    let held = subject.device_bytes();
    assert!(subject.set_initial_state(Some(&tuned)).is_err());
    assert_eq!(subject.device_bytes(), held);
    subject.reset(SlotId(0)).unwrap();
    full.set_memory_limit(None);
    assert_eq!(subject.state(SlotId(0)).unwrap(), State::zeros(layout));
    full.set_memory_limit(Some(full.memory().in_use));

    // Blends: layer 1 is on the one, layer 3 on the other.
    let adapter = |layers: &[usize]| {
        let mut adapter = Adapter::new("test");
        for &layer in layers {
            let change = LowRank {
                rank: 1,
                a: vec![0.2; 32].into(),
                b: vec![0.2; 32].into(),
                scale: 1.0,
            };
            adapter.add_low_rank(Weight::Block(layer, B::AttKey), change);
        }
        vec![(Arc::new(adapter), 1.0)]
    };
    let (both, first) = (adapter(&[1, 3]), adapter(&[0]));
    subject.set_adapters(&first).unwrap();
    let with_first = feed(&mut subject, 0, &tokens, 6);
    assert_ne!(with_first, want);
    let held = subject.blend_bytes();
    assert!(held > 0);
    assert!(subject.set_adapters(&both).is_err());
    assert_eq!(subject.blend_bytes(), held, "nothing is left of it");
    subject.reset(SlotId(0)).unwrap();
    assert_eq!(feed(&mut subject, 0, &tokens, 6), with_first);

    // With memory, all of it goes.
    full.set_memory_limit(None);
    subject.set_initial_state(Some(&tuned)).unwrap();
    subject.reset(SlotId(1)).unwrap();
    assert_eq!(subject.state(SlotId(1)).unwrap(), tuned);
    subject.set_adapters(&both).unwrap();
    let mut oracle = cpu(&model, 2);
    oracle.set_adapters(&both).unwrap();
    subject.set_initial_state(None).unwrap();
    subject.reset(SlotId(0)).unwrap();
    let got = feed(&mut subject, 0, &tokens, 6).concat();
    let want = feed(&mut oracle, 0, &tokens, 6).concat();
    assert!(relative_error(&got, &want) <= 1e-5);
}

/// A placement of another model is refused, and a model on one device is no split one.
#[test]
fn placements() {
    let model: Model = small(Version::V7).model(Packing::F32, 23);
    let gpu = &gpus()[0].gpu;
    let too_many = Placement::first_on_gpu(LAYERS, LAYERS + 1, gpu.clone());
    let error = too_many.unwrap_err().to_string();
    assert!(error.contains("has 4 layers, not 5"), "{error}");
    let other = Placement::first_on_gpu(5, 2, gpu.clone()).unwrap();
    let error = load_placed(&model, &other, &LoadOptions::default(), &mut |_| {}).err();
    assert!(matches!(error, Some(Error::Placement { .. })), "{error:?}");
    for (layers, name) in [(0, "CPU ("), (LAYERS, gpu.name())] {
        let placement = Placement::first_on_gpu(LAYERS, layers, gpu.clone()).unwrap();
        let options = LoadOptions::default();
        let executor = load_placed(&model, &placement, &options, &mut |_| {}).unwrap();
        assert!(executor.device().starts_with(name), "{}", executor.device());
    }
}
