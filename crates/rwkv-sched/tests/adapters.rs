//! Adapters on every executor, against models whose weights were blended on the host; and tuned initial states.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests fail by panicking; sizes are small"
)]

mod support;

use proptest::{prelude::*, test_runner::TestRunner};
use rwkv_kernels::Format;
use rwkv_mem::{Cols, Rows};
use rwkv_sched::{
    Adapter, Batch, BlockWeight as B, Executor, GpuExecutor, InMemoryWeights, LoadOptions, LowRank,
    Model, Op, SlotId, State, Version, Wanted, Weight, Weights, WeightsDType,
};
use std::{collections::HashSet, sync::Arc};
use support::{
    RECURRENCES, dimensions, everywhere, feed, gpus, proptest_config,
    random_model::{Dimensions, Packing, Random},
    relative_error, run,
};

type Mixture = Vec<(Arc<Adapter>, f32)>;

/// In ±`size`.
fn noise(random: &mut Random, count: usize, size: f32) -> Vec<f32> {
    let unit = |random: &mut Random| random.below(1 << 20) as f32 / (1 << 19) as f32 - 1.0;
    (0..count).map(|_| size * unit(random)).collect()
}

/// What an adapter of the tests changes, so that the oracle can do the same.
struct Changes {
    adapter: Arc<Adapter>,
    low_rank: Vec<(Weight, LowRank)>,
    whole: Vec<(Weight, Vec<f32>)>,
}

fn matrices(model: &Model) -> HashSet<Weight> {
    let nodes = model.graph().nodes().iter();
    nodes
        .filter_map(|node| match node.op {
            Op::Embed { table: weight } | Op::MatMul { weight } => Some(weight),
            _ => None,
        })
        .collect()
}

fn values(model: &Model, weight: Weight) -> Vec<f32> {
    let shape = model.weights().matrix(weight).unwrap().shape();
    model
        .weights()
        .vector(weight, shape.elements().unwrap())
        .unwrap()
}

/// Changes about `share` of the tensors.
fn adapter(model: &Model, random: &mut Random, share: f32) -> Changes {
    let matrices = matrices(model);
    let mut adapter = Adapter::new("test");
    let mut tensors = InMemoryWeights::default();
    let (mut low_rank, mut whole) = (Vec::new(), Vec::new());
    for weight in model.tensors() {
        let shape = model.weights().matrix(weight).unwrap().shape();
        let (rows, cols) = (shape.rows.0, shape.cols.0);
        if random.below(1000) as f32 >= 1000.0 * share {
            continue;
        }
        let matrix = matrices.contains(&weight);
        if matrix && random.below(4) != 0 {
            let rank = 1 + random.below(9);
            let change = LowRank {
                rank,
                a: noise(random, rank * cols, (3.0 / cols as f32).sqrt()).into(),
                b: noise(random, rows * rank, 0.1).into(),
                scale: 0.5 + random.below(3) as f32,
            };
            adapter.add_low_rank(weight, change.clone());
            low_rank.push((weight, change));
        } else {
            // Near the base's values, whatever they are for.
            let size = if matrix {
                0.3 / (cols as f32).sqrt()
            } else {
                0.05
            };
            let change = noise(random, rows * cols, size);
            let base = values(model, weight);
            let values: Vec<f32> = base.iter().zip(change).map(|(x, d)| x + d).collect();
            tensors
                .insert(weight, Format::F32, Rows(rows), Cols(cols), &values)
                .unwrap();
            whole.push((weight, values));
        }
    }
    let tensors: Arc<dyn Weights> = Arc::new(tensors);
    for (weight, _) in &whole {
        adapter.add_whole(*weight, &tensors);
    }
    Changes {
        adapter: Arc::new(adapter),
        low_rank,
        whole,
    }
}

