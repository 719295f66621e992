//! One small model in the names of other dialects, and what each of its logical tensors should be.

use super::checkpoint::{Tensor, Tensors, pairs_transposed};
use rwkv_sched::{Affine, BlockWeight as B, Lora, Mix, Version, Weight};
use std::collections::HashMap;

/// A logical tensor.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Logical {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) values: Vec<f32>,
}

impl Tensor {
    /// Each value `times` times.
    fn repeated(&self, times: usize) -> Self {
        let values = self.values.iter().flat_map(|x| vec![*x; times]).collect();
        Self {
            shape: vec![self.values.len(), times],
            values,
        }
    }
}

fn mix(letter: &str) -> Mix {
    match letter {
        "r" => Mix::Receptance,
        "w" => Mix::Decay,
        "k" => Mix::Key,
        "v" => Mix::Value,
        "a" => Mix::Rate,
        "g" => Mix::Gate,
        "x" => Mix::Base,
        other => panic!("no mix {other}"),
    }
}

fn lora(letter: &str) -> Lora {
    match letter {
        "w" => Lora::Decay,
        "a" => Lora::Rate,
        "v" => Lora::Value,
        "g" => Lora::Gate,
        "s" => Lora::DeepEmbed,
        other => panic!("no pair {other}"),
    }
}

/// What the tensors of a checkpoint with original names are to a graph, tensor by tensor.
pub(crate) fn logical(version: Version, original: &Tensors) -> HashMap<Weight, Logical> {
    let mut found = HashMap::new();
    let width = original["ln_out.weight"].values.len();
    for (name, tensor) in original {
        let mut put = |weight, tensor: &Tensor| {
            let (rows, cols) = match tensor.shape[..] {
                [rows, cols] => (rows, cols),
                _ => (1, tensor.values.len()),
            };
            let values = tensor.values.clone();
            assert!(
                found
                    .insert(weight, Logical { rows, cols, values })
                    .is_none()
            );
        };
        let flat = tensor.reshaped(&[tensor.values.len()]);
        let end = if name.ends_with("bias") {
            Affine::Bias
        } else {
            Affine::Weight
        };
        let block = name
            .strip_prefix("blocks.")
            .and_then(|rest| rest.split_once('.'));
        let Some((layer, rest)) = block else {
            match name.as_str() {
                "emb.weight" => put(Weight::Embedding, tensor),
                "head.weight" => put(Weight::Head, tensor),
                _ => put(Weight::OutputNorm(end), &flat),
            }
            continue;
        };
        let layer: usize = layer.parse().unwrap();
        let stem = rest.trim_end_matches(".weight").trim_end_matches(".bias");
        if stem == "ln0" {
            put(Weight::EmbeddingNorm(end), &flat);
            continue;
        }
        let mut put = |block, tensor: &Tensor| put(Weight::Block(layer, block), tensor);
        let last = stem.rsplit('_').next().unwrap();
        match stem {
            "ln1" => put(B::AttNorm(end), &flat),
            "ln2" => put(B::FfnNorm(end), &flat),
            "att.ln_x" => put(B::GroupNorm(end), &flat),
            "att.receptance" => put(B::AttReceptance, tensor),
            "att.key" => put(B::AttKey, tensor),
            "att.value" => put(B::AttValue, tensor),
            "att.gate" => put(B::AttGate, tensor),
            "att.output" => put(B::AttOutput, tensor),
            "ffn.receptance" => put(B::FfnReceptance, tensor),
            "ffn.key" => put(B::FfnKey, tensor),
            "ffn.value" => put(B::FfnValue, tensor),
            "ffn.s_emb" => put(B::FfnEmbedding, tensor),
            "ffn.s_emb_x" => put(B::FfnEmbeddingUp, tensor),
            "att.k_k" => put(B::RemovalKey, &flat),
            "att.k_a" => put(B::ReplacementKey, &flat),
            "att.time_state" => {
                let size = tensor.shape[2];
                put(
                    B::InitialState,
                    &tensor.reshaped(&[tensor.values.len() / size, size]),
                );
            }
            "att.time_decay" if version == Version::V6 => put(B::LoraBias(Lora::Decay), &flat),
            "att.time_decay_w1" => put(B::LoraDown(Lora::Decay), &tensor.transposed()),
            "att.time_decay_w2" => put(B::LoraUp(Lora::Decay), &tensor.transposed()),
            "att.time_maa_w1" => {
                let rows = tensor.transposed();
                let rank = rows.shape[0] / 5;
                for (part, letter) in rows.values.chunks(rank * width).zip("wkvrg".chars()) {
                    let part = Tensor {
                        shape: vec![rank, width],
                        values: part.to_vec(),
                    };
                    put(B::LoraDown(Lora::Mix(mix(&letter.to_string()))), &part);
                }
            }
            "att.time_maa_w2" => {
                let rank = tensor.shape[1];
                for (part, letter) in tensor.values.chunks(rank * width).zip("wkvrg".chars()) {
                    let part = Tensor {
                        shape: vec![rank, width],
                        values: part.to_vec(),
                    };
                    put(
                        B::LoraUp(Lora::Mix(mix(&letter.to_string()))),
                        &part.transposed(),
                    );
                }
            }
            "att.time_decay" | "att.time_first" | "att.time_faaaa" | "att.r_k" => {
                let mut whole = flat.clone();
                if stem == "att.time_first" && version != Version::V4 {
                    let exp = |x: &mut f32| *x = f64::from(*x).exp() as f32;
                    whole.values.iter_mut().for_each(exp);
                }
                let whole = whole.repeated(width / flat.values.len());
                let what = if stem == "att.time_decay" {
                    B::Decay
                } else {
                    B::Bonus
                };
                put(what, &whole.reshaped(&[width]));
            }
            _ if stem.starts_with("att.x_") || stem.starts_with("att.time_m") => {
                put(B::AttMix(mix(last)), &flat);
            }
            _ if stem.starts_with("ffn.x_") || stem.starts_with("ffn.time_m") => {
                put(B::FfnMix(mix(last)), &flat);
            }
            pair => {
                let (letter, number) = pair[4..].split_at(1);
                match number {
                    "0" => put(B::LoraBias(lora(letter)), &flat),
                    "1" => put(B::LoraDown(lora(letter)), &tensor.transposed()),
                    "2" => put(B::LoraUp(lora(letter)), &tensor.transposed()),
                    _ => panic!("what is {name}?"),
                }
            }
        }
    }
    found
}

