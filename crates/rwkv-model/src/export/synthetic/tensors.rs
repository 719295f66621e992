//! The tensors of a model, with scales that keep it tame: activations near 1, a residual stream that does not grow,
//! decays between 0.55 and 0.999.

use super::{
    SyntheticSpec,
    distribution::{Distribution, Made, key, normal_quantile, rectified_fourth_moment},
};
use rwkv_sched::{Affine, BlockWeight as B, Lora, Mix, ModelConfig, Version, Weight};

/// The bias of the norm before the channel mix, in every channel: what the share of zeros is set by.
///
/// The keys of the channel mix are `K x` with `x = x' + b`, where x' has the norm's mean of 0. All elements of K are
/// shifted by the same small s: x' hardly notices, since its elements add up to about nothing, and the constant part
/// adds `s b C` to every key. That is placed so that the wanted share of keys is negative, and relu² makes them zero.
const FFN_BIAS: f64 = 0.25;
/// How much of the previous token the channel mix sees, at most. It is little, so that the variance of x' depends
/// little on how alike neighbours are: `(1 − m)² + m²`, on average over `m` from 0 to this.
const FFN_MIX: f64 = 0.2;

/// The rank of version 7a's pair; the table has its square a token.
const DEEP_EMBED_RANK: usize = 32;

/// The ranks of decay, rate, value and gate: the rule of version 7's training code (also in llama.cpp's converter), but
/// for the gate of width 1024.
fn ranks_7(width: usize) -> [usize; 4] {
    let rule = |factor: f64, exponent: f64| {
        let blocks = (factor * (width as f64).powf(exponent) / 32.0).round();
        #[allow(clippy::cast_possible_truncation, reason = "widths are at most 65536")]
        let blocks = blocks as usize;
        blocks.max(1) * 32
    };
    let gate = match width {
        1024 => 128,
        _ => rule(0.6, 0.8),
    };
    [rule(1.8, 0.5), rule(1.8, 0.5), rule(1.3, 0.5), gate]
}

/// The ranks of the mixes and of the decay in the published models of version 6.
fn ranks_6(width: usize) -> [usize; 2] {
    if width < 4096 { [32, 64] } else { [64, 128] }
}

/// Every tensor of a model.
pub(super) fn all(spec: &SyntheticSpec) -> Vec<(Weight, Made)> {
    let mut list = List {
        spec,
        tensors: Vec::new(),
    };
    let ModelConfig {
        vocab,
        width,
        layers,
        ..
    } = spec.config;
    list.bell(Weight::Embedding, vocab, width, 1.0);
    list.matrix(Weight::Head, vocab, width, 1.0);
    list.norm(Weight::EmbeddingNorm);
    list.norm(Weight::OutputNorm);
    for layer in 0..layers {
        list.block(layer);
    }
    list.tensors
}

struct List<'a> {
    spec: &'a SyntheticSpec,
    tensors: Vec<(Weight, Made)>,
}

