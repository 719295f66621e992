//! A model with a tensor that is missing or has another shape is refused by name, in every version.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests fail by panicking; sizes are small"
)]

mod support;

use rwkv_kernels::Format;
use rwkv_mem::{Cols, Rows};
use rwkv_sched::{
    BlockWeight as B, Error, InMemoryWeights, Lora, Mix, Model, ModelConfig, StateLayout, Version,
    Weight,
};
use std::sync::Arc;
use support::random_model::{Dimensions, Packing};

fn dimensions(version: Version) -> Dimensions {
    Dimensions {
        version,
        layers: 2,
        heads: 2,
        head_size: 8,
        ffn: 24,
        vocab: 12,
        ranks: [3, 4, 5, 6],
    }
}

/// The tensors of `model`, `changed` with another shape, or left out where it has none.
fn with(model: &Model, changed: Weight, shape: Option<[usize; 2]>) -> Arc<InMemoryWeights> {
    let mut weights = InMemoryWeights::default();
    for weight in model.tensors() {
        let old = model.weights().matrix(weight).unwrap().shape();
        let [rows, cols] = match shape {
            _ if weight != changed => [old.rows.0, old.cols.0],
            Some(shape) => shape,
            None => continue,
        };
        let values = vec![0.5; rows * cols];
        weights
            .insert(weight, Format::F32, Rows(rows), Cols(cols), &values)
            .unwrap();
    }
    Arc::new(weights)
}

fn refusal(config: &ModelConfig, weights: Arc<InMemoryWeights>) -> String {
    match Model::new(config.clone(), weights) {
        Err(error @ Error::Weight { .. }) => error.to_string(),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("{} was not refused", config.version),
    }
}

#[test]
fn tensors() {
    for version in Version::ALL {
        let model = dimensions(version).model(Packing::F32, 1);
        let config = model.config();
        for weight in model.tensors() {
            let name = format!("{weight:?}");
            let message = refusal(config, with(&model, weight, None));
            assert!(message.contains(&name), "{version}, {name}: {message}");
            let shape = model.weights().matrix(weight).unwrap().shape();
            let (rows, cols) = (shape.rows.0, shape.cols.0);
            for other in [[rows + 1, cols], [rows, cols + 1]] {
                let message = refusal(config, with(&model, weight, Some(other)));
                // Another rank is a contradiction between two tensors, of which either may be named.
                let pair = matches!(weight, Weight::Block(_, B::LoraDown(_)));
                let named = message.contains(&name) || pair && message.contains("tensor Block");
                assert!(named, "{version}, {name}: {message}");
                assert!(message.contains("needed"), "{version}: {message}");
            }
        }
    }
}

#[test]
fn pairs_of_rank_0() {
    for (version, lora) in [
        (Version::V6, Lora::Decay),
        (Version::V6, Lora::Mix(Mix::Gate)),
        (Version::V7, Lora::Gate),
        (Version::V7a, Lora::DeepEmbed),
    ] {
        let model = dimensions(version).model(Packing::F32, 1);
        let down = Weight::Block(1, B::LoraDown(lora));
        let message = refusal(model.config(), with(&model, down, Some([0, 16])));
        let want = format!("tensor {down:?}: it is 0×16, a pair of rank 0");
        assert_eq!(message, want);
    }
}

/// The state's size, and the heads that a version may have.
#[test]
fn heads() {
    for version in Version::ALL {
        let mut config = dimensions(version).config();
        assert!(config.validate().is_ok(), "{version}");
        let rows = if version == Version::V4 { 3 } else { 8 };
        let layout = StateLayout::of(&config);
        assert_eq!((layout.wkv, layout.shift), (16 * rows, 32), "{version}");
        config.head_size = if version == Version::V4 { 8 } else { 5 };
        assert!(config.validate().is_err(), "{version}");
    }
}
