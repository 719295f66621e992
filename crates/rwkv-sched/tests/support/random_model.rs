//! Random models of every version and shape, scaled as training leaves them: activations stay near 1, and decays a little
//! below.

use rwkv_kernels::Format;
use rwkv_mem::{Cols, Rows};
use rwkv_sched::{
    Affine, BlockWeight as B, InMemoryWeights, Lora, Mix, Model, ModelConfig, Version, Weight,
    WeightsDType,
};
use std::{ops::Range, sync::Arc};

/// Marsaglia's xorshift64*: the same numbers everywhere.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// From 0 to `n` − 1.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }

    /// Uniform in `range`.
    fn float(&mut self, range: &Range<f32>) -> f32 {
        let unit = (self.next() >> 40) as f32 / (1u64 << 24) as f32;
        range.start + unit * (range.end - range.start)
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }

    pub(crate) fn tokens(&mut self, count: usize, vocab: usize) -> Vec<u32> {
        (0..count).map(|_| self.below(vocab) as u32).collect()
    }

    /// From 1 to `most` tokens.
    pub(crate) fn prompt(&mut self, most: usize, vocab: usize) -> Vec<u32> {
        let count = 1 + self.below(most);
        self.tokens(count, vocab)
    }
}

/// How a model's matrices are packed, and what the GPU makes of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    /// F32 on both sides.
    F32,
    /// F16 tensors, which both sides read as they are.
    F16,
    /// F32 tensors, which the GPU rounds to f16.
    F32AsF16,
    /// Q8_0 where rows are whole blocks, the low-rank pairs in F16.
    Q8_0,
    /// Each matrix another format.
    Mixed,
}

impl Packing {
    pub(crate) fn weights_dtype(self) -> WeightsDType {
        match self {
            Self::F32AsF16 => WeightsDType::F16,
            _ => WeightsDType::F32,
        }
    }

    /// How the oracle's model is packed, so that it has the numbers that the GPU has after loading.
    pub(crate) fn resident(self) -> Self {
        match self {
            Self::F32AsF16 => Self::F16,
            other => other,
        }
    }

    fn format(self, cols: usize, pair: bool, random: &mut Random) -> Format {
        let format = match self {
            Self::F32 | Self::F32AsF16 => Format::F32,
            Self::F16 => Format::F16,
            Self::Q8_0 if pair => Format::F16,
            Self::Q8_0 => Format::Q8_0,
            Self::Mixed => Format::ALL[random.below(Format::ALL.len())],
        };
        match format.row_bytes(cols) {
            Some(_) => format,
            None => Format::F16,
        }
    }
}

/// What distinguishes random models.
#[derive(Clone, Debug)]
pub(crate) struct Dimensions {
    pub(crate) version: Version,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    /// What divides the width; version 4 knows no heads.
    pub(crate) head_size: usize,
    pub(crate) ffn: usize,
    pub(crate) vocab: usize,
    /// Of the decay, the rate (version 6: the mixes), the value (version 7a: DeepEmbed) and the gate.
    pub(crate) ranks: [usize; 4],
}

impl Dimensions {
    pub(crate) fn width(&self) -> usize {
        self.heads * self.head_size
    }

    /// Multiplications a token takes, about.
    pub(crate) fn work(&self) -> usize {
        let width = self.width();
        let layer = width * (6 * width + 2 * self.ffn + 4 * self.ranks.iter().sum::<usize>());
        self.layers * (layer + 4 * width * self.head_size) + width * self.vocab
    }

    pub(crate) fn config(&self) -> ModelConfig {
        ModelConfig {
            version: self.version,
            layers: self.layers,
            width: self.width(),
            head_size: match self.version {
                Version::V4 => 1,
                _ => self.head_size,
            },
            ffn: self.ffn,
            vocab: self.vocab,
            norm_epsilon: 1e-5,
            group_norm_epsilon: 64e-5,
        }
    }

    /// A model of these dimensions.
    pub(crate) fn model(&self, packing: Packing, seed: u64) -> Model {
        let mut maker = Maker {
            weights: InMemoryWeights::default(),
            random: Random::new(seed),
            packing,
        };
        maker.fill(self);
        Model::new(self.config(), Arc::new(maker.weights)).expect("every tensor fits")
    }
}

struct Maker {
    weights: InMemoryWeights,
    random: Random,
    packing: Packing,
}

impl Maker {
    fn insert(
        &mut self,
        weight: Weight,
        format: Format,
        rows: usize,
        cols: usize,
        range: &Range<f32>,
    ) {
        let values: Vec<f32> = (0..rows * cols).map(|_| self.random.float(range)).collect();
        self.weights
            .insert(weight, format, Rows(rows), Cols(cols), &values)
            .expect("the sizes fit");
    }

    fn vector(&mut self, weight: Weight, len: usize, range: Range<f32>) {
        self.insert(weight, Format::F32, 1, len, &range);
    }

    /// Outputs have the variance of the inputs, times `gain` squared.
    fn matrix(&mut self, weight: Weight, rows: usize, cols: usize, gain: f32) {
        let pair = matches!(weight, Weight::Block(_, B::LoraDown(_) | B::LoraUp(_)));
        let format = self.packing.format(cols, pair, &mut self.random);
        let bound = gain * (3.0 / cols as f32).sqrt();
        self.insert(weight, format, rows, cols, &(-bound..bound));
    }

    fn norm(&mut self, name: impl Fn(Affine) -> Weight, width: usize) {
        self.vector(name(Affine::Weight), width, 0.7..1.3);
        self.vector(name(Affine::Bias), width, -0.1..0.1);
    }

