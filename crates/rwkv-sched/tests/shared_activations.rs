//! Plans of one executor share the buffers of their activations.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod support;

use proptest::prelude::*;
use rwkv_gpu::Gpu;
use rwkv_sched::{
    Batch, Executor, GpuExecutor, LoadOptions, Model, SlotId, State, Version, Wanted,
};
use std::collections::HashMap;
use support::{
    GRAPHS,
    decoding::{decoded_alone, seeded},
    feed, gpus, own_gpu, proptest_config,
    random_model::{Dimensions, Packing, Random},
    relative_error, run, span, states,
};

const SLOTS: u32 = 3;

fn dimensions(version: Version) -> Dimensions {
    Dimensions {
        version,
        layers: 2,
        heads: 4,
        head_size: 32,
        ffn: 384,
        vocab: 300,
        ranks: [16, 16, 16, 32],
    }
}

fn load(model: &Model, gpu: &Gpu, deterministic: bool) -> GpuExecutor {
    let options = LoadOptions {
        slots: SLOTS as usize,
        deterministic,
        ..LoadOptions::default()
    };
    GpuExecutor::new(model, gpu, &options, &mut |_| {}).unwrap()
}

/// Tokens of each slot's span, and whose logits are wanted.
type Step = (Vec<usize>, Wanted);

