//! The names of llama.cpp's GGUF files, versions 6 and 7: `blk.N.time_mix_key.weight` and so on.

use super::{
    BoundWeights, GROUP_NORM_EPSILON, NORM_EPSILON,
    bind::bind_row,
    dimensions, epsilon, layers,
    original::{DOWN_6, MIXES_6, UP_6, is_value_residual},
    sources::problem,
    table::{Entry, Layout, Presence, Row, in_layer, once},
};
use crate::{Error, Result, files::Checkpoint};
use rwkv_sched::{Affine, BlockWeight as B, Lora, Mix, ModelConfig, Version, Weight};

/// What GGUF's `general.architecture` says of a version.
const ARCHITECTURES: [(Version, &str); 2] = [(Version::V6, "rwkv6"), (Version::V7, "rwkv7")];

/// The architecture that `version` has in GGUF, if it has one.
pub(crate) fn architecture(version: Version) -> Option<&'static str> {
    let found = ARCHITECTURES.iter().find(|(known, _)| *known == version);
    found.map(|(_, architecture)| *architecture)
}

/// Reads the architecture from the metadata, dimensions from shapes, and the head size, which no shape tells.
pub(super) fn config(checkpoint: &Checkpoint) -> Result<ModelConfig> {
    let file = || checkpoint.source().to_owned();
    let metadata = checkpoint.metadata();
    let said = metadata.string("general.architecture");
    let known = ARCHITECTURES
        .iter()
        .find(|(_, architecture)| said == Some(architecture));
    let (version, architecture) = match (known, said) {
        (Some(known), _) => *known,
        (None, Some(name @ ("rwkv6qwen2" | "arwkv7"))) => {
            return Err(Error::Unsupported {
                file: file(),
                what: format!("GGUF architecture `{name}`"),
            });
        }
        (None, Some(name)) => {
            // Whatever a file says there, the message stays one line.
            let name: String = name.chars().take(40).collect();
            let what = format!(
                "no RWKV model: its GGUF architecture is `{}`",
                name.escape_debug()
            );
            return Err(Error::NotAModel { file: file(), what });
        }
        (None, None) => {
            let what = "no model: its metadata has no general.architecture".to_owned();
            return Err(Error::NotAModel { file: file(), what });
        }
    };
    let key = |rest: &str| format!("{architecture}.{rest}");
    let [vocab, width] = dimensions(checkpoint, "token_embd.weight")?;
    let [ffn, _] = dimensions(checkpoint, "blk.0.channel_mix_key.weight")?;
    let head_size = metadata
        .u64(&key("wkv.head_size"))
        .and_then(|n| usize::try_from(n).ok());
    let head_size = head_size.ok_or_else(|| {
        let what = format!("its metadata has no {}", key("wkv.head_size"));
        Error::NotAModel { file: file(), what }
    })?;
    let layers = layers(checkpoint, "blk.")?;
    for (rest, what, place, found) in [
        ("block_count", "layers", "the file", layers),
        ("embedding_length", "channels", "token_embd.weight", width),
        (
            "feed_forward_length",
            "channels in the FFN",
            "blk.0.channel_mix_key.weight",
            ffn,
        ),
    ] {
        if let Some(said) = metadata.u64(&key(rest))
            && said != found as u64
        {
            let what = format!("its metadata says {said} {what}, but {place} has {found}");
            return Err(Error::NotAModel { file: file(), what });
        }
    }
    Ok(ModelConfig {
        version,
        layers,
        width,
        head_size,
        ffn,
        vocab,
        norm_epsilon: epsilon(
            checkpoint,
            &key("attention.layer_norm_epsilon"),
            NORM_EPSILON,
        ),
        group_norm_epsilon: epsilon(checkpoint, "group_norm_eps", GROUP_NORM_EPSILON),
    })
}

