//! Adapters on every executor, against models whose weights were blended on the host; and tuned initial states.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests fail by panicking; sizes are small"
)]

mod blends;
mod changes;
mod initial_states;
mod refused;
#[path = "../support/mod.rs"]
mod support;
mod switching;

use rwkv_sched::{Adapter, Executor, InMemoryWeights, Model, SlotId, Version, Weight};
use std::sync::Arc;
use support::{
    feed,
    random_model::{Dimensions, Random},
};

type Mixture = Vec<(Arc<Adapter>, f32)>;

const SMALL: Dimensions = Dimensions {
    version: Version::V7,
    layers: 2,
    heads: 2,
    head_size: 32,
    ffn: 100,
    vocab: 70,
    ranks: [5, 6, 7, 8],
};

/// In ±`size`.
fn noise(random: &mut Random, count: usize, size: f32) -> Vec<f32> {
    let unit = |random: &mut Random| random.below(1 << 20) as f32 / (1 << 19) as f32 - 1.0;
    (0..count).map(|_| size * unit(random)).collect()
}

/// Puts a tensor of `model` beside others, as it is.
fn copy(tensors: &mut InMemoryWeights, model: &Model, weight: Weight) {
    let matrix = model.weights().matrix(weight).unwrap();
    let shape = matrix.shape();
    let bytes = matrix.bytes().to_vec();
    tensors
        .insert_packed(weight, matrix.format(), shape.rows, shape.cols, bytes)
        .unwrap();
}

fn logits(executor: &mut dyn Executor, tokens: &[u32]) -> Vec<f32> {
    executor.reset(SlotId(0)).unwrap();
    feed(executor, 0, tokens, 9).concat()
}
