//! Random settings, seeds and logits, four steps of 16 sequences a case. 32 cases are 2,048 tokens each way of running
//! kernels; `PROPTEST_CASES=157` makes it 10,048.

use super::{STEPS, Sequences, counted, rounding::may_choose};
use crate::{
    noise::Noise,
    setup::{Setup, cases, setups},
};
use proptest::prelude::*;
use rwkv_kernels::sampling::{Chosen, Sampler, SamplerOrder, SamplerParams};

const ROWS: usize = 16;

proptest! {
    #![proptest_config(cases(32))]

    #[test]
    fn same_tokens(vocabulary in prop_oneof![4 => 1usize..12, 6 => 12usize..300, 4 => 300usize..3000, 1 => 16_300usize..16_500], seed: u64) {
        agree(vocabulary, ROWS, &mut Noise::new(seed));
    }
}

/// Whole vocabularies, of whole vec4s and not.
#[test]
fn same_tokens_of_whole_vocabularies() {
    for vocabulary in [65_536, 65_529, 50_277] {
        agree(vocabulary, 12, &mut Noise::new(vocabulary as u64));
    }
}

fn agree(vocabulary: usize, rows: usize, noise: &mut Noise) {
    let count = u32::try_from(vocabulary).unwrap();
    let samplers: Vec<Sampler> = (0..rows)
        .map(|_| {
            let mut sampler = Sampler::new(params(count, noise)).unwrap();
            for _ in 0..noise.below(9) {
                // Some beyond the vocabulary.
                let token = noise.below(count + 2);
                sampler.accept(token, counted(token));
            }
            sampler
        })
        .collect();
    let steps: Vec<Vec<f32>> = (0..STEPS)
        .map(|_| (0..rows).flat_map(|_| logits(count, noise)).collect())
        .collect();
    for setup in setups() {
        compare(setup, vocabulary, &samplers, &steps);
    }
}

fn compare(setup: &Setup, vocabulary: usize, samplers: &[Sampler], steps: &[Vec<f32>]) {
    let gpu = Sequences::new(setup, vocabulary, vocabulary + 9, samplers);
    for logits in steps {
        gpu.step(logits);
    }
    let chosen = gpu.chosen();
    let mut differ = 0;
    for (row, sampler) in samplers.iter().enumerate() {
        let mut twin = sampler.clone();
        for (step, logits) in steps.iter().enumerate() {
            let logits = &logits[row * vocabulary..][..vocabulary];
            let before = twin.clone();
            let mut token = twin.sample(logits).unwrap();
            let found = chosen[step][row];
            if found != Chosen::Token(token) {
                let what = format!(
                    "{}, {vocabulary} tokens, row {row}, step {step}: {found:?} instead of {token}, {:?}",
                    setup.name,
                    twin.params()
                );
                let Chosen::Token(other) = found else {
                    panic!("{what}");
                };
                assert!(may_choose(&before, logits, other), "{what}");
                differ += 1;
                token = other;
            }
            twin.accept(token, counted(token));
        }
        let mut after = sampler.clone();
        assert!(after.resume(&gpu.memory(row)));
        assert_eq!(
            after.to_memory(vocabulary + 9),
            twin.to_memory(vocabulary + 9)
        );
        assert_eq!(Chosen::Token(gpu.tokens()[row]), chosen[STEPS - 1][row]);
    }
    assert!(
        differ * 100 <= samplers.len() * steps.len() + 100,
        "{}: {differ} tokens differ by rounding",
        setup.name
    );
}

/// Settings of every kind.
fn params(vocabulary: u32, noise: &mut Noise) -> SamplerParams {
    let unit = |noise: &mut Noise| noise.unit().abs().min(1.0);
    let mut biased: Vec<u32> = (0..noise.below(5))
        .map(|_| noise.below(vocabulary))
        .collect();
    biased.sort_unstable();
    biased.dedup();
    let bias = |token, noise: &mut Noise| match noise.below(4) {
        // Token 0 can always come.
        0 if token > 0 => (token, f32::NEG_INFINITY),
        _ => (token, noise.unit() * 4.0),
    };
    SamplerParams {
        temperature: match noise.below(6) {
            0 => 0.0,
            1 | 2 => 1.0,
            3 => 1e-3 + unit(noise) * 0.1,
            4 => 1.0 + 5.0 * unit(noise),
            _ => 0.05 + unit(noise),
        },
        top_k: match noise.below(4) {
            0 | 1 => 0,
            2 => noise.below(50) + 1,
            _ => noise.below(vocabulary + 3),
        },
        top_p: match noise.below(6) {
            0 => 1.0,
            1 => 0.85,
            2 => 0.0,
            3 => 1.0 - unit(noise) * 0.01,
            _ => unit(noise),
        },
        min_p: match noise.below(4) {
            0 => unit(noise),
            1 => unit(noise) * 0.05,
            _ => 0.0,
        },
        presence_penalty: noise.unit(),
        frequency_penalty: noise.unit(),
        penalty_decay: [1.0, 0.996, 0.5, 0.0][noise.below(4) as usize],
        logit_bias: biased.into_iter().map(|token| bias(token, noise)).collect(),
        seed: u64::from(noise.below(u32::MAX)) << 32 | u64::from(noise.below(u32::MAX)),
        order: [SamplerOrder::Reference, SamplerOrder::TemperatureFirst][noise.below(2) as usize],
    }
}

/// A row of logits: flat, peaked, tied, or with tokens that cannot come.
fn logits(vocabulary: u32, noise: &mut Noise) -> Vec<f32> {
    let kind = noise.below(6);
    let scale = [0.0, 0.5, 3.0, 8.0, 20.0, 100.0][noise.below(6) as usize];
    let mut row: Vec<f32> = (0..vocabulary)
        .map(|_| match kind {
            // Ties.
            0 => (noise.unit() * scale).round(),
            1 => (noise.unit() * 32.0).round() / 8.0,
            2 if noise.below(3) == 0 => f32::NEG_INFINITY,
            // About normal, as trained models' are.
            3 | 4 => (noise.unit() + noise.unit() + noise.unit()) * scale / 2.0,
            _ => noise.unit() * scale,
        })
        .collect();
    row[0] = row[0].max(-30.0);
    row
}
