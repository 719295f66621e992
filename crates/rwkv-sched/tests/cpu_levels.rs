//! The CPU executor's vector instructions against its twins: random models of every version run the same batches on
//! both, and logits and states agree.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests fail by panicking; sizes are small"
)]

mod support;

use proptest::{prelude::*, test_runner::TestRunner};
use rwkv_sched::{Batch, Executor, Simd, Wanted};
use support::{
    GRAPHS, cpu, dimensions, proptest_config,
    random_model::{Dimensions, Packing, Random},
    relative_error, run, span, states, states_error,
};

/// Both compute in f32 with the same weights; sums are in other orders.
const BOUND: f64 = 2e-5;

/// K formats, whose products round x to 16 bits on x86: about 4e-5 of a result, over the products of three layers.
const ROUNDED: f64 = 3e-4;

/// Random batches on a random model, at every level.
fn check(dimensions: &Dimensions, packing: Packing, seed: u64, bound: f64) {
    let model = dimensions.model(packing, seed);
    let levels = Simd::ALL.into_iter().filter(|level| level.is_available());
    let mut executors: Vec<_> = levels
        .map(|level| cpu(&model, 3).with_simd(level))
        .collect();
    let mut random = Random::new(seed);
    for _ in 0..3 {
        let spans =
            (0..3).map(|slot| span(slot, &random.prompt(20, dimensions.vocab), Wanted::All));
        let batch = Batch {
            spans: spans.collect(),
        };
        let mut outcomes = executors.iter_mut().map(|executor| {
            let logits = run(executor, &batch).concat();
            (executor.device().to_owned(), logits, states(executor))
        });
        let (_, want, want_states) = outcomes.next().unwrap();
        for (device, got, got_states) in outcomes {
            let error = relative_error(&got, &want);
            assert!(error <= bound, "{device}, {packing:?}: logits {error:.1e}");
            let error = states_error(&got_states, &want_states);
            assert!(error <= bound, "{device}, {packing:?}: states {error:.1e}");
        }
    }
}

#[test]
fn agree() {
    let packings = [Packing::F32, Packing::F16, Packing::Q8_0, Packing::Mixed];
    for version in GRAPHS {
        // Whole blocks of 32, so that most formats occur.
        let strategy = (
            dimensions(version, 32),
            any::<u64>(),
            prop::sample::select(packings.to_vec()),
        );
        let outcome =
            TestRunner::new(proptest_config(3)).run(&strategy, |(dimensions, seed, packing)| {
                // K formats occur where rows are whole blocks of 256.
                let widths = [dimensions.width(), dimensions.ffn];
                let rounded =
                    packing == Packing::Mixed && widths.iter().any(|n| n.is_multiple_of(256));
                let bound = if rounded { ROUNDED } else { BOUND };
                check(&dimensions, packing, seed, bound);
                Ok(())
            });
        outcome.unwrap_or_else(|error| panic!("{version}: {error}"));
    }
}

/// Every format, the K formats too.
#[test]
fn blocks_of_256() {
    for version in GRAPHS {
        let dimensions = Dimensions {
            version,
            layers: 3,
            heads: 4,
            head_size: 64,
            ffn: 512,
            vocab: 300,
            ranks: [32; 4],
        };
        for seed in 0..3 {
            check(&dimensions, Packing::Mixed, seed, ROUNDED);
        }
    }
}

/// A pool of one thread, whose steps stay on the caller's, gives the bits of any other.
#[test]
fn threads_change_no_bits() {
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    for version in GRAPHS {
        let dimensions = Dimensions {
            version,
            layers: 2,
            heads: 4,
            head_size: 64,
            ffn: 512,
            vocab: 300,
            ranks: [32; 4],
        };
        let model = dimensions.model(Packing::Mixed, 7);
        // A prompt, then tokens one by one.
        let logits = |threads| {
            pool(threads).unwrap().install(|| {
                let mut executor = cpu(&model, 1);
                let batches = [&[1, 2, 3, 4, 5][..], &[6], &[7], &[8]];
                batches.map(|tokens| {
                    let spans = vec![span(0, tokens, Wanted::All)];
                    run(&mut executor, &Batch { spans }).concat()
                })
            })
        };
        assert!(logits(1) == logits(3), "{version}");
    }
}
