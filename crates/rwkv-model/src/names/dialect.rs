//! The dialects of checkpoints that are not GGUF: what each calls a tensor of the original names, and how to tell them
//! apart by their names alone.

use crate::{
    Error, Result,
    files::{Checkpoint, TensorView},
};
use rwkv_sched::Version;

/// Whose names a file uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// BlinkDL's, and version 7 as web-rwkv's converter keeps it.
    Original,
    /// web-rwkv's and Ai00's `.st` of gated versions 5 and of version 6, which write `time_mix` for `time_maa` and
    /// `time_first` for `time_faaaa`.
    Converted,
    /// Version 7 of flash-linear-attention.
    FlashLinearAttention,
    /// Version 7 of other Hugging Face code.
    Blocks {
        /// Before a layer's number.
        layer: &'static str,
        /// Before a tensor of the time mix, after the layer's number.
        att: &'static str,
    },
    /// Version 6 of Hugging Face.
    HuggingFace6,
}

/// The second dialect of version 7, wherever it puts its layers and their time mix.
const BLOCKS: [Dialect; 8] = {
    const fn blocks(layer: &'static str, att: &'static str) -> Dialect {
        Dialect::Blocks { layer, att }
    }
    [
        blocks("model.blocks.", "attention."),
        blocks("model.blocks.", "attention.time_mixer."),
        blocks("model.blocks.", "self_attn."),
        blocks("model.blocks.", "self_attn.time_mixer."),
        blocks("model.layers.", "attention."),
        blocks("model.layers.", "attention.time_mixer."),
        blocks("model.layers.", "self_attn."),
        blocks("model.layers.", "self_attn.time_mixer."),
    ]
};

/// What the beginning of an original name is in a dialect.
type Renames = &'static [(&'static str, &'static [&'static str])];

const FLA_ONCE: Renames = &[
    ("emb.", &["model.embeddings."]),
    ("blocks.0.ln0.", &["model.layers.0.pre_norm."]),
    ("ln_out.", &["model.norm."]),
    ("head.", &["lm_head."]),
];
const FLA_LAYER: Renames = &[
    ("ln1.", &["attn_norm."]),
    ("ln2.", &["ffn_norm."]),
    ("att.receptance.", &["attn.r_proj."]),
    ("att.key.", &["attn.k_proj."]),
    ("att.value.", &["attn.v_proj."]),
    ("att.output.", &["attn.o_proj."]),
    ("att.ln_x.", &["attn.g_norm."]),
    ("att.w0", &["attn.w_lora.lora.2.bias"]),
    ("att.w1", &["attn.w_lora.lora.0.weight"]),
    ("att.w2", &["attn.w_lora.lora.2.weight"]),
    ("att.a0", &["attn.a_lora.lora.2.bias"]),
    ("att.a1", &["attn.a_lora.lora.0.weight"]),
    ("att.a2", &["attn.a_lora.lora.2.weight"]),
    ("att.v0", &["attn.v_lora.lora.2.bias"]),
    ("att.v1", &["attn.v_lora.lora.0.weight"]),
    ("att.v2", &["attn.v_lora.lora.2.weight"]),
    ("att.g1", &["attn.g_lora.lora.0.weight"]),
    ("att.g2", &["attn.g_lora.lora.2.weight"]),
    ("att.", &["attn."]),
];
const BLOCKS_ONCE: Renames = &[
    (
        "emb.",
        &["model.embeddings.", "model.embed_tokens.", "model.emb."],
    ),
    (
        "blocks.0.ln0.",
        &[
            "model.pre_ln.",
            "model.blocks.0.pre_ln.",
            "model.layers.0.pre_ln.",
            "model.layers.0.pre_norm.",
        ],
    ),
    ("ln_out.", &["model.ln_out.", "model.norm."]),
    ("head.", &["lm_head.", "head.", "model.head."]),
];
/// What follows the layer's number; `@` is the beginning of the time mix.
const BLOCKS_LAYER: Renames = &[
    ("ln1.", &["ln1.", "attn_norm."]),
    ("ln2.", &["ln2.", "ffn_norm."]),
    ("att.receptance.", &["@receptance.", "@r_proj."]),
    ("att.key.", &["@key.", "@k_proj."]),
    ("att.value.", &["@value.", "@v_proj."]),
    ("att.output.", &["@output.", "@o_proj."]),
    ("att.ln_x.", &["@ln_x.", "@g_norm."]),
    ("att.", &["@"]),
    ("ffn.", &["feed_forward.", "ffn."]),
];
const RWKV6_ONCE: Renames = &[
    ("emb.", &["rwkv.embeddings."]),
    ("blocks.0.ln0.", &["rwkv.blocks.0.pre_ln."]),
    ("ln_out.", &["rwkv.ln_out."]),
];
const RWKV6_LAYER: Renames = &[("att.", &["attention."]), ("ffn.", &["feed_forward."])];

