//! What runs with a blend is the model that it makes.

use super::{
    Mixture, SMALL,
    changes::{adapter, blended},
    copy, logits,
    support::{
        RECURRENCES, cpu, dimensions, everywhere, proptest_config,
        random_model::{Dimensions, Packing, Random},
        relative_error,
    },
};
use proptest::{prelude::*, test_runner::TestRunner};
use rwkv_sched::{Adapter, InMemoryWeights, SlotId, Weights};
use std::sync::Arc;

/// Random adapters at random strengths, on every executor, as the model that they make.
#[test]
fn blends_are_the_model_that_they_make() {
    let strategy = (
        prop::sample::select(vec![
            (Packing::F32, 1e-5),
            (Packing::F16, 2e-3),
            (Packing::Q8_0, 2e-3),
            (Packing::Mixed, 2e-3),
        ]),
        prop::sample::select(&RECURRENCES[..]).prop_flat_map(|version| dimensions(version, 32)),
        any::<u64>(),
    );
    let result = TestRunner::new(proptest_config(6)).run(
        &strategy,
        |((packing, bound), dimensions, seed)| {
            let dimensions = Dimensions {
                layers: dimensions.layers.min(2),
                heads: dimensions
                    .heads
                    .min(4)
                    .min(256usize.div_ceil(dimensions.head_size)),
                ffn: dimensions.ffn.min(160),
                vocab: dimensions.vocab.min(100),
                ..dimensions
            };
            let model = dimensions.model(packing, seed);
            let mut random = Random::new(seed ^ 9);
            let tokens = random.tokens(15, dimensions.vocab);
            let adapters: Vec<_> = [0.1, 0.5, 0.9]
                .map(|share| adapter(&model, &mut random, share))
                .into();
            let mut blends = Vec::new();
            for _ in 0..2 {
                let mut blend = Vec::new();
                for changes in &adapters {
                    let strength = [0.0, 1.0, 0.5, -0.5, 0.25][random.below(5)];
                    blend.push((changes, strength));
                }
                let mixture: Mixture = blend
                    .iter()
                    .map(|(changes, s)| (changes.adapter.clone(), *s))
                    .collect();
                let mut oracle = cpu(&blended(&model, &blend), 1);
                blends.push((mixture, logits(&mut oracle, &tokens)));
            }
            for (name, mut executor) in everywhere(&model, 1) {
                let executor = executor.as_mut();
                let base = logits(executor, &tokens);
                let mut first = Vec::new();
                for (mixture, want) in &blends {
                    executor.set_adapters(mixture).unwrap();
                    let got = logits(executor, &tokens);
                    let error = relative_error(&got, want);
                    prop_assert!(error <= bound, "{name}, {packing:?}: error {error:.1e}");
                    first.push(got);
                }
                // There and back again: the same bits.
                for ((mixture, _), want) in blends.iter().zip(&first) {
                    prop_assert!(executor.prepare_adapters(mixture, 1).unwrap().is_done());
                    executor.set_adapters(mixture).unwrap();
                    prop_assert_eq!(&logits(executor, &tokens), want, "{}", name);
                    executor.set_adapters(&[]).unwrap();
                    prop_assert_eq!(&logits(executor, &tokens), &base, "{}", name);
                }
            }
            Ok(())
        },
    );
    result.unwrap_or_else(|error| panic!("{error}"));
}

/// A whole tensor at strength 1 is that tensor, whatever was there; a state stays when adapters change.
#[test]
fn replaced_tensors() {
    let (model, other) = (SMALL.model(Packing::F16, 1), SMALL.model(Packing::F16, 2));
    let tokens = Random::new(3).tokens(12, SMALL.vocab);
    let mut tensors = InMemoryWeights::default();
    let mut adapter = Adapter::new("the other model");
    for weight in other.tensors() {
        copy(&mut tensors, &other, weight);
    }
    let tensors: Arc<dyn Weights> = Arc::new(tensors);
    for weight in other.tensors() {
        adapter.add_whole(weight, &tensors);
    }
    let adapter = Arc::new(adapter);
    let pairs = everywhere(&model, 1).into_iter().zip(everywhere(&other, 1));
    for ((name, mut executor), (_, mut oracle)) in pairs {
        executor.set_adapters(&[(adapter.clone(), 1.0)]).unwrap();
        let want = logits(oracle.as_mut(), &tokens);
        // Blended matrices lie apart, and go through other kernels than those that lie together.
        let got = logits(executor.as_mut(), &tokens);
        let error = relative_error(&got, &want);
        assert!(error < 1e-5, "{name}: {error:.1e}");
        assert!(name != "CPU" || got == want, "{name}");
        // Those of the other model, blended with what they are, go through the same ones.
        oracle.reset(SlotId(0)).unwrap();
        oracle.set_adapters(&[(adapter.clone(), 1.0)]).unwrap();
        assert_eq!(got, logits(oracle.as_mut(), &tokens), "{name}");
        let state = executor.state(SlotId(0)).unwrap();
        executor.set_adapters(&[]).unwrap();
        assert_eq!(executor.state(SlotId(0)).unwrap(), state, "{name}");
    }
}