impl List<'_> {
    fn push(
        &mut self,
        weight: Weight,
        rows: usize,
        cols: usize,
        repeat: usize,
        distribution: Distribution,
    ) {
        let made = Made {
            rows,
            cols,
            distribution,
            repeat,
            key: key(self.spec.seed, &format!("{weight:?}")),
        };
        self.tensors.push((weight, made));
    }

    fn bell(&mut self, weight: Weight, rows: usize, cols: usize, deviation: f64) {
        let (mean, deviation) = (0.0, single(deviation));
        let distribution = Distribution::Bell { mean, deviation };
        self.push(weight, rows, cols, 1, distribution);
    }

    /// A matrix whose outputs are `gain` times as large as its inputs.
    fn matrix(&mut self, weight: Weight, rows: usize, cols: usize, gain: f64) {
        self.bell(weight, rows, cols, gain / (cols as f64).sqrt());
    }

    fn vector(&mut self, weight: Weight, centre: f32, spread: f32) {
        let distribution = Distribution::Uniform { centre, spread };
        self.push(weight, 1, self.spec.config.width, 1, distribution);
    }

    fn norm(&mut self, weight: impl Fn(Affine) -> Weight) {
        self.vector(weight(Affine::Weight), 1.0, 0.1);
        self.vector(weight(Affine::Bias), 0.0, 0.05);
    }

    fn pair(&mut self, layer: usize, lora: Lora, rank: usize, gain: f64) {
        let config = &self.spec.config;
        let out = match lora {
            Lora::DeepEmbed => config.ffn,
            _ => config.width,
        };
        let width = config.width;
        self.matrix(Weight::Block(layer, B::LoraDown(lora)), rank, width, 1.0);
        self.matrix(Weight::Block(layer, B::LoraUp(lora)), out, rank, gain);
    }

    fn block(&mut self, layer: usize) {
        let config = &self.spec.config;
        let (version, width, layers) = (config.version, config.width, config.layers);
        let of = |weight| Weight::Block(layer, weight);
        // Two branches a layer are added to the residual: together they double its variance, over all layers.
        let branch = 1.0 / (2.0 * layers as f64).sqrt();
        for square in [B::AttReceptance, B::AttKey, B::AttValue] {
            self.matrix(of(square), width, width, 1.0);
        }
        self.matrix(of(B::AttOutput), width, width, branch);
        self.norm(|affine| of(B::AttNorm(affine)));
        if version != Version::V4 {
            self.norm(|affine| of(B::GroupNorm(affine)));
        }
        match version {
            Version::V7 | Version::V7a => self.time_mix_7(layer),
            Version::V6 => self.time_mix_6(layer),
            _ => self.time_mix_4_5(layer),
        }
        self.channel_mix(layer, branch);
    }

    fn time_mix_4_5(&mut self, layer: usize) {
        let config = &self.spec.config;
        let of = |weight| Weight::Block(layer, weight);
        let (version, width, head_size) = (config.version, config.width, config.head_size);
        let gated = matches!(version, Version::V5_1 | Version::V5_2);
        for mix in [Mix::Receptance, Mix::Key, Mix::Value] {
            self.vector(of(B::AttMix(mix)), 0.5, 0.5);
        }
        if gated {
            self.vector(of(B::AttMix(Mix::Gate)), 0.5, 0.5);
            self.matrix(of(B::AttGate), width, width, 1.0);
        }
        let repeat = match version {
            Version::V5_0 | Version::V5_1 => head_size,
            _ => 1,
        };
        // exp(−exp(d)), from 0.9975 to 0.64.
        let decay = Distribution::Uniform {
            centre: -3.4,
            spread: 2.6,
        };
        let bonus = Distribution::Uniform {
            centre: 0.3,
            spread: 0.3,
        };
        self.push(of(B::Decay), 1, width, repeat, decay);
        self.push(of(B::Bonus), 1, width, repeat, bonus);
    }

    fn time_mix_6(&mut self, layer: usize) {
        let width = self.spec.config.width;
        let of = |weight| Weight::Block(layer, weight);
        let [mix_rank, decay_rank] = ranks_6(width);
        self.vector(of(B::AttMix(Mix::Base)), 0.5, 0.5);
        for mix in [Mix::Decay, Mix::Key, Mix::Value, Mix::Receptance, Mix::Gate] {
            self.vector(of(B::AttMix(mix)), 0.5, 0.4);
            self.pair(layer, Lora::Mix(mix), mix_rank, 0.1);
        }
        self.pair(layer, Lora::Decay, decay_rank, 0.1);
        self.vector(of(B::LoraBias(Lora::Decay)), -3.4, 2.5);
        self.vector(of(B::Bonus), 0.3, 0.3);
        self.matrix(of(B::AttGate), width, width, 1.0);
    }

    fn time_mix_7(&mut self, layer: usize) {
        let of = |weight| Weight::Block(layer, weight);
        for mix in [
            Mix::Receptance,
            Mix::Decay,
            Mix::Key,
            Mix::Value,
            Mix::Rate,
            Mix::Gate,
        ] {
            self.vector(of(B::AttMix(mix)), 0.5, 0.5);
        }
        let [decay, rate, value, gate] = ranks_7(self.spec.config.width);
        // exp(−0.607 σ(w)), from 0.9985 to 0.68.
        self.vector(of(B::LoraBias(Lora::Decay)), -2.75, 3.25);
        self.pair(layer, Lora::Decay, decay, 0.3);
        self.vector(of(B::LoraBias(Lora::Rate)), 0.0, 0.5);
        self.pair(layer, Lora::Rate, rate, 0.3);
        if layer > 0 {
            self.vector(of(B::LoraBias(Lora::Value)), 0.0, 0.5);
            self.pair(layer, Lora::Value, value, 0.3);
        }
        // The sigmoid inside has a mean square of 0.29.
        self.pair(layer, Lora::Gate, gate, 1.85);
        self.vector(of(B::RemovalKey), 0.85, 0.15);
        self.vector(of(B::ReplacementKey), 1.0, 0.1);
        self.vector(of(B::Bonus), 0.0, 0.1);
    }

    fn channel_mix(&mut self, layer: usize, branch: f64) {
        let config = &self.spec.config;
        let of = |weight| Weight::Block(layer, weight);
        let (version, width, ffn) = (config.version, config.width, config.ffn);
        self.vector(of(B::FfnNorm(Affine::Weight)), 1.0, 0.05);
        let bias = Distribution::Constant(single(FFN_BIAS));
        self.push(of(B::FfnNorm(Affine::Bias)), 1, width, 1, bias);
        let half = single(FFN_MIX / 2.0);
        // Versions 4 and 5 weigh the current token.
        let current = matches!(
            version,
            Version::V4 | Version::V5_0 | Version::V5_1 | Version::V5_2
        );
        let centre = if current { 1.0 - half } else { half };
        self.vector(of(B::FfnMix(Mix::Key)), centre, half);

        let t = normal_quantile(self.spec.zeros);
        let neighbours = 1.0 - FFN_MIX + 2.0 / 3.0 * FFN_MIX * FFN_MIX;
        let deviation = (neighbours + FFN_BIAS * FFN_BIAS).sqrt();
        let key = Distribution::Bell {
            mean: single(-t * deviation / (FFN_BIAS * width as f64)),
            deviation: single(1.0 / (width as f64).sqrt()),
        };
        self.push(of(B::FfnKey), ffn, width, 1, key);
        let fourth = rectified_fourth_moment(t, self.spec.zeros) * deviation.powi(4);
        self.matrix(of(B::FfnValue), width, ffn, branch / fourth.sqrt());
        if !matches!(version, Version::V7 | Version::V7a) {
            self.vector(of(B::FfnMix(Mix::Receptance)), 0.5, 0.5);
            self.matrix(of(B::FfnReceptance), width, width, 1.0);
        }
        if version == Version::V7a {
            let rank = DEEP_EMBED_RANK;
            let square = rank * rank;
            let vocab = config.vocab;
            let spread = (rank as f64).sqrt().recip();
            self.bell(of(B::FfnEmbedding), vocab, square, spread);
            self.matrix(of(B::FfnEmbeddingUp), square, width, 0.3 * spread);
            self.pair(layer, Lora::DeepEmbed, rank, 0.3);
            let bias = Distribution::Uniform {
                centre: 1.0,
                spread: 0.1,
            };
            self.push(of(B::LoraBias(Lora::DeepEmbed)), 1, ffn, 1, bias);
        }
    }
}

/// Numbers here are small and round.
#[allow(
    clippy::cast_possible_truncation,
    reason = "weights are f16 in the end"
)]
fn single(x: f64) -> f32 {
    x as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_by_width() {
        for (width, ranks) in [
            (768, [64, 64, 32, 128]),
            (1024, [64, 64, 32, 128]),
            (2048, [96, 96, 64, 256]),
            (2560, [96, 96, 64, 320]),
            (4096, [128, 128, 96, 480]),
        ] {
            assert_eq!(ranks_7(width), ranks, "{width}");
        }
    }
}