impl Dialect {
    /// What stands before a layer's number.
    pub(super) fn layers(self) -> &'static str {
        match self {
            Self::Original | Self::Converted => "blocks.",
            Self::FlashLinearAttention => "model.layers.",
            Self::Blocks { layer, .. } => layer,
            Self::HuggingFace6 => "rwkv.blocks.",
        }
    }

    /// What a tensor called `original` in BlinkDL's checkpoints can be called here, the likeliest first.
    pub(super) fn names(self, original: &str) -> Vec<String> {
        let (once, in_layer, att): (Renames, Renames, &str) = match self {
            // Whoever saved version 7a as parameters or as layers: with or without `.weight`.
            Self::Original if original.contains(".ffn.s") => {
                let stem = original.trim_end_matches(".weight");
                let (plain, weight) = (stem.to_owned(), format!("{stem}.weight"));
                return if stem == original {
                    vec![plain, weight]
                } else {
                    vec![weight, plain]
                };
            }
            Self::Original if original.ends_with(".att.time_faaaa") => {
                return vec![original.to_owned(), original.replace("faaaa", "first")];
            }
            Self::Original => return vec![original.to_owned()],
            Self::Converted => {
                let converted = original
                    .replace(".time_maa_", ".time_mix_")
                    .replace(".time_faaaa", ".time_first");
                let both = converted != original;
                return [converted]
                    .into_iter()
                    .chain(both.then(|| original.to_owned()))
                    .collect();
            }
            Self::FlashLinearAttention => (FLA_ONCE, FLA_LAYER, ""),
            Self::Blocks { att, .. } => (BLOCKS_ONCE, BLOCKS_LAYER, att),
            Self::HuggingFace6 => (RWKV6_ONCE, RWKV6_LAYER, ""),
        };
        let renamed = |renames: Renames, name: &str| -> Vec<String> {
            renames
                .iter()
                .find_map(|(from, to)| Some((name.strip_prefix(from)?, to)))
                .map_or_else(
                    || vec![name.to_owned()],
                    |(rest, to)| to.iter().map(|to| format!("{to}{rest}")).collect(),
                )
        };
        let layer = original
            .strip_prefix("blocks.")
            .and_then(|rest| rest.split_once('.'));
        match layer {
            Some((number, rest)) if !rest.starts_with("ln0.") => renamed(in_layer, rest)
                .iter()
                .map(|rest| format!("{}{number}.{}", self.layers(), rest.replace('@', att)))
                .collect(),
            _ => renamed(once, original),
        }
    }

    /// The tensor called `original` in BlinkDL's checkpoints.
    pub(super) fn find<'a>(
        self,
        checkpoint: &'a Checkpoint,
        original: &str,
    ) -> Option<TensorView<'a>> {
        self.names(original)
            .iter()
            .find_map(|name| checkpoint.get(name))
    }

    /// Whether a low-rank pair that its shape does not tell is `[out, in]`, the transpose of the checkpoints'.
    pub(super) fn turns_pairs(self) -> bool {
        matches!(self, Self::Converted | Self::FlashLinearAttention)
    }

    /// Whether the bonus called `name` is a logarithm.
    ///
    /// In original files of version 5, `time_first` is the logarithm of what `time_faaaa` is. web-rwkv's converter
    /// renames the second to the first, and repeats one value a head to one a channel. So with a gate (versions 5.1 and
    /// 5.2), whose originals have `time_faaaa`, `time_first` with one value a channel is a converted file's and raw, and
    /// with one a head it is a logarithm; without a gate (5.0) it always is one; in version 6 it never is.
    pub(super) fn is_logarithm(self, version: Version, name: &str) -> bool {
        let five = matches!(version, Version::V5_0 | Version::V5_1 | Version::V5_2);
        five && self == Self::Original && name.ends_with("time_first")
    }

    /// Whose names `checkpoint` uses.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for layouts that are known and not read, [`Error::NotAModel`] where none is recognised.
    pub(super) fn detect(checkpoint: &Checkpoint) -> Result<Self> {
        let has = |name: &str| checkpoint.get(name).is_some();
        let starts = |prefix: &str| checkpoint.names().any(|name| name.starts_with(prefix));
        let unsupported = |what: &str| Error::Unsupported {
            file: checkpoint.source().to_owned(),
            what: what.to_owned(),
        };
        if let Some(what) = unsupported_names(checkpoint) {
            return Err(unsupported(what));
        }
        if starts("blocks.0.") {
            return Ok(
                if has("blocks.0.att.time_mix_x") || renamed_bonus(checkpoint) {
                    Self::Converted
                } else {
                    Self::Original
                },
            );
        }
        if starts("rwkv.blocks.0.attention.") {
            return if has("rwkv.blocks.0.attention.time_maa_x") {
                Ok(Self::HuggingFace6)
            } else {
                Err(unsupported(
                    "RWKV-4 or RWKV-5 in Hugging Face's layout; take the original .pth instead",
                ))
            };
        }
        if has("model.layers.0.attn.r_k") {
            return Ok(Self::FlashLinearAttention);
        }
        if let Some(found) = BLOCKS
            .into_iter()
            .find(|blocks| blocks.find(checkpoint, "blocks.0.att.r_k").is_some())
        {
            return Ok(found);
        }
        let what = "no RWKV model: it has no tensors called `blocks.0.att.…`, nor those of a Hugging Face layout that \
                    is read; files of other layouts can be converted to the original names or to GGUF first"
            .to_owned();
        let file = checkpoint.source().to_owned();
        Err(Error::NotAModel { file, what })
    }
}