/// Every tensor of a file of `config`'s version, in the order of llama.cpp's files; none for versions that GGUF does not
/// have.
pub(crate) fn rows(config: &ModelConfig) -> impl Iterator<Item = Row> + use<> {
    let (version, layers) = (config.version, config.layers);
    let norm = |name: &str, norm: fn(Affine) -> Weight| {
        [(Affine::Weight, "weight"), (Affine::Bias, "bias")]
            .map(|(affine, end)| once(&format!("{name}.{end}"), norm(affine), Layout::Flat))
    };
    let before = [once("token_embd.weight", Weight::Embedding, Layout::Rows)]
        .into_iter()
        .chain(norm("token_embd_norm", Weight::EmbeddingNorm));
    let blocks = (0..layers).flat_map(move |layer| {
        let entries = entries(version).iter().copied().flatten();
        entries.map(move |&entry| {
            let end = if entry.0.contains('.') { "" } else { ".weight" };
            let mut row = in_layer(layer, format!("blk.{layer}.{}{end}", entry.0), entry);
            // Layer 0 has no value residual: the file repeats the rate's tensors there.
            if layer == 0 && entry.1.iter().any(|&b| is_value_residual(b)) {
                row.holds.iter_mut().for_each(|w| *w = rate_instead(*w));
                row.presence = Presence::Copy;
            }
            row
        })
    });
    let after = norm("output_norm", Weight::OutputNorm).into_iter();
    let head = once("output.weight", Weight::Head, Layout::Rows);
    before.chain(blocks).chain(after).chain([head])
}

fn rate_instead(weight: Weight) -> Weight {
    match weight {
        Weight::Block(layer, B::LoraBias(Lora::Value)) => {
            Weight::Block(layer, B::LoraBias(Lora::Rate))
        }
        Weight::Block(layer, B::LoraDown(Lora::Value)) => {
            Weight::Block(layer, B::LoraDown(Lora::Rate))
        }
        Weight::Block(layer, B::LoraUp(Lora::Value)) => Weight::Block(layer, B::LoraUp(Lora::Rate)),
        other => other,
    }
}

/// The tensors of a layer, by what stands between `blk.N.` and `.weight`.
fn entries(version: Version) -> &'static [&'static [Entry]] {
    match version {
        Version::V6 => &[NORMS, BLOCK_6, SQUARES],
        Version::V7 => &[NORMS, BLOCK_7, SQUARES],
        _ => &[],
    }
}

const NORMS: &[Entry] = &[
    (
        "attn_norm.weight",
        &[B::AttNorm(Affine::Weight)],
        Layout::Flat,
    ),
    ("attn_norm.bias", &[B::AttNorm(Affine::Bias)], Layout::Flat),
    (
        "attn_norm_2.weight",
        &[B::FfnNorm(Affine::Weight)],
        Layout::Flat,
    ),
    (
        "attn_norm_2.bias",
        &[B::FfnNorm(Affine::Bias)],
        Layout::Flat,
    ),
    (
        "time_mix_ln.weight",
        &[B::GroupNorm(Affine::Weight)],
        Layout::Flat,
    ),
    (
        "time_mix_ln.bias",
        &[B::GroupNorm(Affine::Bias)],
        Layout::Flat,
    ),
];

const SQUARES: &[Entry] = &[
    ("time_mix_receptance", &[B::AttReceptance], Layout::Rows),
    ("time_mix_key", &[B::AttKey], Layout::Rows),
    ("time_mix_value", &[B::AttValue], Layout::Rows),
    ("time_mix_output", &[B::AttOutput], Layout::Rows),
    ("channel_mix_lerp_k", &[B::FfnMix(Mix::Key)], Layout::Flat),
    ("channel_mix_key", &[B::FfnKey], Layout::Rows),
    ("channel_mix_value", &[B::FfnValue], Layout::Rows),
];

/// The low-rank pairs are `[out, in]` here like all other matrices.
const BLOCK_7: &[Entry] = &[
    (
        "time_mix_lerp_fused",
        &[
            B::AttMix(Mix::Receptance),
            B::AttMix(Mix::Decay),
            B::AttMix(Mix::Key),
            B::AttMix(Mix::Value),
            B::AttMix(Mix::Rate),
            B::AttMix(Mix::Gate),
        ],
        Layout::Vectors,
    ),
    ("time_mix_w0", &[B::LoraBias(Lora::Decay)], Layout::Flat),
    ("time_mix_w1", &[B::LoraDown(Lora::Decay)], Layout::Rows),
    ("time_mix_w2", &[B::LoraUp(Lora::Decay)], Layout::Rows),
    ("time_mix_a0", &[B::LoraBias(Lora::Rate)], Layout::Flat),
    ("time_mix_a1", &[B::LoraDown(Lora::Rate)], Layout::Rows),
    ("time_mix_a2", &[B::LoraUp(Lora::Rate)], Layout::Rows),
    ("time_mix_v0", &[B::LoraBias(Lora::Value)], Layout::Flat),
    ("time_mix_v1", &[B::LoraDown(Lora::Value)], Layout::Rows),
    ("time_mix_v2", &[B::LoraUp(Lora::Value)], Layout::Rows),
    ("time_mix_g1", &[B::LoraDown(Lora::Gate)], Layout::Rows),
    ("time_mix_g2", &[B::LoraUp(Lora::Gate)], Layout::Rows),
    ("time_mix_k_k", &[B::RemovalKey], Layout::Flat),
    ("time_mix_k_a", &[B::ReplacementKey], Layout::Flat),
    ("time_mix_r_k", &[B::Bonus], Layout::Flat),
];

