//! Small random models as the files that hold one: original names in safetensors, llama.cpp's in GGUF; other dialects
//! are in `dialects.rs`.
//!
//! Every value is a whole number of at most 7 bits times a power of two, and every 32 of a matrix's row have 127 among
//! them: so F32, F16, BF16 and Q8_0 all hold the same numbers.

#![allow(dead_code, reason = "each test file uses its part")]

use rwkv_kernels::Format;
use rwkv_model::{
    ModelFile, Result,
    files::{Checkpoint, Field, GgufWriter},
};
use rwkv_sched::Version;
use safetensors::{Dtype, tensor::TensorView};
use std::collections::BTreeMap;

/// A tensor to be written; the innermost dimension is the last.
#[derive(Clone)]
pub(crate) struct Tensor {
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Vec<f32>,
}

impl Tensor {
    fn packed(&self, format: Format) -> Vec<u8> {
        if self.values.is_empty() {
            return Vec::new();
        }
        let cols = self.shape.last().copied().unwrap_or(1);
        let rows: usize = self.values.len() / cols.max(1);
        let mut bytes = vec![0; rows * format.row_bytes(cols).unwrap()];
        format.spec().quantize(&self.values, &mut bytes);
        bytes
    }

    pub(crate) fn transposed(&self) -> Self {
        let [rows, cols] = self.shape[..] else {
            panic!("{:?} is no matrix", self.shape)
        };
        let values = (0..self.values.len())
            .map(|at| self.values[at % rows * cols + at / rows])
            .collect();
        Self {
            shape: vec![cols, rows],
            values,
        }
    }

    /// Every matrix of a stack transposed.
    pub(crate) fn each_transposed(&self) -> Self {
        let [count, rows, cols] = self.shape[..] else {
            return self.transposed();
        };
        let values = self
            .values
            .chunks(rows * cols)
            .flat_map(|m| {
                Tensor {
                    shape: vec![rows, cols],
                    values: m.to_vec(),
                }
                .transposed()
                .values
            })
            .collect();
        Self {
            shape: vec![count, cols, rows],
            values,
        }
    }

    pub(crate) fn zeros(shape: &[usize]) -> Self {
        Self {
            shape: shape.to_vec(),
            values: vec![0.0; shape.iter().product()],
        }
    }

    /// Zeros, one more in dimension `axis`.
    pub(crate) fn grown(&self, axis: usize) -> Self {
        let mut shape = self.shape.clone();
        shape[axis] += 1;
        Self::zeros(&shape)
    }

    pub(crate) fn reshaped(&self, shape: &[usize]) -> Self {
        Self {
            shape: shape.to_vec(),
            values: self.values.clone(),
        }
    }
}

/// Tensors by name.
pub(crate) type Tensors = BTreeMap<String, Tensor>;

/// What distinguishes small models; `width`, `ffn` and `head_size` are multiples of 32 for Q8_0's sake.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Small {
    pub(crate) layers: usize,
    pub(crate) width: usize,
    pub(crate) head_size: usize,
    pub(crate) ffn: usize,
    pub(crate) vocab: usize,
    /// Of w, a, v and g.
    pub(crate) ranks: [usize; 4],
}

pub(crate) const SMALL: Small = Small {
    layers: 2,
    width: 64,
    head_size: 32,
    ffn: 96,
    vocab: 40,
    ranks: [7, 5, 3, 33],
};

struct Maker {
    tensors: Tensors,
    seed: u64,
}

impl Maker {
    /// A whole number in `from..=to`.
    fn number(&mut self, from: i32, to: i32) -> f32 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        (from + ((self.seed >> 33) % (to - from + 1) as u64) as i32) as f32
    }

    /// Sixty-fourths.
    fn vector(&mut self, name: &str, shape: &[usize], from: i32, to: i32) {
        let count = shape.iter().product();
        let values = (0..count).map(|_| self.number(from, to) / 64.0).collect();
        self.tensors.insert(
            name.to_owned(),
            Tensor {
                shape: shape.to_vec(),
                values,
            },
        );
    }

    /// Outputs about as large as inputs.
    fn matrix(&mut self, name: &str, rows: usize, cols: usize) {
        let step = (1.0 / 64.0 / (cols as f32).sqrt()).log2().round().exp2();
        let values = (0..rows * cols)
            .map(|at| match at % cols % 32 {
                0 => 127.0 * step,
                _ => self.number(-127, 127) * step,
            })
            .collect();
        self.tensors.insert(
            name.to_owned(),
            Tensor {
                shape: vec![rows, cols],
                values,
            },
        );
    }

    fn norm(&mut self, name: &str, width: usize) {
        self.vector(&format!("{name}.weight"), &[width], 45, 83);
        self.vector(&format!("{name}.bias"), &[width], -6, 6);
    }
}

