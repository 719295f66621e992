//! The tensors and metadata of llama.cpp's GGUF files of RWKV-6 and RWKV-7, as its converter writes them.

use super::{
    ExportError,
    layout::{Layout, Source, Tensor},
    original::STACKED,
    vocabulary,
};
use crate::{
    Tokenizer,
    files::{GgufWriter, Metadata},
};
use rwkv_kernels::Format;
use rwkv_sched::{
    Affine, BlockWeight as B, Lora, Mix, ModelConfig, Quantization, Result, Version, Weight,
    Weights,
};

/// The version of ggml's block layouts.
const QUANTIZATION_VERSION: u32 = 2;
/// RWKV has no limit; the converter writes this.
const CONTEXT_LENGTH: u32 = 1_048_576;

/// The architecture that a version has in GGUF.
pub(super) fn architecture(version: Version) -> Option<&'static str> {
    match version {
        Version::V6 => Some("rwkv6"),
        Version::V7 => Some("rwkv7"),
        _ => None,
    }
}

/// What stands between `blk.N.` and `.weight` or `.bias`.
type NormName = (&'static str, fn(Affine) -> B);

const NORMS: [NormName; 3] = [
    ("attn_norm", B::AttNorm),
    ("attn_norm_2", B::FfnNorm),
    ("time_mix_ln", B::GroupNorm),
];

/// Vectors of a layer: of both versions, of 6, of 7.
const VECTORS_6: [(&str, B); 4] = [
    ("time_mix_lerp_x", B::AttMix(Mix::Base)),
    ("time_mix_decay", B::LoraBias(Lora::Decay)),
    ("channel_mix_lerp_k", B::FfnMix(Mix::Key)),
    ("channel_mix_lerp_r", B::FfnMix(Mix::Receptance)),
];
const VECTORS_7: [(&str, B); 7] = [
    ("time_mix_w0", B::LoraBias(Lora::Decay)),
    ("time_mix_a0", B::LoraBias(Lora::Rate)),
    ("time_mix_v0", B::LoraBias(Lora::Value)),
    ("time_mix_k_k", B::RemovalKey),
    ("time_mix_k_a", B::ReplacementKey),
    ("time_mix_r_k", B::Bonus),
    ("channel_mix_lerp_k", B::FfnMix(Mix::Key)),
];

/// Matrices of a layer, all `[out, in]`, and whether they are F32 in every file.
const MATRICES: [(&str, B, bool); 6] = [
    ("time_mix_receptance", B::AttReceptance, false),
    ("time_mix_key", B::AttKey, false),
    ("time_mix_value", B::AttValue, false),
    ("time_mix_output", B::AttOutput, false),
    ("channel_mix_key", B::FfnKey, false),
    ("channel_mix_value", B::FfnValue, false),
];
const MATRICES_6: [(&str, B, bool); 4] = [
    ("time_mix_gate", B::AttGate, false),
    ("channel_mix_receptance", B::FfnReceptance, false),
    ("time_mix_decay_w1", B::LoraDown(Lora::Decay), true),
    ("time_mix_decay_w2", B::LoraUp(Lora::Decay), true),
];
const MATRICES_7: [(&str, B, bool); 8] = [
    ("time_mix_w1", B::LoraDown(Lora::Decay), true),
    ("time_mix_w2", B::LoraUp(Lora::Decay), true),
    ("time_mix_a1", B::LoraDown(Lora::Rate), false),
    ("time_mix_a2", B::LoraUp(Lora::Rate), false),
    ("time_mix_v1", B::LoraDown(Lora::Value), false),
    ("time_mix_v2", B::LoraUp(Lora::Value), false),
    ("time_mix_g1", B::LoraDown(Lora::Gate), false),
    ("time_mix_g2", B::LoraUp(Lora::Gate), false),
];

/// Version 7's mixes, in the order in which they are stacked.
const MIXES_7: [Mix; 6] = [
    Mix::Receptance,
    Mix::Decay,
    Mix::Key,
    Mix::Value,
    Mix::Rate,
    Mix::Gate,
];

/// Every tensor of a file of version 6 or 7.
pub(super) fn layout(config: &ModelConfig, weights: &dyn Weights) -> Result<Vec<Tensor>> {
    let mut file = Layout::new(weights);
    let width = config.width;
    file.matrix("token_embd.weight".to_owned(), Weight::Embedding)?;
    for (affine, end) in [(Affine::Weight, "weight"), (Affine::Bias, "bias")] {
        let norm = Weight::EmbeddingNorm(affine);
        let name = format!("token_embd_norm.{end}");
        file.tensor(name, &[width], norm)?.always_f32 = true;
        let norm = Weight::OutputNorm(affine);
        let name = format!("output_norm.{end}");
        file.tensor(name, &[width], norm)?.always_f32 = true;
    }
    file.matrix("output.weight".to_owned(), Weight::Head)?;
    for layer in 0..config.layers {
        block(&mut file, config, layer)?;
    }
    Ok(file.finish())
}

fn block(file: &mut Layout<'_>, config: &ModelConfig, layer: usize) -> Result<()> {
    let width = config.width;
    let name = |middle: &str| format!("blk.{layer}.{middle}.weight");
    // llama.cpp wants a value residual in layer 0 too, and does not use it: its converter repeats the rate's tensors.
    let of = |weight: B| {
        Weight::Block(
            layer,
            match (layer, weight) {
                (0, B::LoraBias(Lora::Value)) => B::LoraBias(Lora::Rate),
                (0, B::LoraDown(Lora::Value)) => B::LoraDown(Lora::Rate),
                (0, B::LoraUp(Lora::Value)) => B::LoraUp(Lora::Rate),
                (_, other) => other,
            },
        )
    };
    for (middle, norm) in NORMS {
        for (affine, end) in [(Affine::Weight, "weight"), (Affine::Bias, "bias")] {
            let name = format!("blk.{layer}.{middle}.{end}");
            file.tensor(name, &[width], of(norm(affine)))?.always_f32 = true;
        }
    }
    let six = config.version == Version::V6;
    let mixes: &[Mix] = if six { &STACKED } else { &MIXES_7 };
    let stack = Source::Rows(mixes.iter().map(|mix| of(B::AttMix(*mix))).collect());
    let shape = [mixes.len(), 1, 1, width];
    file.push(name("time_mix_lerp_fused"), &shape, stack)?
        .always_f32 = true;
    let vectors: &[_] = if six { &VECTORS_6 } else { &VECTORS_7 };
    for (middle, weight) in vectors {
        file.tensor(name(middle), &[width], of(*weight))?.always_f32 = true;
    }
    if six {
        let heads = [config.heads(), config.head_size];
        file.tensor(name("time_mix_first"), &heads, of(B::Bonus))?
            .always_f32 = true;
        let [rank, _] = file.shape_of(of(B::LoraDown(Lora::Mix(STACKED[0]))))?;
        let stack = |side: fn(Lora) -> B| STACKED.map(|mix| of(side(Lora::Mix(mix)))).to_vec();
        let count = STACKED.len();
        let down = Source::Rows(stack(B::LoraDown));
        file.push(name("time_mix_w1"), &[count * rank, width], down)?
            .always_f32 = true;
        let up = Source::Rows(stack(B::LoraUp));
        file.push(name("time_mix_w2"), &[count, width, rank], up)?
            .always_f32 = true;
    }
    let own: &[_] = if six { &MATRICES_6 } else { &MATRICES_7 };
    for (middle, weight, always_f32) in MATRICES.iter().chain(own) {
        file.matrix(name(middle), of(*weight))?.always_f32 = *always_f32;
    }
    Ok(())
}

/// What a file says about itself.
pub(super) struct About<'a> {
    pub(super) config: &'a ModelConfig,
    pub(super) weights: &'a dyn Weights,
    /// Of the model, for people.
    pub(super) name: &'a str,
    /// The metadata of the GGUF file that this one is made of.
    pub(super) source: Option<&'a Metadata>,
    /// Written if there is one; else the source's is copied.
    pub(super) tokenizer: Option<&'a Tokenizer>,
    pub(super) quantization: Option<&'a Quantization>,
    /// What most bytes of the file are in.
    pub(super) main_format: Format,
}

