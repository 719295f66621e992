//! In deterministic mode a sequence's logits and state have the same bits whatever else is in its batches and however its
//! tokens are cut.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests fail by panicking; sizes are small"
)]

mod support;

use proptest::test_runner::TestRunner;
use proptest::{prelude::*, test_runner::Config};
use rwkv_sched::{
    Batch, Executor, GpuExecutor, LoadOptions, Model, Simd, SlotId, State, Version, Wanted,
    WeightsDType,
};
use support::{
    cpu, feed, gpus,
    random_model::{Dimensions, Packing, Random},
    run, span,
};

const VERSIONS: [Version; 4] = [Version::V7, Version::V6, Version::V5_2, Version::V4];

fn deterministic(model: &Model, gpu: &rwkv_gpu::Gpu) -> GpuExecutor {
    let options = LoadOptions {
        slots: 4,
        weights_dtype: WeightsDType::F16,
        deterministic: true,
        ..LoadOptions::default()
    };
    GpuExecutor::new(model, gpu, &options, &mut |_| {}).unwrap()
}

/// The bits of a sequence's logits, after each token.
fn bits(rows: &[Vec<f32>]) -> Vec<Vec<u32>> {
    let words = |row: &Vec<f32>| row.iter().map(|x| x.to_bits()).collect();
    rows.iter().map(words).collect()
}

/// Feeds `tokens` to slot 1 in random pieces, beside random pieces of others.
fn in_company(
    executor: &mut dyn Executor,
    tokens: &[u32],
    vocab: usize,
    random: &mut Random,
) -> (Vec<Vec<f32>>, State) {
    let mut rows = Vec::new();
    let mut rest = tokens;
    while !rest.is_empty() {
        let (piece, after) = rest.split_at((1 + random.below(12)).min(rest.len()));
        rest = after;
        let mut spans = vec![span(1, piece, Wanted::All)];
        for slot in [0, 2, 3] {
            if random.below(2) == 0 {
                let others = random.prompt(9, vocab);
                spans.push(span(slot, &others, Wanted::None));
            }
        }
        random.shuffle(&mut spans);
        rows.extend(run(executor, &Batch { spans }));
    }
    (rows, executor.state(SlotId(1)).unwrap())
}

fn check(executors: &mut [Box<dyn Executor>; 2], vocab: usize, seed: u64) {
    let mut random = Random::new(seed);
    let tokens = random.tokens(23, vocab);
    let [alone, beside] = executors;
    let want = feed(alone.as_mut(), 0, &tokens, 1);
    let (got, state) = in_company(beside.as_mut(), &tokens, vocab, &mut random);
    assert_eq!(bits(&got), bits(&want));
    assert_eq!(state, alone.state(SlotId(0)).unwrap());
}

#[test]
fn same_bits() {
    for version in VERSIONS {
        let config = Config {
            cases: if version == Version::V7 { 3 } else { 1 },
            failure_persistence: None,
            ..Config::default()
        };
        let packings = prop::sample::select(vec![Packing::F16, Packing::Q8_0, Packing::Mixed]);
        let cases = (any::<u64>(), packings);
        let outcome = TestRunner::new(config).run(&cases, |(seed, packing)| {
            let dimensions = Dimensions {
                version,
                layers: 2,
                heads: 2,
                head_size: 32,
                ffn: 192,
                vocab: 96,
                ranks: [8, 8, 8, 16],
            };
            let model = dimensions.model(packing, seed);
            let vocab = dimensions.vocab;
            for gpu in &gpus()[1..4] {
                let one = || Box::new(deterministic(&model, &gpu.gpu)) as Box<dyn Executor>;
                check(&mut [one(), one()], vocab, seed);
            }
            for level in Simd::ALL.into_iter().filter(|level| level.is_available()) {
                let one = || Box::new(cpu(&model, 4).with_simd(level)) as Box<dyn Executor>;
                check(&mut [one(), one()], vocab, seed);
            }
            Ok(())
        });
        outcome.unwrap_or_else(|error| panic!("{version}: {error}"));
    }
}
