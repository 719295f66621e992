//! The GPU executor against its oracle: random models run the same ragged batches on both, and logits and states
//! agree.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests fail by panicking; sizes are small"
)]

mod support;

use proptest::{prelude::*, test_runner::TestRunner};
use rwkv_sched::{Batch, Executor, SlotId, State, Version, Wanted};
use std::cell::Cell;
use support::{
    GRAPHS, TestGpu, cpu, dimensions, gpus, on_gpu, proptest_config,
    random_model::{Dimensions, Packing, Random},
    relative_error, run, span, states, states_error,
};

/// Sequences that an executor keeps: more than a batch has.
const SLOTS: usize = 40;

/// Multiplications that the batches of one case may take, about a tenth of a second's on one core.
const WORK: usize = 40_000_000;

/// Models, and what they run.
#[derive(Clone, Debug)]
struct Case {
    dimensions: Dimensions,
    seed: u64,
    /// For each batch, its spans: how many tokens, and what is wanted.
    batches: Vec<Vec<(usize, Wanted)>>,
}

fn case(version: Version, block: usize) -> impl Strategy<Value = Case> {
    let length = prop_oneof![3 => Just(1usize), 2 => 1..=9usize, 1 => 1..=40usize];
    let wanted = prop::sample::select(vec![Wanted::None, Wanted::Last, Wanted::All]);
    let spans = prop_oneof![3 => 1..=4usize, 1 => 5..=33usize];
    let batch =
        spans.prop_flat_map(move |n| prop::collection::vec((length.clone(), wanted.clone()), n));
    let batches = prop::collection::vec(batch, 1..=3);
    (dimensions(version, block), any::<u64>(), batches).prop_map(|(dimensions, seed, batches)| {
        Case {
            dimensions,
            seed,
            batches,
        }
    })
}

impl Case {
    /// The batches: over slots in any order, each going on where the earlier ones left the slot.
    fn batches(&self) -> Vec<Batch> {
        let mut random = Random::new(self.seed ^ 1);
        let mut budget = WORK / self.dimensions.work();
        let mut slots: Vec<u32> = (0..SLOTS as u32).collect();
        random.shuffle(&mut slots);
        let mut batches = Vec::new();
        for spans in &self.batches {
            // Of the slots that the longest batch takes: so that later batches meet them again.
            let most = self.batches.iter().map(Vec::len).max().unwrap_or(0);
            random.shuffle(&mut slots[..most]);
            let spans = spans.iter().zip(&slots).map(|(&(length, wanted), slot)| {
                let length = length.min(budget.max(1));
                budget -= length.min(budget);
                span(*slot, &random.tokens(length, self.dimensions.vocab), wanted)
            });
            let spans = spans.collect();
            batches.push(Batch { spans });
        }
        batches
    }
}

/// The largest error of logits and of states.
#[derive(Clone, Copy, Debug, Default)]
struct Errors {
    logits: f64,
    states: f64,
}

/// Runs `case` on the oracle and on `gpu`.
fn errors(case: &Case, packing: Packing, gpu: &TestGpu) -> Errors {
    let model = case.dimensions.model(packing, case.seed);
    let mut oracle = cpu(&case.dimensions.model(packing.resident(), case.seed), SLOTS);
    let mut subject = on_gpu(&model, SLOTS, &gpu.gpu, packing.weights_dtype());
    let mut errors = Errors::default();
    for batch in case.batches() {
        let want = run(&mut oracle, &batch).concat();
        // What pads a batch begins with numbers that are none.
        subject.poison().unwrap();
        let got = run(&mut subject, &batch).concat();
        errors.logits = errors.logits.max(relative_error(&got, &want));
    }
    errors.states = states_error(&states(&mut subject), &states(&mut oracle));
    errors
}

/// `cases` random cases of each graph, each on every GPU.
fn check(packing: Packing, bound: f64, cases: u32) {
    let block = if packing == Packing::Q8_0 { 32 } else { 1 };
    for version in GRAPHS {
        // The newest has the most kernels of its own.
        let cases = if version == Version::V7 {
            6 * cases
        } else {
            cases
        };
        let worst = Cell::new(Errors::default());
        let strategy = case(version, block);
        let result = TestRunner::new(proptest_config(cases)).run(&strategy, |case| {
            for gpu in gpus() {
                let errors = errors(&case, packing, gpu);
                worst.set(Errors {
                    logits: worst.get().logits.max(errors.logits),
                    states: worst.get().states.max(errors.states),
                });
                prop_assert!(
                    errors.logits <= bound && errors.states <= bound,
                    "{errors:?} on {}, allowed {bound:.0e}",
                    gpu.name
                );
            }
            Ok(())
        });
        eprintln!("{version}, {packing:?}: largest {:?}", worst.get());
        result.unwrap_or_else(|error| panic!("{version}, {packing:?}: {error}"));
    }
}