/// Sets the metadata.
pub(super) fn metadata(
    plan: &mut GgufWriter,
    architecture: &str,
    about: &About<'_>,
) -> std::result::Result<(), ExportError> {
    let About {
        config, weights, ..
    } = about;
    plan.set("general.architecture", architecture)?;
    plan.set("general.type", "model")?;
    let own = [
        "general.architecture",
        "general.type",
        "general.alignment",
        "general.file_type",
        "general.quantization_version",
    ];
    let keys = || about.source.into_iter().flat_map(Metadata::keys);
    if let Some(source) = about.source {
        for key in keys().filter(|key| key.starts_with("general.") && !own.contains(key)) {
            plan.copy(source, key)?;
        }
    }
    if !keys().any(|key| key == "general.name") {
        plan.set("general.name", about.name)?;
    }
    plan.set("general.file_type", file_type(about))?;
    plan.set("general.quantization_version", QUANTIZATION_VERSION)?;

    let rank = |layer: usize, weight: B| {
        let shape = weights.describe(Weight::Block(layer, weight)).map(|d| d.1);
        shape.map(|shape| shape.rows.0)
    };
    let mut numbers = vec![
        ("embedding_length", config.width),
        ("block_count", config.layers),
        ("feed_forward_length", config.ffn),
        ("attention.head_count", 0),
        ("wkv.head_size", config.head_size),
    ];
    if config.version == Version::V6 {
        numbers.extend([
            ("rescale_every_n_layers", 0),
            (
                "time_mix_extra_dim",
                rank(0, B::LoraDown(Lora::Mix(Mix::Decay)))?,
            ),
            ("time_decay_extra_dim", rank(0, B::LoraDown(Lora::Decay))?),
        ]);
    } else {
        // A model of one layer has no value residual: what stands there is the rate's.
        let value = match config.layers {
            1 => rank(0, B::LoraDown(Lora::Rate))?,
            _ => rank(1, B::LoraDown(Lora::Value))?,
        };
        numbers.extend([
            (
                "attention.decay_lora_rank",
                rank(0, B::LoraDown(Lora::Decay))?,
            ),
            (
                "attention.iclr_lora_rank",
                rank(0, B::LoraDown(Lora::Rate))?,
            ),
            ("attention.value_residual_mix_lora_rank", value),
            (
                "attention.gate_lora_rank",
                rank(0, B::LoraDown(Lora::Gate))?,
            ),
        ]);
    }
    plan.set(&format!("{architecture}.context_length"), CONTEXT_LENGTH)?;
    for (key, number) in numbers {
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        plan.set(&format!("{architecture}.{key}"), number)?;
    }
    plan.set(
        &format!("{architecture}.attention.layer_norm_epsilon"),
        config.norm_epsilon,
    )?;
    // llama.cpp has this number built in; where a model needs another, we read it back.
    if config.group_norm_epsilon.to_bits() != crate::names::GROUP_NORM_EPSILON.to_bits() {
        plan.set("group_norm_eps", config.group_norm_epsilon)?;
    }
    match (about.tokenizer, about.source) {
        (Some(tokenizer), _) => vocabulary::set(plan, tokenizer, config.vocab)?,
        (None, Some(source)) => {
            for key in keys().filter(|key| key.starts_with("tokenizer.")) {
                plan.copy(source, key)?;
            }
        }
        (None, None) => {}
    }
    Ok(())
}

/// llama.cpp's number for what a file mostly holds (`llama_ftype`).
fn file_type(about: &About<'_>) -> u32 {
    let by_name = about.quantization.and_then(|quantization| {
        Some(match quantization.weight_type().name() {
            "q4_k_m" => 15,
            "q5_k_m" => 17,
            _ => return None,
        })
    });
    by_name.unwrap_or(match about.main_format {
        Format::F32 => 0,
        Format::Q4_0 => 2,
        Format::Q4_1 => 3,
        Format::Q8_0 => 7,
        Format::Q5_0 => 8,
        Format::Q5_1 => 9,
        Format::Q2K => 10,
        Format::Q3K => 11,
        Format::Q4K => 14,
        Format::Q5K => 16,
        Format::Q6K => 18,
        Format::Iq4Nl => 25,
        Format::Bf16 => 32,
        _ => 1,
    })
}
