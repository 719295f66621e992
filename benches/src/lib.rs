//! Models made of random weights, in the shapes of published ones, for measuring without a file.

use rwkv_kernels::Format;
use rwkv_mem::{Cols, Rows};
use rwkv_sched::{
    Affine, BlockWeight as B, InMemoryWeights, Lora, Mix, Model, ModelConfig, Result, Version,
    Weight,
};
use std::sync::Arc;

/// Random numbers by xorshift64* (Vigna 2016): fast, and the same everywhere.
struct Random(u64);

impl Random {
    /// `count` numbers in `centre ± spread`.
    fn values(&mut self, count: usize, centre: f32, spread: f32) -> Vec<f32> {
        (0..count)
            .map(|_| {
                self.0 ^= self.0 >> 12;
                self.0 ^= self.0 << 25;
                self.0 ^= self.0 >> 27;
                let unit = (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 40) as f32
                    / (1u64 << 23) as f32
                    - 1.0;
                centre + spread * unit
            })
            .collect()
    }
}

/// The low-rank sizes of the published RWKV-7 models of `width`: decay, rate, value, gate.
fn ranks(width: usize) -> [usize; 4] {
    match width {
        ..=1024 => [64, 64, 32, 128],
        1025..=2048 => [96, 96, 64, 256],
        2049..=3072 => [96, 96, 64, 320],
        _ => [128, 128, 96, 480],
    }
}

/// A random RWKV-7 of `layers` × `width` with heads of 64 and an FFN of 4 `width`: matrices in `format`, scaled so that
/// activations stay near 1.
///
/// # Errors
/// Dimensions that make no model.
pub fn synthetic_v7(layers: usize, width: usize, vocab: usize, format: Format) -> Result<Model> {
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let mut weights = InMemoryWeights::default();
    let matrix =
        |random: &mut Random, weights: &mut InMemoryWeights, weight, rows: usize, cols: usize| {
            let spread = (3.0 / cols as f32).sqrt();
            weights.insert(
                weight,
                format,
                Rows(rows),
                Cols(cols),
                &random.values(rows * cols, 0.0, spread),
            )
        };
    let vector = |random: &mut Random, weights: &mut InMemoryWeights, weight, centre, spread| {
        weights.insert(
            weight,
            Format::F32,
            Rows(1),
            Cols(width),
            &random.values(width, centre, spread),
        )
    };
    matrix(&mut random, &mut weights, Weight::Embedding, vocab, width)?;
    matrix(&mut random, &mut weights, Weight::Head, vocab, width)?;
    for (affine, centre) in [(Affine::Weight, 1.0), (Affine::Bias, 0.0)] {
        vector(
            &mut random,
            &mut weights,
            Weight::EmbeddingNorm(affine),
            centre,
            0.1,
        )?;
        vector(
            &mut random,
            &mut weights,
            Weight::OutputNorm(affine),
            centre,
            0.1,
        )?;
    }
    let [decay, rate, value, gate] = ranks(width);
    let pairs = [
        (Lora::Decay, decay),
        (Lora::Rate, rate),
        (Lora::Value, value),
        (Lora::Gate, gate),
    ];
    for layer in 0..layers {
        let block = |weight| Weight::Block(layer, weight);
        for weight in [B::AttReceptance, B::AttKey, B::AttValue, B::AttOutput] {
            matrix(&mut random, &mut weights, block(weight), width, width)?;
        }
        matrix(
            &mut random,
            &mut weights,
            block(B::FfnKey),
            4 * width,
            width,
        )?;
        matrix(
            &mut random,
            &mut weights,
            block(B::FfnValue),
            width,
            4 * width,
        )?;
        for (lora, rank) in pairs {
            matrix(
                &mut random,
                &mut weights,
                block(B::LoraDown(lora)),
                rank,
                width,
            )?;
            matrix(
                &mut random,
                &mut weights,
                block(B::LoraUp(lora)),
                width,
                rank,
            )?;
            vector(
                &mut random,
                &mut weights,
                block(B::LoraBias(lora)),
                0.0,
                1.0,
            )?;
        }
        for norm in [B::AttNorm, B::FfnNorm, B::GroupNorm] {
            vector(
                &mut random,
                &mut weights,
                block(norm(Affine::Weight)),
                1.0,
                0.1,
            )?;
            vector(
                &mut random,
                &mut weights,
                block(norm(Affine::Bias)),
                0.0,
                0.1,
            )?;
        }
        for mix in [
            Mix::Receptance,
            Mix::Decay,
            Mix::Key,
            Mix::Value,
            Mix::Rate,
            Mix::Gate,
        ] {
            vector(&mut random, &mut weights, block(B::AttMix(mix)), 0.5, 0.5)?;
        }
        vector(
            &mut random,
            &mut weights,
            block(B::FfnMix(Mix::Key)),
            0.5,
            0.5,
        )?;
        vector(&mut random, &mut weights, block(B::RemovalKey), 0.8, 0.2)?;
        vector(
            &mut random,
            &mut weights,
            block(B::ReplacementKey),
            1.0,
            0.1,
        )?;
        vector(&mut random, &mut weights, block(B::Bonus), 0.0, 0.1)?;
    }
    let config = ModelConfig {
        version: Version::V7,
        layers,
        width,
        head_size: 64,
        ffn: 4 * width,
        vocab,
        norm_epsilon: 1e-5,
        group_norm_epsilon: 64e-5,
    };
    Model::new(config, Arc::new(weights))
}