impl Small {
    /// The tensors of a checkpoint, under BlinkDL's names and in their orientation.
    pub(crate) fn original(self, seed: u64) -> Tensors {
        let Self {
            width, head_size, ..
        } = self;
        let mut maker = Maker {
            tensors: Tensors::new(),
            seed: seed | 1,
        };
        maker.matrix("emb.weight", self.vocab, width);
        maker.matrix("head.weight", self.vocab, width);
        maker.norm("ln_out", width);
        maker.norm("blocks.0.ln0", width);
        for layer in 0..self.layers {
            let name = |rest: &str| format!("blocks.{layer}.{rest}");
            for norm in ["ln1", "ln2", "att.ln_x"] {
                maker.norm(&name(norm), width);
            }
            for mix in [
                "att.x_r", "att.x_w", "att.x_k", "att.x_v", "att.x_a", "att.x_g", "ffn.x_k",
            ] {
                maker.vector(&name(mix), &[1, 1, width], 0, 64);
            }
            for square in ["receptance", "key", "value", "output"] {
                maker.matrix(&name(&format!("att.{square}.weight")), width, width);
            }
            maker.matrix(&name("ffn.key.weight"), self.ffn, width);
            maker.matrix(&name("ffn.value.weight"), width, self.ffn);
            for (letter, rank) in ['w', 'a', 'v', 'g'].into_iter().zip(self.ranks) {
                if letter == 'v' && layer == 0 {
                    continue;
                }
                maker.vector(&name(&format!("att.{letter}1")), &[width, rank], -15, 15);
                maker.vector(&name(&format!("att.{letter}2")), &[rank, width], -15, 15);
                if letter != 'g' {
                    maker.vector(&name(&format!("att.{letter}0")), &[1, 1, width], -127, 127);
                }
            }
            maker.vector(&name("att.k_k"), &[1, 1, width], 40, 64);
            maker.vector(&name("att.k_a"), &[1, 1, width], 50, 78);
            maker.vector(&name("att.r_k"), &[width / head_size, head_size], -20, 20);
        }
        maker.tensors
    }