/// As web-rwkv's script writes a checkpoint.
pub(crate) fn converted(version: Version, original: &Tensors) -> Tensors {
    let width = original["ln_out.weight"].values.len();
    let gated = matches!(version, Version::V5_1 | Version::V5_2 | Version::V6);
    let turned = pairs_transposed(original);
    turned
        .iter()
        .map(|(name, tensor)| {
            let mut name = name.clone();
            let mut tensor = tensor.clone();
            let heads = tensor.values.len();
            if version == Version::V5_1
                && (name.ends_with("time_decay") || name.ends_with("time_faaaa"))
            {
                tensor = tensor.repeated(width / heads);
            }
            if name.ends_with("time_state") {
                tensor = tensor.each_transposed();
            }
            if gated {
                name = name
                    .replace("time_faaaa", "time_first")
                    .replace("time_maa", "time_mix");
            }
            (name, tensor)
        })
        .collect()
}

/// As flash-linear-attention names version 7.
pub(crate) fn flash_linear_attention(original: &Tensors, fused: bool) -> Tensors {
    let mut renamed = Tensors::new();
    for (name, tensor) in original {
        let mut tensor = tensor.clone();
        let Some((layer, rest)) = name
            .strip_prefix("blocks.")
            .and_then(|rest| rest.split_once('.'))
        else {
            let name = name
                .replace("emb.", "model.embeddings.")
                .replace("ln_out", "model.norm")
                .replace("head.", "lm_head.");
            renamed.insert(name, tensor);
            continue;
        };
        let renames = [
            ("ln0", "pre_norm"),
            ("ln1", "attn_norm"),
            ("ln2", "ffn_norm"),
            ("att.ln_x", "attn.g_norm"),
            ("att.receptance", "attn.r_proj"),
            ("att.key", "attn.k_proj"),
            ("att.value", "attn.v_proj"),
            ("att.output", "attn.o_proj"),
        ];
        let mut rest = rest.to_owned();
        if let Some((from, to)) = renames.iter().find(|(from, _)| rest.starts_with(*from)) {
            rest = rest.replacen(from, to, 1);
        } else if rest.starts_with("att.x_") && fused {
            if rest == "att.x_r" {
                let each = "rwkvag".chars().flat_map(|c| {
                    original[&format!("blocks.{layer}.att.x_{c}")]
                        .values
                        .clone()
                });
                let values: Vec<f32> = each.collect();
                tensor = Tensor {
                    shape: vec![6, values.len() / 6],
                    values,
                };
                rest = String::from("attn.x_x");
            } else {
                continue;
            }
        } else if rest.len() == 6 && rest.starts_with("att.") {
            let (letter, number) = rest[4..].split_at(1);
            let end = match number {
                "0" => "2.bias",
                "1" => "0.weight",
                _ => "2.weight",
            };
            tensor = if number == "0" {
                tensor.reshaped(&[tensor.values.len()])
            } else {
                tensor.transposed()
            };
            rest = format!("attn.{letter}_lora.lora.{end}");
        } else {
            rest = rest.replace("att.", "attn.");
        }
        renamed.insert(format!("model.layers.{layer}.{rest}"), tensor);
    }
    renamed
}

