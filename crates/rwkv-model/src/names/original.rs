//! The names of BlinkDL's checkpoints: `blocks.N.att.key.weight` and so on.

use super::{BoundWeights, GROUP_NORM_EPSILON, NORM_EPSILON, dimensions, epsilon, layers};
use crate::{Error, Result, files::Checkpoint};
use rwkv_sched::{Affine, BlockWeight as B, Lora, Mix, ModelConfig, Version, Weight};

/// What tells versions apart, in the order of testing: a tensor of layer 0, and what it means.
const MARKS: [(&str, Kind); 8] = [
    ("ffn.enn.weight", Kind::Unsupported("RWKV-8")),
    ("qkv.weight", Kind::Unsupported("RWKV-7b")),
    ("ffn.s_emb.weight", Kind::Unsupported("RWKV-7a (DeepEmbed)")),
    ("att.r_k", Kind::V7),
    ("att.time_maa_x", Kind::Unsupported("RWKV-6")),
    ("att.time_mix_x", Kind::Unsupported("RWKV-6")),
    ("att.ln_x.weight", Kind::Unsupported("RWKV-5")),
    ("att.time_decay", Kind::Unsupported("RWKV-4")),
];

#[derive(Clone, Copy)]
enum Kind {
    V7,
    Unsupported(&'static str),
}

/// Reads version and dimensions from names and shapes.
pub(super) fn config(checkpoint: &Checkpoint) -> Result<ModelConfig> {
    let file = || checkpoint.source().to_owned();
    let kind = MARKS.iter().find(|(mark, _)| {
        let stem = format!("blocks.0.{}", mark.trim_end_matches(".weight"));
        checkpoint.get(&stem).is_some() || checkpoint.get(&format!("{stem}.weight")).is_some()
    });
    match kind {
        Some((_, Kind::V7)) => {}
        Some((_, Kind::Unsupported(what))) => {
            return Err(Error::Unsupported {
                file: file(),
                what: (*what).to_owned(),
            });
        }
        None => {
            let what = "no RWKV model: it has no tensors called `blocks.0.att.…`; files of other layouts can be \
                        converted to the original names or to GGUF first"
                .to_owned();
            return Err(Error::NotAModel { file: file(), what });
        }
    }
    let [vocab, width] = dimensions(checkpoint, "emb.weight")?;
    let [_, head_size] = dimensions(checkpoint, "blocks.0.att.r_k")?;
    let [ffn, _] = dimensions(checkpoint, "blocks.0.ffn.key.weight")?;
    Ok(ModelConfig {
        version: Version::V7,
        layers: layers(checkpoint, "blocks.")?,
        width,
        head_size,
        ffn,
        vocab,
        norm_epsilon: epsilon(checkpoint, "norm_eps", NORM_EPSILON),
        group_norm_epsilon: epsilon(checkpoint, "group_norm_eps", GROUP_NORM_EPSILON),
    })
}

/// Vectors of a layer, by what follows `blocks.N.`.
const VECTORS: [(B, &str); 18] = [
    (B::AttMix(Mix::Receptance), "att.x_r"),
    (B::AttMix(Mix::Decay), "att.x_w"),
    (B::AttMix(Mix::Key), "att.x_k"),
    (B::AttMix(Mix::Value), "att.x_v"),
    (B::AttMix(Mix::Rate), "att.x_a"),
    (B::AttMix(Mix::Gate), "att.x_g"),
    (B::LoraBias(Lora::Decay), "att.w0"),
    (B::LoraBias(Lora::Rate), "att.a0"),
    (B::LoraBias(Lora::Value), "att.v0"),
    (B::RemovalKey, "att.k_k"),
    (B::ReplacementKey, "att.k_a"),
    (B::Bonus, "att.r_k"),
    (B::FfnMix(Mix::Key), "ffn.x_k"),
    (B::AttNorm(Affine::Weight), "ln1.weight"),
    (B::AttNorm(Affine::Bias), "ln1.bias"),
    (B::FfnNorm(Affine::Weight), "ln2.weight"),
    (B::FfnNorm(Affine::Bias), "ln2.bias"),
    (B::GroupNorm(Affine::Weight), "att.ln_x.weight"),
];

/// Matrices of a layer.
const MATRICES: [(B, &str); 6] = [
    (B::AttReceptance, "att.receptance.weight"),
    (B::AttKey, "att.key.weight"),
    (B::AttValue, "att.value.weight"),
    (B::AttOutput, "att.output.weight"),
    (B::FfnKey, "ffn.key.weight"),
    (B::FfnValue, "ffn.value.weight"),
];

/// Low-rank pairs: `att.w1 [C, R]`, `att.w2 [R, C]` and so on.
const PAIRS: [(Lora, char); 4] = [
    (Lora::Decay, 'w'),
    (Lora::Rate, 'a'),
    (Lora::Value, 'v'),
    (Lora::Gate, 'g'),
];

/// Binds every tensor of a version 7.
pub(super) fn bind(
    weights: &mut BoundWeights,
    config: &ModelConfig,
) -> Result<(), rwkv_sched::Error> {
    weights.matrix(Weight::Embedding, "emb.weight")?;
    weights.matrix(Weight::Head, "head.weight")?;
    for (affine, end) in [(Affine::Weight, "weight"), (Affine::Bias, "bias")] {
        weights.vector(
            Weight::EmbeddingNorm(affine),
            &format!("blocks.0.ln0.{end}"),
        )?;
        weights.vector(Weight::OutputNorm(affine), &format!("ln_out.{end}"))?;
    }
    for layer in 0..config.layers {
        let name = |rest: &str| format!("blocks.{layer}.{rest}");
        let weight = |weight| Weight::Block(layer, weight);
        weights.vector(weight(B::GroupNorm(Affine::Bias)), &name("att.ln_x.bias"))?;
        for (block, rest) in VECTORS {
            // Layer 0 has no value residual: what some files store there is a dummy.
            if layer > 0 || block != B::LoraBias(Lora::Value) {
                weights.vector(weight(block), &name(rest))?;
            }
        }
        for (block, rest) in MATRICES {
            weights.matrix(weight(block), &name(rest))?;
        }
        for (lora, letter) in PAIRS {
            if layer == 0 && lora == Lora::Value {
                continue;
            }
            let (down, up) = (
                name(&format!("att.{letter}1")),
                name(&format!("att.{letter}2")),
            );
            // Converted files may hold them the other way round; a square pair is taken as in the checkpoint.
            match weights.matrix_shape(&down) {
                Some([rows, cols]) if cols == config.width && rows != config.width => {
                    weights.matrix(weight(B::LoraDown(lora)), &down)?;
                    weights.matrix(weight(B::LoraUp(lora)), &up)?;
                }
                _ => {
                    weights.transposed(weight(B::LoraDown(lora)), &down)?;
                    weights.transposed(weight(B::LoraUp(lora)), &up)?;
                }
            }
        }
    }
    Ok(())
}