    /// The tensors of a checkpoint of `version`, under BlinkDL's names and in their orientation. Of the pairs' ranks, the
    /// first is of the mixes of version 6, the second of its decay; version 7a's rank is 4.
    pub(crate) fn of(self, version: Version, seed: u64) -> Tensors {
        let Self {
            width, head_size, ..
        } = self;
        let seven = matches!(version, Version::V7 | Version::V7a);
        let mut maker = Maker {
            tensors: Tensors::new(),
            seed: seed | 1,
        };
        if seven {
            maker.tensors = self.original(seed);
        } else {
            maker.matrix("emb.weight", self.vocab, width);
            maker.matrix("head.weight", self.vocab, width);
            maker.norm("ln_out", width);
            maker.norm("blocks.0.ln0", width);
        }
        for layer in 0..self.layers {
            let name = |rest: &str| format!("blocks.{layer}.{rest}");
            let heads = width / head_size;
            if version == Version::V7a {
                let rank = 4;
                maker.matrix(&name("ffn.s_emb.weight"), self.vocab, rank * rank);
                maker.matrix(&name("ffn.s_emb_x.weight"), rank * rank, width);
                maker.vector(&name("ffn.s0"), &[1, 1, self.ffn], -15, 15);
                maker.vector(&name("ffn.s1"), &[width, rank], -15, 15);
                maker.vector(&name("ffn.s2"), &[rank, self.ffn], -15, 15);
            }
            if version != Version::V4 {
                let state = [heads, head_size, head_size];
                maker.vector(&name("att.time_state"), &state, -15, 15);
            }
            if seven {
                continue;
            }
            maker.norm(&name("ln1"), width);
            maker.norm(&name("ln2"), width);
            let gate = matches!(version, Version::V5_1 | Version::V5_2 | Version::V6);
            for square in ["receptance", "key", "value", "output"] {
                maker.matrix(&name(&format!("att.{square}.weight")), width, width);
            }
            if gate {
                maker.matrix(&name("att.gate.weight"), width, width);
            }
            if version != Version::V4 {
                maker.norm(&name("att.ln_x"), width);
            }
            maker.matrix(&name("ffn.key.weight"), self.ffn, width);
            maker.matrix(&name("ffn.receptance.weight"), width, width);
            maker.matrix(&name("ffn.value.weight"), width, self.ffn);
            let (word, letters) = match version {
                Version::V6 => ("maa", "xwkvrg"),
                _ if gate => ("mix", "kvrg"),
                _ => ("mix", "kvr"),
            };
            for letter in letters.chars() {
                let mix = format!("att.time_{word}_{letter}");
                maker.vector(&name(&mix), &[1, 1, width], 0, 64);
            }
            for letter in ['k', 'r'] {
                let mix = format!("ffn.time_{word}_{letter}");
                maker.vector(&name(&mix), &[1, 1, width], 0, 64);
            }
            let (decay, bonus, shape): (_, _, &[usize]) = match version {
                Version::V4 => ("time_decay", "time_first", &[width]),
                Version::V5_0 => ("time_decay", "time_first", &[heads]),
                Version::V5_1 => ("time_decay", "time_faaaa", &[heads, 1]),
                _ => ("time_decay", "time_faaaa", &[heads, head_size]),
            };
            maker.vector(&name(&format!("att.{bonus}")), shape, -64, 64);
            if version == Version::V6 {
                let [mix, rank, ..] = self.ranks;
                maker.vector(&name("att.time_maa_w1"), &[width, 5 * mix], -15, 15);
                maker.vector(&name("att.time_maa_w2"), &[5, mix, width], -15, 15);
                maker.vector(&name("att.time_decay_w1"), &[width, rank], -15, 15);
                maker.vector(&name("att.time_decay_w2"), &[rank, width], -15, 15);
                maker.vector(&name("att.time_decay"), &[1, 1, width], -64, 64);
            } else {
                maker.vector(&name(&format!("att.{decay}")), shape, -64, 64);
            }
        }
        maker.tensors
    }