/// Whether a gated version 5 has `time_first` with one value a channel; see [`Dialect::is_logarithm`].
fn renamed_bonus(checkpoint: &Checkpoint) -> bool {
    let shape = |rest: &str| Some(checkpoint.get(&format!("blocks.0.att.{rest}"))?.shape);
    let elements = |shape: &[usize]| shape.iter().product::<usize>();
    match (
        shape("time_first"),
        shape("time_decay"),
        shape("ln_x.weight"),
    ) {
        (Some(bonus), Some(_), Some(channels)) => {
            shape("gate.weight").is_some() && elements(bonus) == elements(channels)
        }
        _ => false,
    }
}

/// The kind of model that some tensor's name is a mark of, where we know it and do not read it.
fn unsupported_names(checkpoint: &Checkpoint) -> Option<&'static str> {
    let any = |found: &dyn Fn(&str) -> bool| checkpoint.names().any(found);
    let says = |key: &str| checkpoint.metadata().string(key);
    if any(&|n| n.contains(".ffn.enn.") || n.ends_with(".ffn.enn")) {
        return Some("RWKV-8");
    }
    if any(&|n| n.starts_with("qkv.") || n.contains(".qkv.")) {
        return Some("RWKV-7b");
    }
    match says("config.model_type") {
        Some("rwkv6qwen2") => return Some("RWKV6-Qwen2, a hybrid with RMS norms"),
        Some("arwkv7" | "rwkv_hybrid") => return Some("ARWKV-7, a hybrid with RMS norms"),
        _ => {}
    }
    let recurrent = any(&|n| {
        let marks = [".time_maa_", ".time_decay", ".time_mixer.", ".r_k", ".x_r"];
        marks.iter().any(|mark| n.contains(mark))
    });
    let foreign = |n: &str| n.contains(".input_layernorm.") || n.contains(".mlp.gate_proj.");
    if recurrent && any(&foreign) {
        return Some("a hybrid with RMS norms (RWKV6-Qwen2, ARWKV-7)");
    }
    if any(&|n| n.contains(".attn.x_proj.")) {
        return Some("RWKV-6 in flash-linear-attention's layout; take the original .pth instead");
    }
    let attention = any(&|n| n.contains(".attn.q_proj."));
    if recurrent && (attention || says("config.attn").is_some_and(|attn| attn != "null")) {
        return Some("a hybrid of RWKV and attention");
    }
    if checkpoint.names().any(|name| name == "_strategy") {
        return Some(
            "a file that was converted for one strategy of another engine; take the original",
        );
    }
    None
}
