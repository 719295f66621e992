//! What a sequence may rely on, on every executor: its logits do not depend on how its tokens were cut, with whom it
//! shared a batch, or where its state has been.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests fail by panicking; sizes are small"
)]

mod support;

use proptest::{prelude::*, test_runner::TestRunner};
use rwkv_sched::{Batch, BatchSpan, Error, Executor, SlotId, State, Version, Wanted};
use support::{
    RECURRENCES, dimensions, everywhere, feed, proptest_config,
    random_model::{Dimensions, Packing, Random},
    relative_error, run, span, states, states_error,
};

/// Other cuts are other kernels and other orders of sums.
const BOUND: f64 = 1e-5;

#[track_caller]
fn agree(what: &str, got: &[Vec<f32>], want: &[Vec<f32>]) {
    assert_eq!(got.len(), want.len(), "{what}");
    let error = relative_error(&got.concat(), &want.concat());
    assert!(error <= BOUND, "{what}: error {error:.1e}");
}

/// Runs `test` on a random small model of each of `versions`, on every executor with `slots` slots.
fn check(versions: &[Version], slots: usize, test: impl Fn(&str, &mut dyn Executor, &mut Random)) {
    for version in versions {
        let strategy = (dimensions(*version, 1), any::<u64>());
        let result = TestRunner::new(proptest_config(1)).run(&strategy, |(dimensions, seed)| {
            let dimensions = Dimensions {
                heads: dimensions.heads.min(2),
                ..dimensions
            };
            let model = dimensions.model(Packing::F32, seed);
            for (name, mut executor) in everywhere(&model, slots) {
                let name = format!("{version}, {name}");
                test(&name, executor.as_mut(), &mut Random::new(seed));
            }
            Ok(())
        });
        result.unwrap_or_else(|error| panic!("{error}"));
    }
}

/// Any cut of a prompt gives the same logits and the same state.
#[test]
fn chunks() {
    check(&RECURRENCES, 2, |name, executor, random| {
        let vocab = executor.config().vocab;
        let tokens = random.prompt(70, vocab);
        let want = feed(executor, 0, &tokens, tokens.len());
        let mut got = Vec::new();
        let mut rest = tokens.as_slice();
        while !rest.is_empty() {
            let (part, after) = rest.split_at(1 + random.below(rest.len().min(20)));
            got.extend(feed(executor, 1, part, part.len()));
            rest = after;
        }
        agree(name, &got, &want);
        let states = states(executor);
        let error = states_error(&states[1..], &states[..1]);
        assert!(error <= BOUND, "{name}: states {error:.1e}");
    });
}

/// A long prompt, whole and in chunks, everywhere.
#[test]
fn long_prompt() {
    for version in RECURRENCES {
        let dimensions = Dimensions {
            version,
            layers: 2,
            heads: 2,
            head_size: 24,
            ffn: 100,
            vocab: 101,
            ranks: [9, 12, 7, 30],
        };
        let model = dimensions.model(Packing::F32, 300);
        let tokens = Random::new(300).tokens(300, dimensions.vocab);
        let mut oracle = None;
        for (name, mut executor) in everywhere(&model, 3) {
            let name = format!("{version}, {name}");
            let whole = feed(executor.as_mut(), 0, &tokens, 300);
            agree(&name, &whole, oracle.get_or_insert_with(|| whole.clone()));
            for (slot, chunk) in [(1, 19), (2, 256)] {
                let cut = feed(executor.as_mut(), slot, &tokens, chunk);
                agree(&format!("{name}, chunks of {chunk}"), &cut, &whole);
            }
        }
    }
}

/// A batch's spans in any order give each slot the same logits; and those that it gets alone.
#[test]
fn company() {
    check(&RECURRENCES, 24, |name, executor, random| {
        let vocab = executor.config().vocab;
        let mut spans: Vec<BatchSpan> = (0..2 + random.below(10) as u32)
            .map(|slot| span(slot, &random.prompt(12, vocab), Wanted::All))
            .collect();
        let together = |spans: &[BatchSpan], executor: &mut dyn Executor| {
            let batch = Batch {
                spans: spans.to_vec(),
            };
            let mut rows = run(executor, &batch).into_iter();
            let mut by_slot: Vec<(SlotId, Vec<Vec<f32>>)> = spans
                .iter()
                .map(|s| (s.slot, rows.by_ref().take(s.tokens.len()).collect()))
                .collect();
            by_slot.sort_by_key(|(slot, _)| *slot);
            by_slot
        };
        let want = together(&spans, executor);
        for slot in 0..spans.len() as u32 {
            executor.reset(SlotId(slot)).unwrap();
        }
        random.shuffle(&mut spans);
        let got = together(&spans, executor);
        for ((slot, got), (_, want)) in got.iter().zip(&want) {
            agree(&format!("{name}, {slot:?}, shuffled"), got, want);
        }
        let before = states(executor);
        for s in &spans {
            let alone = feed(executor, s.slot.0 + 12, &s.tokens, s.tokens.len());
            agree(
                &format!("{name}, {:?}, alone", s.slot),
                &alone,
                &want[s.slot.0 as usize].1,
            );
        }
        assert_eq!(
            states(executor)[..12],
            before[..12],
            "{name}: slots that were not in the batch"
        );
    });
}