    /// The metadata that llama.cpp's converter writes of such a model.
    pub(crate) fn metadata(self) -> Metadata {
        let number = |n: usize| Field::U32(n as u32);
        [
            ("general.architecture", Field::from("rwkv7")),
            ("rwkv7.block_count", number(self.layers)),
            ("rwkv7.embedding_length", number(self.width)),
            ("rwkv7.feed_forward_length", number(self.ffn)),
            ("rwkv7.attention.head_count", number(0)),
            ("rwkv7.attention.layer_norm_epsilon", Field::F32(1e-5)),
            ("rwkv7.wkv.head_size", number(self.head_size)),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
    }
}

/// GGUF metadata to be written.
pub(crate) type Metadata = BTreeMap<String, Field<'static>>;

/// A tensor of a low-rank pair: `blocks.N.att.w1` and so on.
fn is_pair(name: &str) -> bool {
    name.contains(".att.") && name.ends_with(['1', '2'])
}

/// The low-rank pairs the other way round.
pub(crate) fn pairs_transposed(original: &Tensors) -> Tensors {
    let turn = |(name, tensor): (&String, &Tensor)| {
        let tensor = if is_pair(name) {
            tensor.each_transposed()
        } else {
            tensor.clone()
        };
        (name.clone(), tensor)
    };
    original.iter().map(turn).collect()
}

/// The same model under llama.cpp's names.
pub(crate) fn llama_names(original: &Tensors) -> Tensors {
    let mut renamed = Tensors::new();
    for (name, tensor) in original {
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
        let rest = rest.trim_end_matches(".weight");
        let flat = tensor.reshaped(&[tensor.values.len()]);
        let (rest, tensor) = match rest {
            "ln0" | "ln0.bias" => {
                let end = if rest == "ln0" { "weight" } else { "bias" };
                renamed.insert(format!("token_embd_norm.{end}"), flat);
                continue;
            }
            "att.x_r" => {
                let stack = ['r', 'w', 'k', 'v', 'a', 'g'].map(|letter| {
                    let name = format!("blocks.{layer}.att.x_{letter}");
                    original[&name].values.clone()
                });
                let stack = Tensor {
                    shape: vec![6, 1, 1, flat.values.len()],
                    values: stack.concat(),
                };
                ("time_mix_lerp_fused".to_owned(), stack)
            }
            mix if mix.starts_with("att.x_") => continue,
            "ffn.x_k" => ("channel_mix_lerp_k".to_owned(), flat),
            "ln1" | "ln1.bias" => (rest.replace("ln1", "attn_norm"), flat),
            "ln2" | "ln2.bias" => (rest.replace("ln2", "attn_norm_2"), flat),
            "att.ln_x" | "att.ln_x.bias" => (rest.replace("att.ln_x", "time_mix_ln"), flat),
            matrix if matrix.starts_with("ffn.") => {
                (matrix.replace("ffn.", "channel_mix_"), tensor.clone())
            }
            other => {
                let tensor = match other {
                    _ if is_pair(name) => tensor.transposed(),
                    "att.receptance" | "att.key" | "att.value" | "att.output" => tensor.clone(),
                    _ => flat,
                };
                (other.replace("att.", "time_mix_"), tensor)
            }
        };
        let end = if rest.contains(".bias") {
            ""
        } else {
            ".weight"
        };
        renamed.insert(format!("blk.{layer}.{rest}{end}"), tensor);
    }
    // llama.cpp wants them in every layer, and its converter repeats the rate's.
    for part in 0..3 {
        let rate = renamed[&format!("blk.0.time_mix_a{part}.weight")].clone();
        renamed.insert(format!("blk.0.time_mix_v{part}.weight"), rate);
    }
    renamed
}

/// A safetensors file.
pub(crate) fn safetensors(tensors: &Tensors, format: Format) -> Vec<u8> {
    safetensors_with(tensors, format, &[])
}

/// A safetensors file with metadata.
pub(crate) fn safetensors_with(
    tensors: &Tensors,
    format: Format,
    metadata: &[(&str, &str)],
) -> Vec<u8> {
    let dtype = match format {
        Format::F16 => Dtype::F16,
        Format::Bf16 => Dtype::BF16,
        _ => Dtype::F32,
    };
    let packed: Vec<_> = tensors
        .iter()
        .map(|(name, t)| (name, t.shape.clone(), t.packed(format)))
        .collect();
    let views = packed
        .iter()
        .map(|(name, shape, bytes)| (name, TensorView::new(dtype, shape.clone(), bytes).unwrap()));
    let metadata = metadata
        .iter()
        .map(|(key, text)| ((*key).to_owned(), (*text).to_owned()));
    let metadata = (metadata.len() > 0).then(|| metadata.collect());
    safetensors::serialize(views, metadata).unwrap()
}

/// A GGUF file whose matrices are in `format`; vectors and low-rank pairs stay F32, or F16 for quantized files' pairs.
pub(crate) fn gguf(tensors: &Tensors, format: Format, metadata: &Metadata) -> Vec<u8> {
    let mut plan = GgufWriter::new();
    for (key, value) in metadata {
        plan.set(key, value.clone()).unwrap();
    }
    let mut bodies = Vec::new();
    for (name, tensor) in tensors {
        let pair = name.ends_with("1.weight") || name.ends_with("2.weight");
        let small = pair || name.ends_with("time_mix_first.weight");
        let format = match tensor.shape[..] {
            [_, cols] if !small && format.row_bytes(cols).is_some() => format,
            [_, _] if pair && format == Format::Q8_0 => Format::F16,
            _ => Format::F32,
        };
        plan.tensor(name, format, &tensor.shape).unwrap();
        bodies.push((name, tensor.packed(format)));
    }
    let mut body = plan.begin(Vec::new()).unwrap();
    for (name, bytes) in bodies {
        body.write(name, &bytes).unwrap();
    }
    body.finish().unwrap()
}

/// The model in `bytes`, called `name`.
pub(crate) fn open_bytes(name: &str, bytes: Vec<u8>) -> Result<ModelFile> {
    ModelFile::from_checkpoint(Checkpoint::from_vec(name, bytes)?, None)
}
