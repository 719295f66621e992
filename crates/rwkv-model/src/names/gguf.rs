//! The names of llama.cpp's GGUF files: `blk.N.time_mix_key.weight` and so on.

use super::{BoundWeights, GROUP_NORM_EPSILON, NORM_EPSILON, dimensions, epsilon, layers};
use crate::{Error, Result, files::Checkpoint};
use rwkv_sched::{Affine, BlockWeight as B, Lora, Mix, ModelConfig, Version, Weight};

/// Reads the architecture from the metadata, dimensions from shapes, and the head size, which no shape tells.
pub(super) fn config(checkpoint: &Checkpoint) -> Result<ModelConfig> {
    let file = || checkpoint.source().to_owned();
    let metadata = checkpoint.metadata();
    match metadata.string("general.architecture") {
        Some("rwkv7") => {}
        Some(name @ ("rwkv6" | "rwkv6qwen2" | "arwkv7")) => {
            return Err(Error::Unsupported {
                file: file(),
                what: format!("GGUF architecture `{name}`"),
            });
        }
        Some(name) => {
            // Whatever a file says there, the message stays one line.
            let name: String = name.chars().take(40).collect();
            let what = format!(
                "no RWKV model: its GGUF architecture is `{}`",
                name.escape_debug()
            );
            return Err(Error::NotAModel { file: file(), what });
        }
        None => {
            let what = "no model: its metadata has no general.architecture".to_owned();
            return Err(Error::NotAModel { file: file(), what });
        }
    }
    let [vocab, width] = dimensions(checkpoint, "token_embd.weight")?;
    let [ffn, _] = dimensions(checkpoint, "blk.0.channel_mix_key.weight")?;
    let head_size = metadata
        .u64("rwkv7.wkv.head_size")
        .and_then(|n| usize::try_from(n).ok());
    let head_size = head_size.ok_or_else(|| {
        let what = "its metadata has no rwkv7.wkv.head_size".to_owned();
        Error::NotAModel { file: file(), what }
    })?;
    let layers = layers(checkpoint, "blk.")?;
    for (key, what, place, found) in [
        ("rwkv7.block_count", "layers", "the file", layers),
        (
            "rwkv7.embedding_length",
            "channels",
            "token_embd.weight",
            width,
        ),
        (
            "rwkv7.feed_forward_length",
            "channels in the FFN",
            "blk.0.channel_mix_key.weight",
            ffn,
        ),
    ] {
        if let Some(said) = metadata.u64(key)
            && said != found as u64
        {
            let what = format!("its metadata says {said} {what}, but {place} has {found}");
            return Err(Error::NotAModel { file: file(), what });
        }
    }
    Ok(ModelConfig {
        version: Version::V7,
        layers,
        width,
        head_size,
        ffn,
        vocab,
        norm_epsilon: epsilon(
            checkpoint,
            "rwkv7.attention.layer_norm_epsilon",
            NORM_EPSILON,
        ),
        group_norm_epsilon: epsilon(checkpoint, "group_norm_eps", GROUP_NORM_EPSILON),
    })
}

/// Vectors of a layer, by what stands between `blk.N.` and `.weight`.
const VECTORS: [(B, &str); 7] = [
    (B::LoraBias(Lora::Decay), "time_mix_w0"),
    (B::LoraBias(Lora::Rate), "time_mix_a0"),
    (B::LoraBias(Lora::Value), "time_mix_v0"),
    (B::RemovalKey, "time_mix_k_k"),
    (B::ReplacementKey, "time_mix_k_a"),
    (B::Bonus, "time_mix_r_k"),
    (B::FfnMix(Mix::Key), "channel_mix_lerp_k"),
];

/// A norm of a layer: its weight and bias, and what stands between `blk.N.` and their ends.
type NormName = (fn(Affine) -> B, &'static str);

/// Norms of a layer.
const NORMS: [NormName; 3] = [
    (B::AttNorm, "attn_norm"),
    (B::FfnNorm, "attn_norm_2"),
    (B::GroupNorm, "time_mix_ln"),
];

/// Matrices of a layer; the low-rank pairs are `[out, in]` here like all others.
const MATRICES: [(B, &str); 14] = [
    (B::AttReceptance, "time_mix_receptance"),
    (B::AttKey, "time_mix_key"),
    (B::AttValue, "time_mix_value"),
    (B::AttOutput, "time_mix_output"),
    (B::FfnKey, "channel_mix_key"),
    (B::FfnValue, "channel_mix_value"),
    (B::LoraDown(Lora::Decay), "time_mix_w1"),
    (B::LoraUp(Lora::Decay), "time_mix_w2"),
    (B::LoraDown(Lora::Rate), "time_mix_a1"),
    (B::LoraUp(Lora::Rate), "time_mix_a2"),
    (B::LoraDown(Lora::Value), "time_mix_v1"),
    (B::LoraUp(Lora::Value), "time_mix_v2"),
    (B::LoraDown(Lora::Gate), "time_mix_g1"),
    (B::LoraUp(Lora::Gate), "time_mix_g2"),
];

/// The mixes, in the order in which the file stacks them.
const MIXES: [Mix; 6] = [
    Mix::Receptance,
    Mix::Decay,
    Mix::Key,
    Mix::Value,
    Mix::Rate,
    Mix::Gate,
];

/// Binds every tensor of a version 7.
pub(super) fn bind(
    weights: &mut BoundWeights,
    config: &ModelConfig,
) -> Result<(), rwkv_sched::Error> {
    weights.matrix(Weight::Embedding, "token_embd.weight")?;
    weights.matrix(Weight::Head, "output.weight")?;
    for (affine, end) in [(Affine::Weight, "weight"), (Affine::Bias, "bias")] {
        weights.vector(
            Weight::EmbeddingNorm(affine),
            &format!("token_embd_norm.{end}"),
        )?;
        weights.vector(Weight::OutputNorm(affine), &format!("output_norm.{end}"))?;
        for layer in 0..config.layers {
            for (norm, middle) in NORMS {
                weights.vector(
                    Weight::Block(layer, norm(affine)),
                    &format!("blk.{layer}.{middle}.{end}"),
                )?;
            }
        }
    }
    for layer in 0..config.layers {
        let name = |middle: &str| format!("blk.{layer}.{middle}.weight");
        // Layer 0 has no value residual: the file repeats the rate's tensors there.
        let wanted = |block: B| {
            let value = [
                B::LoraBias(Lora::Value),
                B::LoraDown(Lora::Value),
                B::LoraUp(Lora::Value),
            ];
            layer > 0 || !value.contains(&block)
        };
        for (block, middle) in VECTORS.into_iter().filter(|(block, _)| wanted(*block)) {
            weights.vector(Weight::Block(layer, block), &name(middle))?;
        }
        for (block, middle) in MATRICES.into_iter().filter(|(block, _)| wanted(*block)) {
            weights.matrix(Weight::Block(layer, block), &name(middle))?;
        }
        for (index, mix) in MIXES.into_iter().enumerate() {
            let weight = Weight::Block(layer, B::AttMix(mix));
            weights.part(
                weight,
                &name("time_mix_lerp_fused"),
                [index, MIXES.len()],
                config.width,
            )?;
        }
    }
    Ok(())
}
