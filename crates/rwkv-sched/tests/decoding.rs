//! Decoding ahead of the caller is decoding step by step: the same tokens, and the same states wherever the caller stops.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests fail by panicking; sizes are small"
)]

mod support;

use rwkv_sched::{
    Batch, Burst, Decoding, Executor, Generation, Logits, SlotId, State, TokenId, Version, Wanted,
    sampling::{Sampler, SamplerParams},
};
use std::ops::ControlFlow;
use support::{
    decoding::{by_hand, counted, decoded},
    everywhere,
    random_model::{Dimensions, Packing, Random},
    reset, span, states, states_error,
};

const SLOTS: [u32; 2] = [2, 0];

fn sequences(vocab: usize, random: &mut Random) -> Vec<Decoding> {
    sequences_in(&SLOTS, vocab, random)
}

fn sequences_in(slots: &[u32], vocab: usize, random: &mut Random) -> Vec<Decoding> {
    let decoding = |slot| {
        let greedy = random.below(3) == 0;
        let params = SamplerParams {
            temperature: if greedy { 0.0 } else { 0.9 },
            top_k: random.below(9) as u32,
            top_p: 0.3 + random.below(7) as f32 / 10.0,
            presence_penalty: random.below(3) as f32 / 4.0,
            frequency_penalty: random.below(3) as f32 / 4.0,
            logit_bias: vec![(random.below(vocab) as u32, -2.0)],
            seed: random.below(1000) as u64,
            ..SamplerParams::default()
        };
        Decoding {
            slot: SlotId(slot),
            token: random.below(vocab) as u32,
            sampler: Sampler::new(params).unwrap(),
        }
    };
    slots.iter().copied().map(decoding).collect()
}

fn model(version: Version, seed: u64) -> rwkv_sched::Model {
    let dimensions = Dimensions {
        version,
        layers: 2,
        heads: 2,
        head_size: 16,
        ffn: 48,
        vocab: 50,
        ranks: [5, 6, 7, 8],
    };
    dimensions.model(Packing::F32, seed)
}

fn check(version: Version, seed: u64) {
    let model = model(version, seed);
    for (name, mut executor) in everywhere(&model, 3) {
        let executor = executor.as_mut();
        let mut random = Random::new(seed);
        for (steps, stop) in [
            (9, 9),
            (9, 1),
            (150, 63),
            (150, 64),
            (150, 131),
            (1, 1),
            (0, 0),
        ] {
            let start = sequences(50, &mut random);
            reset(executor);
            let (want, want_states) = by_hand(executor, start.clone(), stop);
            reset(executor);
            let mut all = start;
            let got = decoded(executor, &mut all, (steps, stop)).unwrap();
            let what = format!("{version}, {name}, {stop} of {steps}");
            assert_eq!(got, want, "{what}");
            assert!(states(executor) == want_states, "{what}: other states");
            if let Some(last) = want.last() {
                let pending: Vec<u32> = all.iter().map(|s| s.token).collect();
                assert_eq!(&pending, last, "{what}");
            }
        }
    }
}

#[test]
fn ahead_and_back() {
    check(Version::V7, 1);
    check(Version::V6, 2);
    check(Version::V4, 3);
    check(Version::V5_2, 4);
}

/// Tokens of each step, the prompts' first, and the states in the end.
type Outcome = (Vec<Vec<Option<TokenId>>>, Vec<State>);

/// The prompts, the first tokens on the host, and then step by step those of the first `going_on`, until `stop` of them were told.
fn apart(
    executor: &mut dyn Executor,
    prompts: &Batch,
    mut all: Vec<Decoding>,
    (steps, stop): (usize, usize),
    going_on: usize,
) -> Outcome {
    let logits = match &prompts.spans[..] {
        [] => Logits::default(),
        _ => executor.run(prompts).unwrap(),
    };
    let mut rows = logits.rows();
    let mut first = vec![None; all.len()];
    for span in prompts.spans.iter().filter(|s| s.wanted == Wanted::Last) {
        let number = all.iter().position(|s| s.slot == span.slot).unwrap();
        let sequence = &mut all[number];
        let token = sequence.sampler.sample(rows.next().unwrap()).unwrap();
        sequence.sampler.accept(token, counted(token));
        sequence.token = token;
        first[number] = Some(token);
    }
    let mut told: Vec<_> = first
        .iter()
        .any(Option::is_some)
        .then_some(first)
        .into_iter()
        .collect();
    let count = all.len();
    all.truncate(going_on);
    let steps = if going_on > 0 { steps } else { 0 };
    let (tokens, states) = by_hand(executor, all, steps.min(stop - told.len()));
    told.extend(tokens.into_iter().map(|step| {
        let mut drawn: Vec<_> = step.into_iter().map(Some).collect();
        drawn.resize(count, None);
        drawn
    }));
    (told, states)
}