/// A state that was read and set elsewhere continues there as it would have at home; a reset slot starts anew.
#[test]
fn states_travel() {
    check(&RECURRENCES, 3, |name, executor, random| {
        let config = executor.config().clone();
        let first = random.prompt(20, config.vocab);
        let then = random.prompt(20, config.vocab);
        let fresh = feed(executor, 0, &first, first.len());
        let kept = executor.state(SlotId(0)).unwrap();
        let want = feed(executor, 0, &then, then.len());
        executor.set_state(SlotId(2), &kept).unwrap();
        assert_eq!(executor.state(SlotId(2)).unwrap(), kept, "{name}");
        let got = feed(executor, 2, &then, then.len());
        assert_eq!(got, want, "{name}: the same kernels on the same state");
        assert_eq!(
            executor.state(SlotId(2)).unwrap(),
            executor.state(SlotId(0)).unwrap(),
            "{name}"
        );
        executor.reset(SlotId(0)).unwrap();
        let zeros = State {
            wkv: kept.wkv.iter().map(|l| vec![0.0; l.len()]).collect(),
            shift: kept.shift.iter().map(|l| vec![0.0; l.len()]).collect(),
        };
        assert_eq!(executor.state(SlotId(0)).unwrap(), zeros, "{name}");
        let again = feed(executor, 0, &first, first.len());
        assert_eq!(again, fresh, "{name}: after a reset");
    });
}

/// A state goes from the CPU to a GPU and back.
#[test]
fn states_change_executors() {
    for version in RECURRENCES {
        let strategy = (dimensions(version, 1), any::<u64>());
        let result = TestRunner::new(proptest_config(1)).run(&strategy, |(dimensions, seed)| {
            let model = dimensions.model(Packing::F32, seed);
            let mut random = Random::new(seed);
            let parts = [9, 14, 5].map(|n| random.tokens(n, dimensions.vocab));
            let mut all = everywhere(&model, 1);
            let (oracle, others) = all.split_at_mut(1);
            let oracle = oracle[0].1.as_mut();
            for (name, executor) in others {
                oracle.reset(SlotId(0)).unwrap();
                let want: Vec<_> = parts.iter().map(|p| feed(oracle, 0, p, p.len())).collect();
                oracle.reset(SlotId(0)).unwrap();
                feed(oracle, 0, &parts[0], 9);
                let state = oracle.state(SlotId(0)).unwrap();
                executor.set_state(SlotId(0), &state).unwrap();
                let second = feed(executor.as_mut(), 0, &parts[1], 14);
                agree(name, &second, &want[1]);
                let state = executor.state(SlotId(0)).unwrap();
                oracle.set_state(SlotId(0), &state).unwrap();
                agree(name, &feed(oracle, 0, &parts[2], 5), &want[2]);
            }
            Ok(())
        });
        result.unwrap_or_else(|error| panic!("{version}: {error}"));
    }
}

/// What cannot run changes nothing and says why.
#[test]
fn refused_batches_change_nothing() {
    const SLOTS: usize = 3;
    check(&[Version::V7], SLOTS, |name, executor, random| {
        let vocab = executor.config().vocab;
        for slot in 0..SLOTS as u32 {
            feed(executor, slot, &random.tokens(5, vocab), 5);
        }
        let before = states(executor);
        let mut refused = |spans: Vec<BatchSpan>, message: &str| {
            let error = executor.run(&Batch { spans }).unwrap_err().to_string();
            assert!(error.contains(message), "{name}: {error}");
            assert!(!error.contains('\n'), "{name}: {error}");
            assert!(states(executor) == before, "{name}: states after: {error}");
        };
        let good = span(0, &[1, 2], Wanted::All);
        let too_large = vocab as u32;
        refused(vec![], "no spans");
        refused(
            vec![good.clone(), span(1, &[1, too_large], Wanted::Last)],
            &format!("token {too_large} is out of range"),
        );
        refused(
            vec![good.clone(), span(1, &[u32::MAX], Wanted::None)],
            "token 4294967295 is out of range",
        );
        refused(
            vec![good.clone(), span(SLOTS as u32, &[1], Wanted::Last)],
            "slot 3 is out of range",
        );
        refused(
            vec![good.clone(), span(u32::MAX, &[1], Wanted::Last)],
            "slot 4294967295 is out of range",
        );
        refused(
            vec![
                good.clone(),
                span(1, &[1], Wanted::Last),
                span(0, &[1], Wanted::Last),
            ],
            "slot 0 occurs twice",
        );
        refused(
            vec![good, span(1, &[], Wanted::Last)],
            "slot 1 has no tokens",
        );

        let far = SlotId(SLOTS as u32);
        let state = before[0].clone();
        let mut short = state.clone();
        short.wkv.pop();
        let mut thin = state.clone();
        thin.shift[0].pop();
        let slot_range = [
            executor.reset(far),
            executor.set_state(far, &state),
            executor.state(far).map(drop),
        ];
        for result in slot_range {
            assert!(
                matches!(result, Err(Error::SlotRange { .. })),
                "{name}: {result:?}"
            );
        }
        for bad in [short, thin] {
            let result = executor.set_state(SlotId(0), &bad);
            assert!(
                matches!(result, Err(Error::State { .. })),
                "{name}: {result:?}"
            );
        }
        assert!(states(executor) == before, "{name}");
    });
}

/// More batch shapes than an executor keeps plans for, twice.
#[test]
fn many_shapes() {
    check(&[Version::V7], 2, |name, executor, random| {
        let tokens = random.tokens(40, executor.config().vocab);
        for round in 0..2 {
            for count in (1..=40).step_by(2 - round) {
                let batch = |slot| Batch::single(SlotId(slot), &tokens[..count], Wanted::Last);
                let want = run(executor, &batch(0));
                let got = feed(executor, 1, &tokens[..count], count);
                agree(name, &want, &got[count - 1..]);
                executor.reset(SlotId(0)).unwrap();
                executor.reset(SlotId(1)).unwrap();
            }
        }
    });
}