const BLOCK_6: &[Entry] = &[
    ("time_mix_lerp_x", &[B::AttMix(Mix::Base)], Layout::Flat),
    (
        FUSED_6,
        &[
            B::AttMix(MIXES_6[0]),
            B::AttMix(MIXES_6[1]),
            B::AttMix(MIXES_6[2]),
            B::AttMix(MIXES_6[3]),
            B::AttMix(MIXES_6[4]),
        ],
        Layout::Vectors,
    ),
    ("time_mix_w1", DOWN_6, Layout::Rows),
    ("time_mix_w2", UP_6, Layout::Stack),
    ("time_mix_decay", &[B::LoraBias(Lora::Decay)], Layout::Flat),
    (
        "time_mix_decay_w1",
        &[B::LoraDown(Lora::Decay)],
        Layout::Rows,
    ),
    ("time_mix_decay_w2", &[B::LoraUp(Lora::Decay)], Layout::Rows),
    ("time_mix_first", &[B::Bonus], Layout::Heads),
    ("time_mix_gate", &[B::AttGate], Layout::Rows),
    (
        "channel_mix_lerp_r",
        &[B::FfnMix(Mix::Receptance)],
        Layout::Flat,
    ),
    ("channel_mix_receptance", &[B::FfnReceptance], Layout::Rows),
];

const FUSED_6: &str = "time_mix_lerp_fused";

/// What older files of version 6 have instead of the fused mixes, in the same order.
const SEPARATE_6: [&str; 5] = [
    "time_mix_lerp_w",
    "time_mix_lerp_k",
    "time_mix_lerp_v",
    "time_mix_lerp_r",
    "time_mix_lerp_g",
];

/// Binds every tensor that the graph of `config` can ask for.
pub(super) fn bind(
    checkpoint: &Checkpoint,
    config: &ModelConfig,
) -> Result<BoundWeights, rwkv_sched::Error> {
    let rescale = match config.version {
        Version::V6 => checkpoint.metadata().u64("rwkv6.rescale_every_n_layers"),
        _ => None,
    };
    let mut weights = BoundWeights::new(checkpoint);
    for row in rows(config).filter(|row| row.presence != Presence::Copy) {
        let exponent = row.holds.first().map_or(0, |&w| divided(w, rescale));
        match *row.holds {
            [weight] if exponent > 0 => weights.divided(weight, &row.name, exponent)?,
            _ if checkpoint.get(&row.name).is_some() => {
                bind_row(&mut weights, &row.name, &row.holds, row.layout, config)?;
            }
            _ if row.name.ends_with(&format!("{FUSED_6}.weight")) => {
                separate(&mut weights, checkpoint, &row)?;
            }
            _ => return Err(problem(&row.name, "missing".to_owned())),
        }
    }
    Ok(weights)
}

/// Binds the mixes of a file that has a tensor for each.
fn separate(
    weights: &mut BoundWeights,
    checkpoint: &Checkpoint,
    fused: &Row,
) -> Result<(), rwkv_sched::Error> {
    let names = SEPARATE_6.map(|one| fused.name.replace(FUSED_6, one));
    if fused.holds.len() != names.len() || names.iter().all(|name| checkpoint.get(name).is_none()) {
        return Err(problem(&fused.name, "missing".to_owned()));
    }
    for (&weight, name) in fused.holds.iter().zip(&names) {
        weights.vector(weight, name)?;
    }
    Ok(())
}

/// By which power of two the converter divided a tensor of version 6, whose engine halves the residual every `rescale`
/// layers.
fn divided(weight: Weight, rescale: Option<u64>) -> u32 {
    match (weight, rescale) {
        (Weight::Block(layer, B::AttOutput | B::FfnValue), Some(rescale)) => {
            let exponent = (layer as u64).checked_div(rescale).unwrap_or(0);
            u32::try_from(exponent).unwrap_or(u32::MAX)
        }
        _ => 0,
    }
}