fn at_once(
    executor: &mut dyn Executor,
    prompts: &Batch,
    all: &mut [Decoding],
    (steps, stop, may_stop): (usize, usize, bool),
    going_on: usize,
) -> Outcome {
    let mut told = Vec::new();
    let burst = Burst {
        prompts,
        sequences: all,
        going_on,
        steps,
        counted: &counted,
        may_stop,
    };
    let take = &mut |drawn: &[Option<TokenId>]| {
        told.push(drawn.to_vec());
        if told.len() >= stop {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    executor.burst(burst, take).unwrap();
    (told, states(executor))
}

/// A burst is its prompts and its steps one after the other, whoever begins in it, and wherever it is broken off.
#[test]
fn bursts() {
    let (version, seed) = (Version::V7, 11);
    let model = model(version, seed);
    for (name, mut executor) in everywhere(&model, 6) {
        let executor = executor.as_mut();
        let mut random = Random::new(seed);
        // Slots 0 and 4 are at their tokens, 2, 1 and 3 begin, 5 goes on with its prompt.
        let begin = |slots: &[u32], random: &mut Random| {
            let mut spans: Vec<_> = slots
                .iter()
                .map(|slot| span(*slot, &random.prompt(20, 50), Wanted::Last))
                .collect();
            spans.insert(0, span(5, &random.prompt(9, 50), Wanted::None));
            Batch { spans }
        };
        for (beginning, at_tokens, steps, stop, going_on) in [
            (&[2, 1, 3][..], &[0, 4][..], 7, None, 5),
            (&[2], &[0, 4], 0, None, 3),
            (&[], &[0, 4], 5, None, 2),
            (&[3, 1], &[], 70, None, 2),
            (&[2, 3], &[4], 40, Some(1), 3),
            (&[2, 3], &[4], 90, Some(13), 3),
            (&[2], &[4], 150, Some(66), 2),
            (&[], &[4, 0], 80, Some(9), 2),
            // Some of those that begin have no more than their first token.
            (&[2, 1, 3], &[0, 4], 7, None, 3),
            (&[2, 1, 3], &[0, 4], 7, None, 2),
            (&[3, 1], &[], 9, None, 0),
            (&[2, 3], &[4], 90, Some(13), 1),
        ] {
            let mut prompts = begin(beginning, &mut random);
            let slots = [at_tokens, beginning].concat();
            let start = sequences_in(&slots, 50, &mut random);
            // One of those at their tokens has one in the prompts' step too.
            if let ([_, _, _], [first, ..]) = (beginning, &start[..]) {
                let token = span(first.slot.0, &[first.token], Wanted::Last);
                prompts.spans.push(token);
            }
            let until = stop.unwrap_or(usize::MAX);
            let what = format!("{version}, {name}, {beginning:?}, {stop:?} of {steps}, {going_on}");
            reset(executor);
            let want = apart(executor, &prompts, start.clone(), (steps, until), going_on);
            reset(executor);
            let mut all = start;
            let ways = (steps, until, stop.is_some());
            let got = at_once(executor, &prompts, &mut all, ways, going_on);
            assert_eq!(got.0, want.0, "{what}");
            // Groups of sequences on several devices are other kernels.
            let error = states_error(&got.1, &want.1);
            assert!(error <= 1e-5, "{what}: states {error:.1e}");
            for (number, sequence) in all.iter().enumerate() {
                let last = got.0.iter().rev().find_map(|drawn| drawn[number]);
                assert!(last.is_none_or(|last| last == sequence.token), "{what}");
            }
        }
        // Without leave to stop, what is on its way when it is broken off is told, and no more.
        let mut prompts = begin(&[2, 1], &mut random);
        for beginning in [true, false] {
            if !beginning {
                prompts.spans.clear();
            }
            let start = sequences_in(&[2, 0, 1], 50, &mut random);
            let what = format!("{version}, {name}, {beginning}: broken off without leave");
            reset(executor);
            let mut all = start.clone();
            let got = at_once(executor, &prompts, &mut all, (200, 5, false), 3);
            assert!((5..100).contains(&got.0.len()), "{what}: {}", got.0.len());
            reset(executor);
            let want = apart(executor, &prompts, start, (200, got.0.len()), 3);
            assert_eq!(got.0, want.0, "{what}");
            let error = states_error(&got.1, &want.1);
            assert!(error <= 1e-5, "{what}: states {error:.1e}");
        }
        // Without prompts and steps nothing is fed, and nobody gets a token.
        let (mut all, before) = (sequences(50, &mut random), states(executor));
        let ways = (0, usize::MAX, false);
        let (told, after) = at_once(executor, &Batch::default(), &mut all, ways, 2);
        assert!(told.is_empty(), "{version}, {name}: {told:?}");
        assert!(after == before, "{version}, {name}: other states");
    }
}

/// Whether the state is needed afterwards or not, a generation hands out the same tokens, and none after it was broken off.
#[test]
fn generations() {
    let model = model(Version::V7, 5);
    for (name, mut executor) in everywhere(&model, 1) {
        let executor = executor.as_mut();
        for (tokens, stop) in [(0, 9), (1, 9), (30, 1), (30, 13), (30, 30), (150, 90)] {
            let mut told = [Vec::new(), Vec::new()];
            for (needed, told) in [true, false].into_iter().zip(&mut told) {
                reset(executor);
                let prompt = Batch::single(SlotId(0), &[1, 2, 3], Wanted::Last);
                let logits = executor.run(&prompt).unwrap();
                let sampler = Sampler::new(SamplerParams::default()).unwrap();
                let generation =
                    Generation::new(executor, SlotId(0), sampler, Vec::new(), &logits).unwrap();
                let take = &mut |token| {
                    told.push(token);
                    if told.len() >= stop {
                        ControlFlow::Break(())
                    } else {
                        ControlFlow::Continue(())
                    }
                };
                if needed {
                    generation.run(tokens, take).unwrap();
                } else {
                    generation.run_out(tokens, take).unwrap();
                }
            }
            let what = format!("{name}, {tokens} to {stop}");
            assert_eq!(told[0].len(), tokens.min(stop), "{what}");
            assert_eq!(told[0], told[1], "{what}");
        }
    }
}