    fn fill(&mut self, dimensions: &Dimensions) {
        let (width, vocab) = (dimensions.width(), dimensions.vocab);
        // Rows of the embedding are looked up, so that their elements are what the bound says.
        self.matrix(Weight::Embedding, vocab, width, (width as f32).sqrt());
        self.norm(Weight::EmbeddingNorm, width);
        self.norm(Weight::OutputNorm, width);
        self.matrix(Weight::Head, vocab, width, 1.0);
        for layer in 0..dimensions.layers {
            self.layer(dimensions, layer);
        }
    }

    fn layer(&mut self, dimensions: &Dimensions, layer: usize) {
        let Dimensions { version, ffn, .. } = *dimensions;
        let width = dimensions.width();
        let block = |weight| Weight::Block(layer, weight);
        let seven = matches!(version, Version::V7 | Version::V7a);
        for norm in [B::AttNorm, B::FfnNorm, B::GroupNorm] {
            self.norm(|affine| block(norm(affine)), width);
        }
        for mix in mixes(version) {
            self.vector(block(B::AttMix(*mix)), width, 0.0..1.0);
        }
        self.vector(block(B::FfnMix(Mix::Key)), width, 0.0..1.0);
        self.vector(block(B::Bonus), width, -0.3..0.3);
        // As in the published initialisation, receptance, key and value stay below 1. The group norm after the
        // recurrence brings a head whose r ⊙ k happens to cancel back to 1, rounding errors and all: the smaller these
        // are against its epsilon, the less.
        for (square, gain) in [
            (B::AttReceptance, 0.5),
            (B::AttKey, 0.3),
            (B::AttValue, 0.5),
            (B::AttOutput, 1.0),
        ] {
            self.matrix(block(square), width, width, gain);
        }
        self.matrix(block(B::FfnKey), ffn, width, 1.0);
        self.matrix(block(B::FfnValue), width, ffn, 1.0);
        if seven {
            self.vector(block(B::RemovalKey), width, 0.6..1.0);
            self.vector(block(B::ReplacementKey), width, 0.8..1.2);
        } else {
            self.vector(block(B::FfnMix(Mix::Receptance)), width, 0.0..1.0);
            self.matrix(block(B::FfnReceptance), width, width, 1.0);
        }
        match version {
            Version::V5_1 | Version::V5_2 | Version::V6 => {
                self.matrix(block(B::AttGate), width, width, 1.0);
            }
            _ => {}
        }
        if matches!(
            version,
            Version::V4 | Version::V5_0 | Version::V5_1 | Version::V5_2
        ) {
            // exp(−exp(·)): decays of 0.993 and 0.07.
            self.vector(block(B::Decay), width, -5.0..1.0);
        }
        for (lora, rank, gain, bias) in pairs(dimensions, layer) {
            self.matrix(block(B::LoraDown(lora)), rank, width, 1.0);
            self.matrix(block(B::LoraUp(lora)), width, rank, gain);
            if let Some(range) = bias {
                self.vector(block(B::LoraBias(lora)), width, range);
            }
        }
        if version == Version::V7a {
            self.deep_embed(dimensions, layer);
        }
    }

    fn deep_embed(&mut self, dimensions: &Dimensions, layer: usize) {
        let block = |weight| Weight::Block(layer, weight);
        let (width, ffn) = (dimensions.width(), dimensions.ffn);
        // A token has its square.
        let rank = dimensions.ranks[2].min(12);
        let (root, lora) = ((rank as f32).sqrt(), Lora::DeepEmbed);
        self.matrix(block(B::LoraDown(lora)), rank, width, 1.0);
        self.matrix(block(B::LoraUp(lora)), ffn, rank, 0.25);
        self.vector(block(B::LoraBias(lora)), ffn, 0.5..1.5);
        let (table, up) = (block(B::FfnEmbedding), block(B::FfnEmbeddingUp));
        self.matrix(table, dimensions.vocab, rank * rank, root);
        self.matrix(up, rank * rank, width, 0.5 / root);
    }
}

/// The mixes of the time mix.
fn mixes(version: Version) -> &'static [Mix] {
    use Mix::{Base, Decay, Gate, Key, Rate, Receptance, Value};
    match version {
        Version::V4 | Version::V5_0 => &[Receptance, Key, Value],
        Version::V5_1 | Version::V5_2 => &[Receptance, Key, Value, Gate],
        Version::V6 => &[Base, Decay, Key, Value, Receptance, Gate],
        _ => &[Receptance, Decay, Key, Value, Rate, Gate],
    }
}

/// The low-rank pairs of a layer's time mix: the rank, the gain of the second matrix, and where the bias lies.
fn pairs(dimensions: &Dimensions, layer: usize) -> Vec<(Lora, usize, f32, Option<Range<f32>>)> {
    let [decay, rate, value, gate] = dimensions.ranks;
    match dimensions.version {
        Version::V6 => {
            let mixes = [Mix::Decay, Mix::Key, Mix::Value, Mix::Receptance, Mix::Gate];
            let mixes = mixes.map(|mix| (Lora::Mix(mix), rate, 0.3, None));
            // As version 5's.
            let decay = (Lora::Decay, decay, 0.3, Some(-5.0..1.0));
            mixes.into_iter().chain([decay]).collect()
        }
        Version::V7 | Version::V7a => {
            let mut pairs = vec![
                // σ(−6.4) and σ(4): decays of 0.999 and 0.55.
                (Lora::Decay, decay, 0.3, Some(-6.4..4.0)),
                (Lora::Rate, rate, 0.3, Some(-1.0..1.0)),
                (Lora::Gate, gate, 2.0, None),
            ];
            if layer > 0 {
                pairs.push((Lora::Value, value, 0.3, Some(-1.0..1.0)));
            }
            pairs
        }
        _ => Vec::new(),
    }
}