/// The model with its weights blended in f64 on the host: F32 stays so, and so does BF16, all other changed matrices
/// become F16.
fn blended(model: &Model, blend: &[(&Changes, f32)]) -> Model {
    let matrices = matrices(model);
    let mut tensors = InMemoryWeights::default();
    for weight in model.tensors() {
        let matrix = model.weights().matrix(weight).unwrap();
        let shape = matrix.shape();
        let (rows, cols) = (shape.rows.0, shape.cols.0);
        let base = values(model, weight);
        let mut sum: Vec<f64> = base.iter().map(|x| f64::from(*x)).collect();
        let mut changed = false;
        for (changes, strength) in blend.iter().filter(|(_, s)| *s != 0.0) {
            let strength = f64::from(*strength);
            for (_, t) in changes.whole.iter().filter(|(w, _)| *w == weight) {
                changed = true;
                for ((sum, x), t) in sum.iter_mut().zip(&base).zip(t) {
                    *sum += strength * (f64::from(*t) - f64::from(*x));
                }
            }
            for (_, pair) in changes.low_rank.iter().filter(|(w, _)| *w == weight) {
                changed = true;
                let scale = strength * f64::from(pair.scale);
                let (a, b) = (pair.a.values(pair.rank), pair.b.values(rows));
                for row in 0..rows {
                    for col in 0..cols {
                        for k in 0..pair.rank {
                            sum[row * cols + col] += scale
                                * f64::from(b[row * pair.rank + k])
                                * f64::from(a[k * cols + col]);
                        }
                    }
                }
            }
        }
        if changed {
            let format = match matrix.format() {
                Format::F32 | Format::Bf16 => Format::F32,
                _ if !matrices.contains(&weight) => Format::F32,
                _ => Format::F16,
            };
            let values: Vec<f32> = sum.iter().map(|x| *x as f32).collect();
            tensors
                .insert(weight, format, shape.rows, shape.cols, &values)
                .unwrap();
        } else {
            let bytes = matrix.bytes().to_vec();
            tensors
                .insert_packed(weight, matrix.format(), shape.rows, shape.cols, bytes)
                .unwrap();
        }
    }
    Model::new(model.config().clone(), Arc::new(tensors)).unwrap()
}

fn logits(executor: &mut dyn Executor, tokens: &[u32]) -> Vec<f32> {
    executor.reset(SlotId(0)).unwrap();
    feed(executor, 0, tokens, 9).concat()
}

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
                let mut oracle = support::cpu(&blended(&model, &blend), 1);
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

const SMALL: Dimensions = Dimensions {
    version: Version::V7,
    layers: 2,
    heads: 2,
    head_size: 32,
    ffn: 100,
    vocab: 70,
    ranks: [5, 6, 7, 8],
};

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
        let cpu = support::cpu(&model, 1).with_blend_bytes(bound);
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