/// As other Hugging Face code names version 7.
pub(crate) fn blocks(original: &Tensors, layers: &str, att: &str) -> Tensors {
    let rename = |name: &String| match name.as_str() {
        "emb.weight" => "model.embeddings.weight".to_owned(),
        "head.weight" => "lm_head.weight".to_owned(),
        other => other
            .replace("blocks.0.ln0", "model.pre_ln")
            .replace("ln_out", "model.ln_out")
            .replace("blocks.", &format!("model.{layers}."))
            .replace("att.", &format!("{att}."))
            .replace("ffn.", "feed_forward."),
    };
    original
        .iter()
        .map(|(name, tensor)| (rename(name), tensor.clone()))
        .collect()
}

/// As Hugging Face's code names version 6.
pub(crate) fn hugging_face_6(original: &Tensors) -> Tensors {
    let rename = |name: &String| {
        let name = name
            .replace("blocks.0.ln0", "blocks.0.pre_ln")
            .replace("att.", "attention.")
            .replace("ffn.", "feed_forward.");
        match name.as_str() {
            "emb.weight" => "rwkv.embeddings.weight".to_owned(),
            "head.weight" => name,
            _ => format!("rwkv.{name}"),
        }
    };
    original
        .iter()
        .map(|(name, tensor)| (rename(name), tensor.clone()))
        .collect()
}

/// As llama.cpp names version 6, its two matrices divided for `rescale`, its mixes fused or not.
pub(crate) fn llama_6(original: &Tensors, rescale: usize, fused: bool) -> Tensors {
    let mut renamed = Tensors::new();
    for (name, tensor) in original {
        let flat = tensor.reshaped(&[tensor.values.len()]);
        let Some((layer, rest)) = name
            .strip_prefix("blocks.")
            .and_then(|rest| rest.split_once('.'))
        else {
            let name = match name.as_str() {
                "emb.weight" => "token_embd.weight".to_owned(),
                "head.weight" => "output.weight".to_owned(),
                norm => norm.replace("ln_out", "output_norm"),
            };
            renamed.insert(name, tensor.clone());
            continue;
        };
        let number: usize = layer.parse().unwrap();
        if let Some(end) = rest.strip_prefix("ln0") {
            renamed.insert(format!("token_embd_norm{end}"), flat);
            continue;
        }
        let mut tensor = match rest {
            "att.time_maa_w1" | "att.time_maa_w2" | "att.time_decay_w1" | "att.time_decay_w2" => {
                tensor.each_transposed()
            }
            _ if tensor.shape.len() == 3 => flat,
            _ => tensor.clone(),
        };
        if ["att.output.weight", "ffn.value.weight"].contains(&rest) {
            let exponent = number.checked_div(rescale).unwrap_or(0);
            tensor
                .values
                .iter_mut()
                .for_each(|x| *x /= (exponent as f32).exp2());
        }
        let mut rest = rest
            .replace("ln1", "attn_norm")
            .replace("ln2", "attn_norm_2")
            .replace("att.ln_x", "time_mix_ln")
            .replace("att.time_maa_w1", "time_mix_w1")
            .replace("att.time_maa_w2", "time_mix_w2")
            .replace("att.time_faaaa", "time_mix_first")
            .replace("att.time_decay", "time_mix_decay")
            .replace("att.time_maa_", "time_mix_lerp_")
            .replace("ffn.time_maa_", "channel_mix_lerp_")
            .replace("att.", "time_mix_")
            .replace("ffn.", "channel_mix_");
        if fused && rest.starts_with("time_mix_lerp_") && rest != "time_mix_lerp_x" {
            if rest != "time_mix_lerp_w" {
                continue;
            }
            let each = "wkvrg".chars().flat_map(|c| {
                original[&format!("blocks.{layer}.att.time_maa_{c}")]
                    .values
                    .clone()
            });
            let values: Vec<f32> = each.collect();
            tensor = Tensor {
                shape: vec![5, 1, 1, values.len() / 5],
                values,
            };
            rest = String::from("time_mix_lerp_fused");
        }
        if !rest.contains('.') {
            rest += ".weight";
        }
        renamed.insert(format!("blk.{layer}.{rest}"), tensor);
    }
    renamed
}
