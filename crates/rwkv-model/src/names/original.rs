//! The names of BlinkDL's checkpoints, versions 4 to 7a: `blocks.N.att.key.weight` and so on.

use super::table::{Entry, Layout, Row, in_layer, once};
use rwkv_sched::{Affine, BlockWeight as B, Lora, Mix, ModelConfig, Version, Weight};

/// Every tensor of a checkpoint of `config`'s version, in the order of its file.
///
/// Of the two names that the bonus of version 5 has had, this is the one that stands for the values themselves.
pub(crate) fn rows(config: &ModelConfig) -> impl Iterator<Item = Row> + use<> {
    let (version, layers) = (config.version, config.layers);
    let norm = |name: &str, norm: fn(Affine) -> Weight| {
        [(Affine::Weight, "weight"), (Affine::Bias, "bias")]
            .map(|(affine, end)| once(&format!("{name}.{end}"), norm(affine), Layout::Flat))
    };
    let before = [once("emb.weight", Weight::Embedding, Layout::Rows)]
        .into_iter()
        .chain(norm("blocks.0.ln0", Weight::EmbeddingNorm));
    let blocks = (0..layers).flat_map(move |layer| {
        let entries = entries(version).iter().copied().flatten();
        entries
            // Layer 0 has no value residual: what some files store there is a dummy.
            .filter(move |(_, holds, _)| layer > 0 || !holds.iter().any(|&b| is_value_residual(b)))
            .map(move |&entry| in_layer(layer, format!("blocks.{layer}.{}", entry.0), entry))
    });
    let after = norm("ln_out", Weight::OutputNorm).into_iter();
    let head = once("head.weight", Weight::Head, Layout::Rows);
    before.chain(blocks).chain(after).chain([head])
}

/// The large matrix of a layer, of any version, whose name has `middle` between `blocks.N.` and `.weight`.
pub(super) fn layer_matrix(middle: &str) -> Option<B> {
    let entries = [SQUARES, GATE, FFN_5].into_iter().flatten();
    entries
        .filter(|(name, _, _)| name.strip_suffix(".weight") == Some(middle))
        .find_map(|(_, holds, _)| holds.first().copied())
}

/// Whether `weight` is of version 7's value residual.
pub(super) fn is_value_residual(weight: B) -> bool {
    matches!(
        weight,
        B::LoraBias(Lora::Value) | B::LoraDown(Lora::Value) | B::LoraUp(Lora::Value)
    )
}

/// The order in which version 6 stacks the pairs of its mixes.
pub(super) const MIXES_6: [Mix; 5] = [Mix::Decay, Mix::Key, Mix::Value, Mix::Receptance, Mix::Gate];

/// The tensors of a layer.
fn entries(version: Version) -> &'static [&'static [Entry]] {
    match version {
        Version::V4 => &[NORMS, ATT_4, SQUARES, FFN_5],
        Version::V5_0 => &[NORMS, ATT_5, PER_HEAD, SQUARES, GROUP_NORM, FFN_5, STATE],
        Version::V5_1 => &[
            NORMS, ATT_5, GATE_MIX_5, PER_HEAD, SQUARES, GATE, GROUP_NORM, FFN_5, STATE,
        ],
        Version::V5_2 => &[
            NORMS, ATT_5, GATE_MIX_5, HEADS_5, SQUARES, GATE, GROUP_NORM, FFN_5, STATE,
        ],
        Version::V6 => &[NORMS, ATT_6, SQUARES, GATE, GROUP_NORM, FFN_6, STATE],
        Version::V7 => &[NORMS, ATT_7, SQUARES, GROUP_NORM, FFN_7, STATE],
        Version::V7a => &[NORMS, ATT_7, SQUARES, GROUP_NORM, FFN_7, FFN_7A, STATE],
        _ => &[],
    }
}

const NORMS: &[Entry] = &[
    ("ln1.weight", &[B::AttNorm(Affine::Weight)], Layout::Flat),
    ("ln1.bias", &[B::AttNorm(Affine::Bias)], Layout::Flat),
    ("ln2.weight", &[B::FfnNorm(Affine::Weight)], Layout::Flat),
    ("ln2.bias", &[B::FfnNorm(Affine::Bias)], Layout::Flat),
];

