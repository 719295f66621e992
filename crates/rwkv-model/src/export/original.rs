//! The tensors of BlinkDL's checkpoints, of every version.

use super::layout::{Layout, Source, Tensor};
use rwkv_sched::{
    Affine, BlockWeight as B, Lora, Mix, ModelConfig, Result, Version, Weight, Weights,
};

/// Sets of versions.
mod versions {
    pub(super) const V4: u8 = 1;
    pub(super) const V5_0: u8 = 2;
    pub(super) const V5_1: u8 = 4;
    pub(super) const V5_2: u8 = 8;
    pub(super) const V6: u8 = 16;
    pub(super) const V7: u8 = 32;
    pub(super) const V7A: u8 = 64;
    pub(super) const ALL: u8 = 127;
    pub(super) const V5: u8 = V5_0 | V5_1 | V5_2;
    pub(super) const SEVENS: u8 = V7 | V7A;
    pub(super) const GATED: u8 = V5_1 | V5_2 | V6;
    pub(super) const UP_TO_6: u8 = V4 | V5 | V6;
}
use versions::{ALL, GATED, SEVENS, UP_TO_6, V4, V5, V5_0, V5_1, V5_2, V6, V7A};

fn set_of(version: Version) -> u8 {
    match version {
        Version::V4 => V4,
        Version::V5_0 => V5_0,
        Version::V5_1 => V5_1,
        Version::V5_2 => V5_2,
        Version::V6 => V6,
        Version::V7a => V7A,
        _ => versions::V7,
    }
}

/// The shape of a vector in a checkpoint.
#[derive(Clone, Copy)]
enum Form {
    /// `[n]`
    Flat,
    /// `[1, 1, n]`
    Wide,
    /// `[H, N]`
    Heads,
    /// `[H]`: the model repeats it for each channel of a head.
    PerHead,
}
use Form::{Flat, Heads, PerHead, Wide};

/// Vectors of a layer: which versions have it, what follows `blocks.N.`.
const VECTORS: [(u8, &str, B, Form); 41] = [
    (ALL, "ln1.weight", B::AttNorm(Affine::Weight), Flat),
    (ALL, "ln1.bias", B::AttNorm(Affine::Bias), Flat),
    (ALL, "ln2.weight", B::FfnNorm(Affine::Weight), Flat),
    (ALL, "ln2.bias", B::FfnNorm(Affine::Bias), Flat),
    (
        ALL & !V4,
        "att.ln_x.weight",
        B::GroupNorm(Affine::Weight),
        Flat,
    ),
    (ALL & !V4, "att.ln_x.bias", B::GroupNorm(Affine::Bias), Flat),
    (V4 | V5, "att.time_mix_r", B::AttMix(Mix::Receptance), Wide),
    (V4 | V5, "att.time_mix_k", B::AttMix(Mix::Key), Wide),
    (V4 | V5, "att.time_mix_v", B::AttMix(Mix::Value), Wide),
    (V5_1 | V5_2, "att.time_mix_g", B::AttMix(Mix::Gate), Wide),
    (V4 | V5, "ffn.time_mix_k", B::FfnMix(Mix::Key), Wide),
    (V4 | V5, "ffn.time_mix_r", B::FfnMix(Mix::Receptance), Wide),
    (V4, "att.time_decay", B::Decay, Flat),
    (V5_0 | V5_1, "att.time_decay", B::Decay, PerHead),
    (V5_2, "att.time_decay", B::Decay, Heads),
    (V4, "att.time_first", B::Bonus, Flat),
    // `time_faaaa` is the bonus itself, `time_first` of version 5.0 its logarithm.
    (V5_0 | V5_1, "att.time_faaaa", B::Bonus, PerHead),
    (V5_2 | V6, "att.time_faaaa", B::Bonus, Heads),
    (V6, "att.time_maa_x", B::AttMix(Mix::Base), Wide),
    (V6, "att.time_maa_w", B::AttMix(Mix::Decay), Wide),
    (V6, "att.time_maa_k", B::AttMix(Mix::Key), Wide),
    (V6, "att.time_maa_v", B::AttMix(Mix::Value), Wide),
    (V6, "att.time_maa_r", B::AttMix(Mix::Receptance), Wide),
    (V6, "att.time_maa_g", B::AttMix(Mix::Gate), Wide),
    (V6, "att.time_decay", B::LoraBias(Lora::Decay), Wide),
    (V6, "ffn.time_maa_k", B::FfnMix(Mix::Key), Wide),
    (V6, "ffn.time_maa_r", B::FfnMix(Mix::Receptance), Wide),
    (SEVENS, "att.x_r", B::AttMix(Mix::Receptance), Wide),
    (SEVENS, "att.x_w", B::AttMix(Mix::Decay), Wide),
    (SEVENS, "att.x_k", B::AttMix(Mix::Key), Wide),
    (SEVENS, "att.x_v", B::AttMix(Mix::Value), Wide),
    (SEVENS, "att.x_a", B::AttMix(Mix::Rate), Wide),
    (SEVENS, "att.x_g", B::AttMix(Mix::Gate), Wide),
    (SEVENS, "att.w0", B::LoraBias(Lora::Decay), Wide),
    (SEVENS, "att.a0", B::LoraBias(Lora::Rate), Wide),
    (SEVENS, "att.v0", B::LoraBias(Lora::Value), Wide),
    (SEVENS, "att.k_k", B::RemovalKey, Wide),
    (SEVENS, "att.k_a", B::ReplacementKey, Wide),
    (SEVENS, "att.r_k", B::Bonus, Heads),
    (SEVENS, "ffn.x_k", B::FfnMix(Mix::Key), Wide),
    (V7A, "ffn.s0", B::LoraBias(Lora::DeepEmbed), Wide),
];