/// Steps of one token a sequence, with dimensions that the kernels of groups take: `cases` of each graph, each on one of
/// the GPUs. The oracle runs the graph operation by operation. Past eight sequences the products are kernels of their own.
fn check_decoding(packing: Packing, bound: f64, cases: u32) {
    // Whole vec4s, and whole blocks of the format.
    let block = if packing == Packing::Q8_0 { 32 } else { 4 };
    for version in GRAPHS {
        let sequences =
            prop_oneof![3 => 1..=3usize, 2 => 4..=8usize, 1 => 9..=16usize, 1 => 17..=SLOTS];
        let wanted = prop::sample::select(vec![Wanted::None, Wanted::Last]);
        let batch = sequences
            .prop_flat_map(move |n| prop::collection::vec((Just(1usize), wanted.clone()), n));
        let batches = prop::collection::vec(batch, 2..=5);
        let strategy = (
            dimensions(version, block),
            any::<u64>(),
            batches,
            0..gpus().len(),
        );
        let result = TestRunner::new(proptest_config(cases)).run(
            &strategy,
            |(dimensions, seed, batches, gpu)| {
                let case = Case {
                    dimensions,
                    seed,
                    batches,
                };
                let gpu = &gpus()[gpu];
                let errors = errors(&case, packing, gpu);
                prop_assert!(
                    errors.logits <= bound && errors.states <= bound,
                    "{errors:?} on {}, allowed {bound:.0e}",
                    gpu.name
                );
                Ok(())
            },
        );
        result.unwrap_or_else(|error| panic!("{version}, {packing:?}: {error}"));
    }
}

#[test]
fn decoding_in_groups() {
    check_decoding(Packing::F32, 1e-5, 4);
    check_decoding(Packing::F16, 2e-3, 4);
    check_decoding(Packing::Q8_0, 2e-3, 2);
    check_decoding(Packing::Mixed, 2e-3, 2);
}

/// f32 on both sides: what is left is the order of sums and the driver's exponential. Of 300 models the worst error
/// was that of moving every weight of the oracle by one unit in its last place, up to 40 times that unit.
#[test]
fn f32_weights() {
    check(Packing::F32, 1e-5, 4);
}

/// f16 tensors are the same numbers on both sides; the bound leaves room for kernels with f16 inputs.
#[test]
fn f16_weights() {
    check(Packing::F16, 2e-3, 2);
}

/// Weights that are rounded to f16 on their way to the GPU, against a model that has them so.
#[test]
fn f32_weights_as_f16() {
    check(Packing::F32AsF16, 2e-3, 2);
}

#[test]
fn q8_0_weights() {
    check(Packing::Q8_0, 2e-3, 2);
}

#[test]
fn mixed_weights() {
    check(Packing::Mixed, 2e-3, 2);
}

/// More slots than one binding holds on a small adapter (128 MiB, 128 KiB a slot here): sequences in different pages of
/// the state run in one batch.
#[test]
fn state_pages() {
    let dimensions = Dimensions {
        version: Version::V7,
        layers: 1,
        heads: 2,
        head_size: 128,
        ffn: 300,
        vocab: 50,
        ranks: [5, 6, 7, 8],
    };
    let slots = 1_100;
    // The oracle keeps only the sequences that are used.
    let used = [0, 1_023, 1_024, 1_099];
    let model = dimensions.model(Packing::F32, 3);
    let mut oracle = cpu(&model, used.len());
    let mut random = Random::new(5);
    let batches: Vec<Vec<Vec<u32>>> = (0..3)
        .map(|_| used.map(|_| random.prompt(6, dimensions.vocab)).to_vec())
        .collect();
    let subject = &gpus()[0];
    let mut subject = on_gpu(&model, slots, &subject.gpu, Packing::F32.weights_dtype());
    for tokens in &batches {
        let batch = |slots: &[u32]| Batch {
            spans: slots
                .iter()
                .zip(tokens)
                .map(|(s, t)| span(*s, t, Wanted::All))
                .collect(),
        };
        let want = run(&mut oracle, &batch(&[0, 1, 2, 3])).concat();
        let got = run(&mut subject, &batch(&used)).concat();
        assert!(relative_error(&got, &want) <= 1e-5);
    }
    for (place, slot) in (0..).zip(used) {
        let want = oracle.state(SlotId(place)).unwrap();
        let got = subject.state(SlotId(slot)).unwrap();
        assert!(states_error(&[got], &[want]) <= 1e-5, "slot {slot}");
    }
    subject.reset(SlotId(1_024)).unwrap();
    let zeros = State::zeros(model.state_layout());
    assert_eq!(subject.state(SlotId(1_024)).unwrap(), zeros);
    assert_ne!(subject.state(SlotId(1_023)).unwrap(), zeros);
}
