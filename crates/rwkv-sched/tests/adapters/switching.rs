//! One blend after the other, and which of them are kept.

use super::{
    Mixture, SMALL,
    changes::adapter,
    logits,
    support::{
        cpu, everywhere, gpus, proptest_config,
        random_model::{Packing, Random},
    },
};
use proptest::{prelude::*, test_runner::TestRunner};
use rwkv_sched::{Executor, GpuExecutor, LoadOptions, WeightsDType};
use std::collections::HashSet;

/// Tensor by tensor, with other work in between; more blends than are kept; equal blends written otherwise.
#[test]
fn switching() {
    let model = SMALL.model(Packing::F16, 1);
    let mut random = Random::new(2);
    let tokens = random.tokens(12, SMALL.vocab);
    let adapters: Vec<_> = (0..3).map(|_| adapter(&model, &mut random, 0.5)).collect();
    let [a, b, c] = [0, 1, 2].map(|i: usize| adapters[i].adapter.clone());
    for (name, mut executor) in everywhere(&model, 1) {
        let executor = executor.as_mut();
        let base = logits(executor, &tokens);
        let blend = [(a.clone(), 1.0), (b.clone(), 0.5)];
        let other = [(c.clone(), 1.0)];
        let total = executor.prepare_adapters(&blend, 1).unwrap().total;
        assert!(total > 5, "{total}");
        // Two blends in turn, and steps of the base model in between.
        for done in 2..=total {
            assert_eq!(logits(executor, &tokens), base, "{name}");
            executor.prepare_adapters(&other, 1).unwrap();
            let progress = executor.prepare_adapters(&blend, 1).unwrap();
            assert_eq!([progress.done, progress.total], [done, total], "{name}");
            assert_eq!(progress.is_done(), done == total, "{name}");
        }
        assert_eq!(logits(executor, &tokens), base, "{name}");
        executor.set_adapters(&blend).unwrap();
        let want = logits(executor, &tokens);
        assert_ne!(want, base);
        for same in [
            vec![(b.clone(), 0.5), (a.clone(), 1.0)],
            vec![
                (b.clone(), 0.25),
                (c.clone(), 0.0),
                (a.clone(), 1.0),
                (b.clone(), 0.25),
            ],
        ] {
            assert!(executor.prepare_adapters(&same, 1).unwrap().is_done());
            executor.set_adapters(&[]).unwrap();
            executor.set_adapters(&same).unwrap();
            assert_eq!(logits(executor, &tokens), want, "{name}");
        }
        for nothing in [
            vec![(a.clone(), 0.0)],
            vec![(a.clone(), 2.0), (a.clone(), -2.0)],
        ] {
            executor.set_adapters(&nothing).unwrap();
            assert_eq!(logits(executor, &tokens), base, "{name}");
        }
        let strengths = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8];
        let all: Vec<_> = strengths
            .iter()
            .map(|s| {
                executor.set_adapters(&[(a.clone(), *s)]).unwrap();
                logits(executor, &tokens)
            })
            .collect();
        let held = executor.device_bytes();
        for (strength, want) in strengths.iter().zip(&all).rev() {
            executor.set_adapters(&[(a.clone(), *strength)]).unwrap();
            assert_eq!(&logits(executor, &tokens), want, "{name}");
        }
        // What is kept is bounded.
        let bytes = executor.device_bytes();
        assert!(bytes < held + held / 2, "{name}: {bytes} after {held}");
    }
}

/// Many sets of adapters in any order, prepared and used: the bytes stay under the bound, but for what may not go, and
/// what comes out is what each set makes alone.
#[test]
fn blends_stay_under_their_bound() {
    const SETS: usize = 7;
    let model = SMALL.model(Packing::F16, 1);
    let mut random = Random::new(21);
    let tokens = random.tokens(9, SMALL.vocab);
    let adapters: Vec<_> = [0.15, 0.3, 0.5, 0.9]
        .map(|share| adapter(&model, &mut random, share).adapter)
        .into();
    let set = |i: usize| -> Mixture {
        let one = |a: usize, s: f32| (adapters[a].clone(), s);
        match i {
            0..4 => vec![one(i, 1.0)],
            4 => vec![one(0, 0.5), one(1, 1.0)],
            5 => vec![one(3, -0.5)],
            _ => vec![],
        }
    };
    let dtype = WeightsDType::F32;
    let executors = |bound: u64| -> Vec<(String, Box<dyn Executor>)> {
        let cpu = cpu(&model, 1).with_blend_bytes(bound);
        let mut all: Vec<(String, Box<dyn Executor>)> = vec![("CPU".to_owned(), Box::new(cpu))];
        for gpu in &gpus()[..2] {
            let options = LoadOptions {
                weights_dtype: dtype,
                blend_bytes: bound,
                ..LoadOptions::default()
            };
            let executor = GpuExecutor::new(&model, &gpu.gpu, &options, &mut |_| {}).unwrap();
            all.push((gpu.name.clone(), Box::new(executor)));
        }
        all
    };
    // What each set makes alone, and how large it is.
    let mut alone: Vec<Vec<(Vec<f32>, u64)>> = Vec::new();
    for (_, mut executor) in executors(0) {
        let row = (0..SETS).map(|i| {
            executor.set_adapters(&set(i)).unwrap();
            let bytes = executor.blend_bytes();
            (logits(executor.as_mut(), &tokens), bytes)
        });
        alone.push(row.collect());
    }
    for sizes in &alone {
        assert_eq!(sizes[SETS - 1].1, 0, "0 keeps the one in use, and no other");
        assert!(sizes[3].1 > sizes[0].1, "whatever it is");
    }
    let actions = prop::collection::vec(
        (0..SETS, prop::sample::select(vec![0usize, 1, 4, 999])),
        1..24,
    );
    let strategy = (actions, 0.0f64..4.0);
    let result = TestRunner::new(proptest_config(10)).run(&strategy, |(actions, room)| {
        let unit = alone[0][3].1.max(alone[1][3].1);
        let bound = (room * unit as f64) as u64;
        for ((name, mut executor), alone) in executors(bound).into_iter().zip(&alone) {
            let executor = executor.as_mut();
            let (mut active, mut newest, mut making) = (SETS - 1, SETS - 1, SETS - 1);
            for &(i, tensors) in &actions {
                // What stays whatever it takes; a set that is being made is no larger than in the end.
                let mut stays = HashSet::from([active, newest, making, i]);
                if tensors == 0 {
                    executor.set_adapters(&set(i)).unwrap();
                    (active, newest, making) = (i, SETS - 1, SETS - 1);
                    stays = HashSet::from([i]);
                } else {
                    let progress = executor.prepare_adapters(&set(i), tensors).unwrap();
                    if !progress.is_done() {
                        making = i;
                    } else if progress.total > 0 {
                        newest = i;
                    }
                    // What was ready before changes nothing.
                }
                let most: u64 = stays.iter().map(|i| alone[*i].1 + 1024).sum();
                let bytes = executor.blend_bytes();
                prop_assert!(
                    bytes <= bound.max(most),
                    "{name}: {bytes} bytes, bound {bound}, {most} in use"
                );
                prop_assert!(executor.device_bytes() >= bytes);
                prop_assert_eq!(
                    &logits(executor, &tokens),
                    &alone[active].0,
                    "{}, set {}",
                    name,
                    active
                );
            }
        }
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}
