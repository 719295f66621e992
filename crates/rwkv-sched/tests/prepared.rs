//! Steps that are recorded before they are asked for. In a file of its own, since what an executor has counted is compared.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod support;

use rwkv_sched::{
    Batch, BatchShape, BatchSpan, Decoding, Executor, GpuExecutor, SlotId, Version, Wanted,
    WeightsDType,
    sampling::{Sampler, SamplerParams},
};
use std::ops::ControlFlow;
use support::{
    cpu, gpus, on_gpu,
    random_model::{Dimensions, Packing, Random},
    relative_error, run, span,
};

const VOCAB: usize = 90;

fn dimensions() -> Dimensions {
    Dimensions {
        version: Version::V7,
        layers: 2,
        heads: 2,
        head_size: 32,
        ffn: 96,
        vocab: VOCAB,
        ranks: [8, 8, 8, 8],
    }
}

/// A span of so many tokens for each of the first slots.
fn batch(lengths: &[usize], random: &mut Random) -> Batch {
    let spans = (0u32..).zip(lengths);
    let spans =
        spans.map(|(slot, length)| span(slot, &random.tokens(*length, VOCAB), Wanted::Last));
    Batch {
        spans: spans.collect::<Vec<BatchSpan>>(),
    }
}

/// Shapes that take turns are recorded before they come from the second round on, and steps that were recorded for one batch
/// serve another of the same padded shape.
#[test]
fn what_takes_turns_is_there() {
    let model = dimensions().model(Packing::F32, 3);
    let mut oracle = cpu(&model, 9);
    let mut executor = on_gpu(&model, 9, &gpus()[0].gpu, WeightsDType::F32);
    let mut random = Random::new(4);
    let shapes: [&[usize]; 4] = [&[1], &[1; 9], &[5, 3, 4], &[5, 3, 3]];
    for round in 0..12 {
        let before = executor.stats();
        for lengths in shapes {
            let batch = batch(lengths, &mut random);
            let (got, want) = (
                run(&mut executor, &batch).concat(),
                run(&mut oracle, &batch).concat(),
            );
            let error = relative_error(&got, &want);
            assert!(error < 1e-4, "{lengths:?} in round {round}: {error}");
        }
        let counts = executor.stats().since(&before).prepared;
        assert_eq!(counts.hits + counts.misses, 4);
        assert!(round < 2 || counts.misses == 0, "round {round}: {counts:?}");
    }
}

fn sequences(count: u32) -> Vec<Decoding> {
    let one = |slot| Decoding {
        slot: SlotId(slot),
        token: 5,
        sampler: Sampler::new(SamplerParams::default()).unwrap(),
    };
    (0..count).map(one).collect()
}

/// What is told while tokens are made has its plan and its recording when it comes, though it never came before.
#[test]
fn what_is_told_is_there() {
    let model = dimensions().model(Packing::F32, 3);
    let mut executor = on_gpu(&model, 4, &gpus()[0].gpu, WeightsDType::F32);
    let expected = executor.expected().unwrap();
    let mut random = Random::new(5);
    let unseen = batch(&[7, 30], &mut random);
    let shape = BatchShape {
        tokens: 37,
        spans: 2,
        outputs: 2,
    };
    let decode = |executor: &mut GpuExecutor| {
        let mut steps = 0;
        let take = &mut |_: &[u32]| {
            steps += 1;
            if steps == 3 {
                expected.tell(Some(shape));
            }
            ControlFlow::Continue(())
        };
        executor
            .decode(&mut sequences(2), 6, &|_| true, take)
            .unwrap();
    };
    decode(&mut executor);
    let before = executor.stats();
    run(&mut executor, &unseen);
    let counts = executor.stats().since(&before);
    assert_eq!((counts.plans.hits, counts.plans.misses), (1, 0));
    assert_eq!((counts.prepared.hits, counts.prepared.misses), (1, 0));
    // And the next step that makes tokens was a guess.
    decode(&mut executor);
    let before = executor.stats();
    decode(&mut executor);
    let counts = executor.stats().since(&before);
    assert_eq!((counts.prepared.hits, counts.prepared.misses), (1, 0));
}
