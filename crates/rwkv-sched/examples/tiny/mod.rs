//! A tiny RWKV-7 with random weights, made in memory.

use rwkv_kernels::Format;
use rwkv_mem::{Cols, Rows};
use rwkv_sched::{
    Affine, BlockWeight as B, InMemoryWeights, Lora, Mix, Model, ModelConfig, Result, Version,
    Weight,
};
use std::sync::Arc;

const LAYERS: usize = 2;
const WIDTH: usize = 64;
const HEAD_SIZE: usize = 32;
const FFN: usize = 256;
const VOCAB: usize = 100;
const RANK: usize = 16;

/// The model.
pub(crate) fn random_model() -> Result<Model> {
    let mut tensors = Tensors {
        weights: InMemoryWeights::default(),
        seed: 42,
    };
    tensors.matrix(Weight::Embedding, VOCAB, WIDTH)?;
    tensors.matrix(Weight::Head, VOCAB, WIDTH)?;
    tensors.norm(Weight::EmbeddingNorm)?;
    tensors.norm(Weight::OutputNorm)?;
    for layer in 0..LAYERS {
        let block = |weight| Weight::Block(layer, weight);
        for norm in [B::AttNorm, B::FfnNorm, B::GroupNorm] {
            tensors.norm(|affine| block(norm(affine)))?;
        }
        let mixes = [
            Mix::Receptance,
            Mix::Decay,
            Mix::Key,
            Mix::Value,
            Mix::Rate,
            Mix::Gate,
        ];
        for mix in mixes
            .map(B::AttMix)
            .into_iter()
            .chain([B::FfnMix(Mix::Key)])
        {
            tensors.vector(block(mix), 0.5, 0.5)?;
        }
        for (vector, middle) in [
            (B::RemovalKey, 0.85),
            (B::ReplacementKey, 1.0),
            (B::Bonus, 0.0),
        ] {
            tensors.vector(block(vector), middle, 0.2)?;
        }
        for square in [B::AttReceptance, B::AttKey, B::AttValue, B::AttOutput] {
            tensors.matrix(block(square), WIDTH, WIDTH)?;
        }
        tensors.matrix(block(B::FfnKey), FFN, WIDTH)?;
        tensors.matrix(block(B::FfnValue), WIDTH, FFN)?;
        for lora in [Lora::Decay, Lora::Rate, Lora::Value, Lora::Gate] {
            tensors.matrix(block(B::LoraDown(lora)), RANK, WIDTH)?;
            tensors.matrix(block(B::LoraUp(lora)), WIDTH, RANK)?;
            tensors.vector(block(B::LoraBias(lora)), 0.0, 1.0)?;
        }
    }
    let config = ModelConfig {
        version: Version::V7,
        layers: LAYERS,
        width: WIDTH,
        head_size: HEAD_SIZE,
        ffn: FFN,
        vocab: VOCAB,
        norm_epsilon: 1e-5,
        group_norm_epsilon: 64e-5,
    };
    Model::new(config, Arc::new(tensors.weights))
}

struct Tensors {
    weights: InMemoryWeights,
    seed: u64,
}

impl Tensors {
    /// A matrix whose outputs are about as large as its inputs.
    fn matrix(&mut self, weight: Weight, rows: usize, cols: usize) -> Result<()> {
        self.insert(weight, rows, cols, 0.0, (3.0 / cols as f32).sqrt())
    }

    fn vector(&mut self, weight: Weight, middle: f32, spread: f32) -> Result<()> {
        self.insert(weight, 1, WIDTH, middle, spread)
    }

    fn norm(&mut self, name: impl Fn(Affine) -> Weight) -> Result<()> {
        self.vector(name(Affine::Weight), 1.0, 0.3)?;
        self.vector(name(Affine::Bias), 0.0, 0.1)
    }

    /// Uniform values around `middle`.
    fn insert(
        &mut self,
        weight: Weight,
        rows: usize,
        cols: usize,
        middle: f32,
        spread: f32,
    ) -> Result<()> {
        let values: Vec<f32> = (0..rows * cols)
            .map(|_| {
                self.seed ^= self.seed << 13;
                self.seed ^= self.seed >> 7;
                self.seed ^= self.seed << 17;
                let unit = (self.seed >> 40) as f32 / (1 << 23) as f32 - 1.0;
                middle + unit * spread
            })
            .collect();
        self.weights
            .insert(weight, Format::F32, Rows(rows), Cols(cols), &values)
    }
}