/// Matrices of a layer.
const MATRICES: [(u8, &str, B); 10] = [
    (ALL, "att.receptance.weight", B::AttReceptance),
    (ALL, "att.key.weight", B::AttKey),
    (ALL, "att.value.weight", B::AttValue),
    (GATED, "att.gate.weight", B::AttGate),
    (ALL, "att.output.weight", B::AttOutput),
    (ALL, "ffn.key.weight", B::FfnKey),
    (UP_TO_6, "ffn.receptance.weight", B::FfnReceptance),
    (ALL, "ffn.value.weight", B::FfnValue),
    (V7A, "ffn.s_emb.weight", B::FfnEmbedding),
    (V7A, "ffn.s_emb_x.weight", B::FfnEmbeddingUp),
];

/// Low-rank pairs, which checkpoints have as `[C, R]` and `[R, C]`: what comes before `1` and `2`.
const PAIRS: [(u8, &str, Lora); 6] = [
    (SEVENS, "att.w", Lora::Decay),
    (SEVENS, "att.a", Lora::Rate),
    (SEVENS, "att.v", Lora::Value),
    (SEVENS, "att.g", Lora::Gate),
    (V7A, "ffn.s", Lora::DeepEmbed),
    (V6, "att.time_decay_w", Lora::Decay),
];

/// Version 6's mixes, in the order in which its checkpoints stack their pairs.
pub(super) const STACKED: [Mix; 5] = [Mix::Decay, Mix::Key, Mix::Value, Mix::Receptance, Mix::Gate];

/// Every tensor of a checkpoint.
pub(super) fn layout(config: &ModelConfig, weights: &dyn Weights) -> Result<Vec<Tensor>> {
    let mut file = Layout::new(weights);
    let version = set_of(config.version);
    let width = config.width;
    file.matrix("emb.weight".to_owned(), Weight::Embedding)?;
    for layer in 0..config.layers {
        if layer == 0 {
            norm(&mut file, "blocks.0.ln0", width, Weight::EmbeddingNorm)?;
        }
        block(&mut file, config, version, layer)?;
    }
    norm(&mut file, "ln_out", width, Weight::OutputNorm)?;
    file.matrix("head.weight".to_owned(), Weight::Head)?;
    Ok(file.finish())
}

fn norm(
    file: &mut Layout<'_>,
    name: &str,
    width: usize,
    weight: fn(Affine) -> Weight,
) -> Result<()> {
    file.tensor(format!("{name}.weight"), &[width], weight(Affine::Weight))?;
    file.tensor(format!("{name}.bias"), &[width], weight(Affine::Bias))?;
    Ok(())
}

fn block(file: &mut Layout<'_>, config: &ModelConfig, version: u8, layer: usize) -> Result<()> {
    let name = |rest: &str| format!("blocks.{layer}.{rest}");
    let of = |weight| Weight::Block(layer, weight);
    let (heads, head_size) = (config.heads(), config.head_size);
    // Layer 0 of version 7 has no value residual.
    let absent = |lora: Lora| layer == 0 && lora == Lora::Value;
    for (versions, rest, weight, form) in VECTORS {
        if versions & version == 0 || (weight == B::LoraBias(Lora::Value) && absent(Lora::Value)) {
            continue;
        }
        let len = match weight {
            B::LoraBias(Lora::DeepEmbed) => config.ffn,
            _ => config.width,
        };
        let weight = of(weight);
        match form {
            Flat => file.tensor(name(rest), &[len], weight)?,
            Wide => file.tensor(name(rest), &[1, 1, len], weight)?,
            Heads => file.tensor(name(rest), &[heads, head_size], weight)?,
            PerHead => file.push(name(rest), &[heads], Source::Every(weight, head_size))?,
        };
    }
    for (versions, rest, weight) in MATRICES {
        if versions & version != 0 {
            file.matrix(name(rest), of(weight))?;
        }
    }
    for (versions, rest, lora) in PAIRS {
        if versions & version == 0 || absent(lora) {
            continue;
        }
        for (end, weight) in [("1", B::LoraDown(lora)), ("2", B::LoraUp(lora))] {
            let [rows, cols] = file.shape_of(of(weight))?;
            let source = Source::Transposed(vec![of(weight)]);
            file.push(name(&format!("{rest}{end}")), &[cols, rows], source)?;
        }
    }
    if version == V6 {
        let [rank, width] = file.shape_of(of(B::LoraDown(Lora::Mix(STACKED[0]))))?;
        let stack = |side: fn(Lora) -> B| STACKED.map(|mix| of(side(Lora::Mix(mix)))).to_vec();
        let count = STACKED.len();
        let down = Source::Transposed(stack(B::LoraDown));
        file.push(name("att.time_maa_w1"), &[width, count * rank], down)?;
        let up = Source::EachTransposed(stack(B::LoraUp));
        file.push(name("att.time_maa_w2"), &[count, rank, width], up)?;
    }
    let state = of(B::InitialState);
    if file.has(state) {
        let shape = [heads, head_size, head_size];
        // The checkpoints of version 7 have `[head, value, key]` as the model has, the older ones `[head, key, value]`.
        let source = match version & SEVENS {
            0 => Source::BlocksTransposed(state, head_size),
            _ => Source::Rows(vec![state]),
        };
        file.push(name("att.time_state"), &shape, source)?;
    }
    Ok(())
}
