//! States that sequences begin with: a model's own, and ones that were set.

use super::{
    SMALL, copy, noise,
    support::{
        cpu, everywhere, feed,
        random_model::{Dimensions, Packing, Random},
        relative_error, run,
    },
};
use rwkv_kernels::Format;
use rwkv_mem::{Cols, Rows};
use rwkv_sched::{
    Batch, BlockWeight as B, Executor, InMemoryWeights, Model, SlotId, State, Version, Wanted,
    Weight,
};
use std::sync::Arc;

/// A model with tuned states begins with them, in every slot and after every reset; one layer may do without.
#[test]
fn initial_states() {
    let plain = SMALL.model(Packing::F32, 7);
    let tokens = Random::new(3).tokens(5, SMALL.vocab);
    let mut tensors = InMemoryWeights::default();
    for weight in plain.tensors() {
        copy(&mut tensors, &plain, weight);
    }
    let size = SMALL.head_size;
    let tuned = noise(&mut Random::new(8), SMALL.width() * size, 0.5);
    let weight = Weight::Block(1, B::InitialState);
    let mut short = tensors.clone();
    tensors
        .insert(weight, Format::F32, Rows(SMALL.width()), Cols(size), &tuned)
        .unwrap();
    short
        .insert(weight, Format::F32, Rows(1), Cols(size), &tuned[..size])
        .unwrap();
    let short = Model::new(SMALL.config(), Arc::new(short)).unwrap();
    assert!(short.initial_state().is_err());
    let model = Model::new(SMALL.config(), Arc::new(tensors)).unwrap();
    let state = model.initial_state().unwrap();
    let zeros = State::zeros(model.state_layout());
    assert_eq!(plain.initial_state().unwrap(), zeros);
    assert_eq!(state.wkv, [zeros.wkv[0].clone(), tuned]);
    assert_eq!(state.shift, zeros.shift);
    let mut oracle = cpu(&plain, 1);
    oracle.set_state(SlotId(0), &state).unwrap();
    let want = run(&mut oracle, &Batch::single(SlotId(0), &tokens, Wanted::All)).concat();
    for (name, mut executor) in everywhere(&model, 3) {
        for slot in 0..3 {
            assert_eq!(executor.state(SlotId(slot)).unwrap(), state, "{name}");
            let got = feed(executor.as_mut(), slot, &tokens, 5).concat();
            assert!(relative_error(&got, &want) <= 1e-5, "{name}");
            executor.reset(SlotId(slot)).unwrap();
            assert_eq!(executor.state(SlotId(slot)).unwrap(), state, "{name}");
        }
    }
}

/// An initial state that was set is what every reset gives, on every executor alike; slots keep what they hold until
/// then, and the model's own one comes back.
#[test]
fn initial_states_are_set() {
    for version in [Version::V4, Version::V5_2, Version::V6, Version::V7] {
        let small = Dimensions { version, ..SMALL };
        let small = match version {
            Version::V4 => Dimensions {
                heads: 64,
                head_size: 1,
                ..small
            },
            _ => small,
        };
        let model = small.model(Packing::F32, 7);
        let tokens = Random::new(3).tokens(5, small.vocab);
        let mut random = Random::new(9);
        let layout = model.state_layout();
        let zeros = State::zeros(layout);
        let mut tuned = zeros.clone();
        let all = tuned.wkv.iter_mut().chain(&mut tuned.shift);
        all.for_each(|values| *values = noise(&mut random, values.len(), 0.5));
        let mut oracle = cpu(&model, 1);
        oracle.set_state(SlotId(0), &tuned).unwrap();
        let want = feed(&mut oracle, 0, &tokens, 5).concat();
        for (name, mut executor) in everywhere(&model, 3) {
            let executor = executor.as_mut();
            let name = format!("{name}, {version}");
            let held = executor.device_bytes();
            executor.set_initial_state(Some(&tuned)).unwrap();
            assert!(executor.device_bytes() <= held + layout.bytes(), "{name}");
            for slot in [0, 2] {
                assert_eq!(executor.state(SlotId(slot)).unwrap(), zeros, "{name}");
                // Again and again.
                for _ in 0..3 {
                    executor.reset(SlotId(slot)).unwrap();
                    assert_eq!(executor.state(SlotId(slot)).unwrap(), tuned, "{name}");
                    let got = feed(executor, slot, &tokens, 2).concat();
                    assert!(relative_error(&got, &want) <= 1e-5, "{name}");
                }
                assert_eq!(executor.state(SlotId(1)).unwrap(), zeros, "{name}");
            }
            let mut short = tuned.clone();
            short.shift[0].pop();
            let error = executor.set_initial_state(Some(&short)).unwrap_err();
            assert!(
                error.to_string().contains("does not fit this model"),
                "{error}"
            );
            assert!(executor.reset(SlotId(3)).is_err(), "{name}");
            executor.reset(SlotId(1)).unwrap();
            assert_eq!(executor.state(SlotId(1)).unwrap(), tuned, "{name}");
            for state in [Some(&zeros), Some(&tuned), None] {
                executor.set_initial_state(state).unwrap();
                executor.reset(SlotId(0)).unwrap();
                let want = state.unwrap_or(&zeros);
                assert_eq!(&executor.state(SlotId(0)).unwrap(), want, "{name}");
            }
        }
    }
}