const SQUARES: &[Entry] = &[
    ("att.receptance.weight", &[B::AttReceptance], Layout::Rows),
    ("att.key.weight", &[B::AttKey], Layout::Rows),
    ("att.value.weight", &[B::AttValue], Layout::Rows),
    ("att.output.weight", &[B::AttOutput], Layout::Rows),
];

const GATE: &[Entry] = &[("att.gate.weight", &[B::AttGate], Layout::Rows)];

const GROUP_NORM: &[Entry] = &[
    (
        "att.ln_x.weight",
        &[B::GroupNorm(Affine::Weight)],
        Layout::Flat,
    ),
    ("att.ln_x.bias", &[B::GroupNorm(Affine::Bias)], Layout::Flat),
];

/// What training of the initial state adds to a checkpoint.
const STATE: &[Entry] = &[("att.time_state", &[B::InitialState], Layout::State)];

const ATT_4: &[Entry] = &[
    ("att.time_decay", &[B::Decay], Layout::Flat),
    ("att.time_first", &[B::Bonus], Layout::Flat),
    ("att.time_mix_k", &[B::AttMix(Mix::Key)], Layout::Broadcast),
    (
        "att.time_mix_v",
        &[B::AttMix(Mix::Value)],
        Layout::Broadcast,
    ),
    (
        "att.time_mix_r",
        &[B::AttMix(Mix::Receptance)],
        Layout::Broadcast,
    ),
];

const ATT_5: &[Entry] = &[
    ("att.time_mix_k", &[B::AttMix(Mix::Key)], Layout::Broadcast),
    (
        "att.time_mix_v",
        &[B::AttMix(Mix::Value)],
        Layout::Broadcast,
    ),
    (
        "att.time_mix_r",
        &[B::AttMix(Mix::Receptance)],
        Layout::Broadcast,
    ),
];

const GATE_MIX_5: &[Entry] = &[("att.time_mix_g", &[B::AttMix(Mix::Gate)], Layout::Broadcast)];

const PER_HEAD: &[Entry] = &[
    ("att.time_decay", &[B::Decay], Layout::PerHead),
    ("att.time_faaaa", &[B::Bonus], Layout::PerHead),
];

const HEADS_5: &[Entry] = &[
    ("att.time_decay", &[B::Decay], Layout::Heads),
    ("att.time_faaaa", &[B::Bonus], Layout::Heads),
];

const FFN_5: &[Entry] = &[
    ("ffn.time_mix_k", &[B::FfnMix(Mix::Key)], Layout::Broadcast),
    (
        "ffn.time_mix_r",
        &[B::FfnMix(Mix::Receptance)],
        Layout::Broadcast,
    ),
    ("ffn.key.weight", &[B::FfnKey], Layout::Rows),
    ("ffn.receptance.weight", &[B::FfnReceptance], Layout::Rows),
    ("ffn.value.weight", &[B::FfnValue], Layout::Rows),
];

const ATT_6: &[Entry] = &[
    ("att.time_maa_x", &[B::AttMix(Mix::Base)], Layout::Broadcast),
    (
        "att.time_maa_w",
        &[B::AttMix(Mix::Decay)],
        Layout::Broadcast,
    ),
    ("att.time_maa_k", &[B::AttMix(Mix::Key)], Layout::Broadcast),
    (
        "att.time_maa_v",
        &[B::AttMix(Mix::Value)],
        Layout::Broadcast,
    ),
    (
        "att.time_maa_r",
        &[B::AttMix(Mix::Receptance)],
        Layout::Broadcast,
    ),
    ("att.time_maa_g", &[B::AttMix(Mix::Gate)], Layout::Broadcast),
    ("att.time_maa_w1", DOWN_6, Layout::Columns),
    ("att.time_maa_w2", UP_6, Layout::ColumnStack),
    (
        "att.time_decay",
        &[B::LoraBias(Lora::Decay)],
        Layout::Broadcast,
    ),
    (
        "att.time_decay_w1",
        &[B::LoraDown(Lora::Decay)],
        Layout::Columns,
    ),
    (
        "att.time_decay_w2",
        &[B::LoraUp(Lora::Decay)],
        Layout::Columns,
    ),
    ("att.time_faaaa", &[B::Bonus], Layout::Heads),
];