fn batch((lengths, wanted): &Step, random: &mut Random) -> Batch {
    let spans = (0u32..).zip(lengths);
    let spans = spans.map(|(slot, length)| span(slot, &random.tokens(*length, 300), *wanted));
    Batch {
        spans: spans.collect(),
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let lengths = prop::sample::select(vec![
        vec![1],
        vec![1; 3],
        vec![7],
        vec![3, 1, 12],
        vec![40],
        vec![17, 2],
        vec![131],
        vec![300],
        vec![20, 290],
    ]);
    let wanted = prop::sample::select(vec![Wanted::None, Wanted::Last, Wanted::All]);
    prop::collection::vec((lengths, wanted), 2..10)
}

/// What a step makes: logits, and the states after it.
fn outcome(executor: &mut GpuExecutor, batch: &Batch) -> (Vec<f32>, Vec<State>) {
    let logits = run(executor, batch).concat();
    (logits, states(executor))
}

proptest! {
    #![proptest_config(proptest_config(12))]

    /// Steps of any shapes, one after the other, are what each is in an executor that has no other; what plans share is
    /// overwritten before each step.
    #[test]
    fn steps_are_what_they_are_alone(
        version in prop::sample::select(GRAPHS.to_vec()),
        way in 0usize..4,
        deterministic: bool,
        steps in steps(),
        seed in 1u64..1000,
    ) {
        let model = dimensions(version).model(Packing::F16, seed);
        let gpu = &gpus()[way].gpu;
        // Elsewhere the order of sums differs from run to run.
        let exact = deterministic || !gpu.capabilities().float_atomics;
        let mut random = Random::new(seed);
        let mut shared = load(&model, gpu, deterministic);
        let mut alone: HashMap<Vec<usize>, GpuExecutor> = HashMap::new();
        for step in &steps {
            let batch = batch(step, &mut random);
            let one = alone.entry(step.0.clone());
            let one = one.or_insert_with(|| load(&model, gpu, deterministic));
            for (slot, state) in (0u32..).zip(states(&mut shared)) {
                one.set_state(SlotId(slot), &state).unwrap();
            }
            shared.poison().unwrap();
            let (got, want) = (outcome(&mut shared, &batch), outcome(one, &batch));
            if exact {
                prop_assert!(got == want, "{step:?} of {steps:?}");
            } else {
                let error = relative_error(&got.0, &want.0);
                prop_assert!(error < 1e-4, "{step:?} of {steps:?}: {error}");
            }
        }
    }
}

/// Blocks of more than a MiB lie in buffers of other sizes; a prompt is the same at once and in pieces whose blocks do not.
#[test]
fn a_long_prompt_at_once() {
    for version in [Version::V4, Version::V6, Version::V7] {
        let model = dimensions(version).model(Packing::F16, 5);
        let prompt = Random::new(6).tokens(2100, 300);
        let ways = [false, true].into_iter();
        // Which takes long.
        for deterministic in ways.filter(|way| !way || version == Version::V7) {
            let [at_once, in_pieces] = [prompt.len(), 200].map(|length| {
                let mut executor = load(&model, &gpus()[3].gpu, deterministic);
                feed(&mut executor, 0, &prompt, length).concat()
            });
            let error = relative_error(&at_once, &in_pieces);
            let most = if deterministic { 0.0 } else { 1e-4 };
            assert!(error <= most, "{version}, {deterministic}: {error}");
        }
    }
}

/// Chunks of a prompt on their way, a decoding that runs ahead and other batches take turns.
#[test]
fn work_on_its_way_is_not_overwritten() {
    let model = dimensions(Version::V7).model(Packing::F16, 3);
    let gpu = &gpus()[3].gpu;
    assert!(!gpu.capabilities().float_atomics);
    let prompt = Random::new(4).tokens(700, 300);
    let turn = |executor: &mut GpuExecutor, others: bool| {
        executor.reset(SlotId(0)).unwrap();
        for chunk in prompt.chunks(256) {
            // Nobody waits for it.
            run(executor, &Batch::single(SlotId(0), chunk, Wanted::None));
            if others {
                executor.poison().unwrap();
                run(
                    executor,
                    &Batch::single(SlotId(1), &prompt[..90], Wanted::None),
                );
                executor.poison().unwrap();
            }
        }
        // The caller stops while more steps are on their way.
        let tokens = decoded_alone(executor, seeded(7), 32, Some(12));
        if others {
            executor.poison().unwrap();
        }
        let more = decoded_alone(executor, seeded(7), 25, Some(5));
        (tokens, more, executor.state(SlotId(0)).unwrap())
    };
    let want = turn(&mut load(&model, gpu, false), false);
    let mut executor = load(&model, gpu, false);
    for _ in 0..3 {
        assert!(turn(&mut executor, true) == want);
    }
}

/// However many shapes come in whatever order, memory is little more than with the largest alone, and stays so.
#[test]
fn memory_is_that_of_the_largest_plan() {
    for version in [Version::V7, Version::V6, Version::V4] {
        let model = dimensions(version).model(Packing::F16, 3);
        let gpu = own_gpu();
        let shapes: [Step; 12] = [
            (vec![1], Wanted::Last),
            (vec![1; 3], Wanted::Last),
            (vec![2], Wanted::None),
            (vec![5, 1], Wanted::Last),
            (vec![17], Wanted::Last),
            (vec![33, 30], Wanted::All),
            (vec![64], Wanted::None),
            (vec![100], Wanted::Last),
            (vec![128], Wanted::All),
            (vec![200, 1, 1], Wanted::Last),
            (vec![256], Wanted::None),
            (vec![256], Wanted::All),
        ];
        let mut random = Random::new(8);
        let mut largest = load(&model, &gpu, false);
        let fixed = largest.weights_bytes();
        run(&mut largest, &batch(&shapes[11], &mut random));
        let alone = gpu.memory().in_use - fixed;
        drop(largest);
        assert_eq!(gpu.memory().in_use, 0);
        let mut executor = load(&model, &gpu, false);
        let mut taken = Vec::new();
        for round in 0..6 {
            for at in 0..shapes.len() {
                // Upwards, downwards, and mixed.
                let at = match round {
                    0 | 1 => at,
                    2 | 3 => shapes.len() - 1 - at,
                    _ => (at * 5 + round) % shapes.len(),
                };
                run(&mut executor, &batch(&shapes[at], &mut random));
            }
            taken.push(gpu.memory().in_use - fixed);
        }
        for bytes in &taken {
            let ratio = *bytes as f64 / alone as f64;
            assert!(ratio < 1.15, "{version}: {alone} alone, {taken:?}");
        }
        assert!(
            taken[1..].iter().all(|b| *b == taken[1]),
            "{version}: {taken:?}"
        );
        drop(executor);
        assert_eq!(gpu.memory().in_use, 0);
    }
}

/// What a batch took that was larger than all others goes when another large one comes.
#[test]
fn the_largest_plan_goes() {
    let model = dimensions(Version::V7).model(Packing::F16, 3);
    let gpu = own_gpu();
    let mut executor = load(&model, &gpu, false);
    let mut random = Random::new(8);
    let mut step = |executor: &mut GpuExecutor, tokens: usize| {
        run(executor, &batch(&(vec![tokens], Wanted::Last), &mut random));
        gpu.memory().in_use
    };
    // More than what is usual: a chunk.
    let chunk = executor.chunk();
    let large = chunk + chunk / 6;
    let before = [large, 1, 40].map(|tokens| step(&mut executor, tokens))[2];
    // Those of few tokens take some of its buffers.
    let during = [10 * large, 1, 40].map(|tokens| step(&mut executor, tokens))[2];
    assert!(during - before > 4 << 20, "{before}, {during}");
    let after = step(&mut executor, large);
    assert!(after <= before + before / 20, "{before}, {during}, {after}");
}
