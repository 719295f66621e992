//! What llama.cpp's GGUF files of RWKV-6 and RWKV-7 say about themselves, as its converter writes them.

use super::{ExportError, vocabulary};
use crate::{
    Tokenizer,
    files::{GgufWriter, Metadata},
    names::table::{Layout, Row},
};
use rwkv_kernels::Format;
use rwkv_sched::{
    BlockWeight as B, Lora, Mix, ModelConfig, Quantization, Version, Weight, Weights,
};

/// The version of ggml's block layouts.
const QUANTIZATION_VERSION: u32 = 2;
/// RWKV has no limit; the converter writes this.
const CONTEXT_LENGTH: u32 = 1_048_576;

/// Whether a tensor is F32 in every file, whatever the others are: vectors, the pairs of the decay, and those of
/// version 6's mixes.
pub(super) fn always_f32(row: &Row) -> bool {
    let pair = match row.holds.first() {
        Some(Weight::Block(_, B::LoraDown(lora) | B::LoraUp(lora))) => Some(lora),
        _ => None,
    };
    row.layout != Layout::Rows || matches!(pair, Some(Lora::Decay | Lora::Mix(_)))
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
) -> Result<(), ExportError> {
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