/// The first matrices of version 6's mixes.
pub(super) const DOWN_6: &[B] = &[
    B::LoraDown(Lora::Mix(MIXES_6[0])),
    B::LoraDown(Lora::Mix(MIXES_6[1])),
    B::LoraDown(Lora::Mix(MIXES_6[2])),
    B::LoraDown(Lora::Mix(MIXES_6[3])),
    B::LoraDown(Lora::Mix(MIXES_6[4])),
];

/// The second matrices of version 6's mixes.
pub(super) const UP_6: &[B] = &[
    B::LoraUp(Lora::Mix(MIXES_6[0])),
    B::LoraUp(Lora::Mix(MIXES_6[1])),
    B::LoraUp(Lora::Mix(MIXES_6[2])),
    B::LoraUp(Lora::Mix(MIXES_6[3])),
    B::LoraUp(Lora::Mix(MIXES_6[4])),
];

const FFN_6: &[Entry] = &[
    ("ffn.time_maa_k", &[B::FfnMix(Mix::Key)], Layout::Broadcast),
    (
        "ffn.time_maa_r",
        &[B::FfnMix(Mix::Receptance)],
        Layout::Broadcast,
    ),
    ("ffn.key.weight", &[B::FfnKey], Layout::Rows),
    ("ffn.receptance.weight", &[B::FfnReceptance], Layout::Rows),
    ("ffn.value.weight", &[B::FfnValue], Layout::Rows),
];

const ATT_7: &[Entry] = &[
    ("att.x_r", &[B::AttMix(Mix::Receptance)], Layout::Broadcast),
    ("att.x_w", &[B::AttMix(Mix::Decay)], Layout::Broadcast),
    ("att.x_k", &[B::AttMix(Mix::Key)], Layout::Broadcast),
    ("att.x_v", &[B::AttMix(Mix::Value)], Layout::Broadcast),
    ("att.x_a", &[B::AttMix(Mix::Rate)], Layout::Broadcast),
    ("att.x_g", &[B::AttMix(Mix::Gate)], Layout::Broadcast),
    ("att.w0", &[B::LoraBias(Lora::Decay)], Layout::Broadcast),
    ("att.w1", &[B::LoraDown(Lora::Decay)], Layout::Columns),
    ("att.w2", &[B::LoraUp(Lora::Decay)], Layout::Columns),
    ("att.a0", &[B::LoraBias(Lora::Rate)], Layout::Broadcast),
    ("att.a1", &[B::LoraDown(Lora::Rate)], Layout::Columns),
    ("att.a2", &[B::LoraUp(Lora::Rate)], Layout::Columns),
    ("att.v0", &[B::LoraBias(Lora::Value)], Layout::Broadcast),
    ("att.v1", &[B::LoraDown(Lora::Value)], Layout::Columns),
    ("att.v2", &[B::LoraUp(Lora::Value)], Layout::Columns),
    ("att.g1", &[B::LoraDown(Lora::Gate)], Layout::Columns),
    ("att.g2", &[B::LoraUp(Lora::Gate)], Layout::Columns),
    ("att.k_k", &[B::RemovalKey], Layout::Broadcast),
    ("att.k_a", &[B::ReplacementKey], Layout::Broadcast),
    ("att.r_k", &[B::Bonus], Layout::Heads),
];

const FFN_7: &[Entry] = &[
    ("ffn.x_k", &[B::FfnMix(Mix::Key)], Layout::Broadcast),
    ("ffn.key.weight", &[B::FfnKey], Layout::Rows),
    ("ffn.value.weight", &[B::FfnValue], Layout::Rows),
];

const FFN_7A: &[Entry] = &[
    ("ffn.s_emb.weight", &[B::FfnEmbedding], Layout::Rows),
    ("ffn.s_emb_x.weight", &[B::FfnEmbeddingUp], Layout::Rows),
    ("ffn.s0", &[B::LoraBias(Lora::DeepEmbed)], Layout::Broadcast),
    ("ffn.s1", &[B::LoraDown(Lora::DeepEmbed)], Layout::Columns),
    ("ffn.s2", &[B::LoraUp(Lora::DeepEmbed)], Layout::Columns),
];