/// A whole tensor at strength 1 is that tensor, whatever was there; a state stays when adapters change.
#[test]
fn replaced_tensors() {
    let (model, other) = (SMALL.model(Packing::F16, 1), SMALL.model(Packing::F16, 2));
    let tokens = Random::new(3).tokens(12, SMALL.vocab);
    let mut tensors = InMemoryWeights::default();
    let mut adapter = Adapter::new("the other model");
    for weight in other.tensors() {
        let matrix = other.weights().matrix(weight).unwrap();
        let shape = matrix.shape();
        let bytes = matrix.bytes().to_vec();
        tensors
            .insert_packed(weight, matrix.format(), shape.rows, shape.cols, bytes)
            .unwrap();
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

/// What does not fit is refused in one line, and what was in use stays in use.
#[test]
fn refused() {
    let model = SMALL.model(Packing::F32, 4);
    let width = SMALL.width();
    let tokens = Random::new(3).tokens(5, SMALL.vocab);
    let mut random = Random::new(5);
    let good = adapter(&model, &mut random, 0.5).adapter;
    let pair = |rank: usize, a: usize, b: usize, scale: f32| LowRank {
        rank,
        a: vec![0.1; a].into(),
        b: vec![0.1; b].into(),
        scale,
    };
    let low_rank = |weight: Weight, change: LowRank| {
        let mut adapter = Adapter::new("bad");
        adapter.add_low_rank(weight, change);
        Arc::new(adapter)
    };
    let whole = |weight: Weight, rows: usize, cols: usize, there: bool| {
        let mut tensors = InMemoryWeights::default();
        if there {
            let values = vec![0.0; rows * cols];
            tensors
                .insert(weight, Format::F32, Rows(rows), Cols(cols), &values)
                .unwrap();
        }
        let tensors: Arc<dyn Weights> = Arc::new(tensors);
        let mut adapter = Adapter::new("bad");
        adapter.add_whole(weight, &tensors);
        Arc::new(adapter)
    };
    let key = Weight::Block(1, B::AttKey);
    let fine = || pair(3, 3 * width, 3 * width, 1.0);
    let cases = [
        (good.clone(), f32::NAN, "a strength of NaN"),
        (good.clone(), f32::INFINITY, "a strength of inf"),
        (
            low_rank(Weight::Block(2, B::AttKey), fine()),
            1.0,
            "RWKV-7 does not have",
        ),
        (
            low_rank(Weight::Block(1, B::AttGate), fine()),
            1.0,
            "RWKV-7 does not have",
        ),
        (
            low_rank(Weight::Block(1, B::Bonus), fine()),
            1.0,
            "which is no matrix",
        ),
        (low_rank(key, pair(0, 0, 0, 1.0)), 1.0, "does not fit"),
        (
            low_rank(key, pair(3, 3 * width + 1, 3 * width, 1.0)),
            1.0,
            "does not fit",
        ),
        (
            low_rank(key, pair(3, 3 * width, 2 * width, 1.0)),
            1.0,
            "does not fit",
        ),
        (
            low_rank(key, pair(usize::MAX, 3, 3, 1.0)),
            1.0,
            "does not fit",
        ),
        (
            low_rank(key, pair(3, 3 * width, 3 * width, f32::NAN)),
            1.0,
            "scale",
        ),
        (
            whole(key, width, width + 1, true),
            1.0,
            "where the model's is 64×64",
        ),
        (
            whole(Weight::Block(0, B::Bonus), 1, 3, true),
            1.0,
            "where the model's is 1×64",
        ),
        (whole(key, width, width, false), 1.0, "missing"),
    ];
    for (name, mut executor) in everywhere(&model, 1) {
        executor.set_adapters(&[(good.clone(), 1.0)]).unwrap();
        let want = logits(executor.as_mut(), &tokens);
        for (bad, strength, message) in &cases {
            let blend = [(good.clone(), 0.5), (bad.clone(), *strength)];
            let error = executor.set_adapters(&blend).unwrap_err().to_string();
            assert!(error.contains(message), "{name}: {error}, not {message}");
            assert!(!error.contains('\n'), "{error}");
            assert!(executor.prepare_adapters(&blend, 1).is_err());
            assert_eq!(logits(executor.as_mut(), &tokens), want, "{name}");
        }
    }
}

/// Blended values past 65504: an error that names the tensor where F16 was asked for, else F32.
#[test]
fn outside_f16() {
    let model = SMALL.model(Packing::F16, 6);
    let width = SMALL.width();
    let tokens = Random::new(3).tokens(5, SMALL.vocab);
    let mut adapter = Adapter::new("loud");
    let mut a = vec![0.0; width];
    a[3] = 1e5;
    let key = Weight::Block(1, B::AttKey);
    adapter.add_low_rank(
        key,
        LowRank {
            rank: 1,
            a: a.into(),
            b: vec![1.0; width].into(),
            scale: 1.0,
        },
    );
    let blend = [(Arc::new(adapter), 1.0)];
    let mut oracle = support::cpu(&model, 1);
    oracle.set_adapters(&blend).unwrap();
    let want = logits(&mut oracle, &tokens);
    assert!(want.iter().all(|x| x.is_finite()));
    let gpu = &gpus()[0].gpu;
    for dtype in [WeightsDType::Auto, WeightsDType::F32, WeightsDType::F16] {
        let options = LoadOptions {
            weights_dtype: dtype,
            ..LoadOptions::default()
        };
        let mut executor = GpuExecutor::new(&model, gpu, &options, &mut |_| {}).unwrap();
        let result = executor.set_adapters(&blend);
        if dtype == WeightsDType::F16 {
            let error = result.unwrap_err().to_string();
            assert!(
                error.contains("AttKey") && error.contains("65504"),
                "{error}"
            );
        } else {
            result.unwrap();
            let error = relative_error(&logits(&mut executor, &tokens), &want);
            assert!(error < 2e-3, "{error:.1e}");
        }
    }
}

/// A model with tuned states begins with them, in every slot and after every reset; one layer may do without.
#[test]
fn initial_states() {
    let plain = SMALL.model(Packing::F32, 7);
    let tokens = Random::new(3).tokens(5, SMALL.vocab);
    let mut tensors = InMemoryWeights::default();
    for weight in plain.tensors() {
        let matrix = plain.weights().matrix(weight).unwrap();
        let shape = matrix.shape();
        let bytes = matrix.bytes().to_vec();
        tensors
            .insert_packed(weight, matrix.format(), shape.rows, shape.cols, bytes)
            .unwrap();
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
    let mut oracle = support::cpu(&plain, 1);
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
        let mut oracle = support::cpu(&model, 1);
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
