//! Random adapters, and the models that they make, blended on the host.

use super::{copy, noise, support::random_model::Random};
use rwkv_kernels::Format;
use rwkv_mem::{Cols, Rows};
use rwkv_sched::{Adapter, InMemoryWeights, LowRank, Model, Op, Weight, Weights};
use std::{collections::HashSet, sync::Arc};

/// What an adapter of the tests changes, so that the oracle can do the same.
pub(crate) struct Changes {
    pub(crate) adapter: Arc<Adapter>,
    low_rank: Vec<(Weight, LowRank)>,
    whole: Vec<(Weight, Vec<f32>)>,
}

/// Changes about `share` of the tensors.
pub(crate) fn adapter(model: &Model, random: &mut Random, share: f32) -> Changes {
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
pub(crate) fn blended(model: &Model, blend: &[(&Changes, f32)]) -> Model {
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
            copy(&mut tensors, model, weight);
        }
    }
    Model::new(model.config().clone(), Arc::new(tensors)).unwrap()
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
