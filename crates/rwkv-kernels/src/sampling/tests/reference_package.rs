//! The reference package `rwkv` (its `utils.py`): probabilities that it computes, and the loop around its sampler.

use super::{
    super::penalties::{Occurrences, penalise},
    Sampler, SamplerParams, same, uniform,
};
use std::collections::HashMap;

const NEVER: f32 = f32::NEG_INFINITY;
const PLAIN: &[f32] = &[2.5, -1.0, 0.75, 3.25, -4.0, 1.5, 0.0, 2.0];
const TIED: &[f32] = &[1.0, 1.0, 0.5, 1.0, -2.0, 0.5];
const BANNED: &[f32] = &[5.0, NEVER, 4.5, -30.0, 4.0, NEVER];

/// Logits; temperature, top-k, top-p; occurrence counts; probabilities from the NumPy branch of `sample_logits` in
/// f32 (NumPy 2.4, presence and frequency penalty 0.2). Rows in which its sort would break a tie of top-k are left
/// out, and so is top-p 1: there, f32 sums that stay below 1 make the package keep only the most probable token.
type Row = (
    &'static [f32],
    (f32, u32, f32),
    &'static [(u32, f32)],
    &'static [(u32, f64)],
);

const ROWS: &[Row] = &[
    (
        PLAIN,
        (1.0, 0, 0.85),
        &[],
        &[(0, 0.268_562_3), (3, 0.568_546_5), (7, 0.162_891_3)],
    ),
    (PLAIN, (1.0, 0, 0.3), &[], &[(3, 1.0)]),
    (
        PLAIN,
        (0.7, 0, 0.85),
        &[],
        &[(0, 0.226_804_2), (3, 0.662_165_6), (7, 0.111_030_1)],
    ),
    (
        PLAIN,
        (1.8, 0, 0.95),
        &[],
        &[
            (0, 0.236_610_4),
            (2, 0.089_495_9),
            (3, 0.358_913_6),
            (5, 0.135_756),
            (7, 0.179_224_1),
        ],
    ),
    (
        PLAIN,
        (1.0, 3, 0.99),
        &[],
        &[(0, 0.268_562_3), (3, 0.568_546_5), (7, 0.162_891_3)],
    ),
    (
        PLAIN,
        (2.0, 5, 0.8),
        &[],
        &[(0, 0.309_234_5), (3, 0.449_933_5), (7, 0.240_832)],
    ),
    (PLAIN, (1.0, 0, 0.0), &[], &[(3, 1.0)]),
    (
        TIED,
        (1.0, 0, 0.5),
        &[],
        &[(0, 0.333_333_3), (1, 0.333_333_3), (3, 0.333_333_3)],
    ),
    (
        TIED,
        (0.5, 0, 0.9),
        &[],
        &[
            (0, 0.267_683_2),
            (1, 0.267_683_2),
            (2, 0.098_475_2),
            (3, 0.267_683_2),
            (5, 0.098_475_2),
        ],
    ),
    (
        BANNED,
        (1.0, 0, 0.85),
        &[],
        &[(0, 0.506_480_4), (2, 0.307_195_9), (4, 0.186_323_7)],
    ),
    (
        BANNED,
        (1.5, 2, 0.999),
        &[],
        &[(0, 0.582_570_2), (2, 0.417_429_8)],
    ),
    (
        PLAIN,
        (1.0, 0, 0.85),
        &[(3, 1.992), (0, 0.0)],
        &[
            (0, 0.276_894_2),
            (3, 0.393_560_8),
            (5, 0.124_416_6),
            (7, 0.205_128_3),
        ],
    ),
    (
        PLAIN,
        (1.3, 4, 0.9),
        &[(3, 5.5), (7, 0.996), (2, 1.0), (0, 3.25)],
        &[
            (0, 0.243_104_7),
            (3, 0.306_207_1),
            (5, 0.216_612),
            (7, 0.234_076_1),
        ],
    ),
];

#[test]
fn probabilities() {
    for &(logits, (temperature, top_k, top_p), counts, expected) in ROWS {
        let params = SamplerParams {
            temperature,
            top_k,
            top_p,
            penalty_decay: 1.0,
            ..SamplerParams::default()
        };
        let mut seen = Occurrences::default();
        for &(token, count) in counts {
            seen.accept(token, count, 1.0);
        }
        // A sampler cannot be told counts, so the penalties are taken off before it.
        let (penalised, _) = penalise(logits, &params, &seen).unwrap();
        let found = Sampler::new(params.clone())
            .unwrap()
            .distribution(&penalised)
            .unwrap();
        assert!(
            same(&found, expected, 1e-6),
            "{params:?}, counts {counts:?}: {found:?}, not {expected:?}"
        );
    }
}

/// `generate`'s loop with a dictionary in f64, over a vocabulary of bytes: every penalised logit agrees at each token.
#[test]
fn generate_loop() {
    let params = SamplerParams {
        seed: 3,
        logit_bias: vec![(b'e'.into(), NEVER)],
        ..SamplerParams::default()
    };
    let mut sampler = Sampler::new(params).unwrap();
    let mut occurrence = HashMap::<u32, f64>::new();
    for step in 0..600 {
        let mut logits: Vec<f32> = (0..256)
            .map(|token| 8.0 * uniform(1, step * 256 + token))
            .collect();
        // Digits and letters come often, so that counts grow with and without an amount.
        for byte in b"0123 abcde" {
            logits[usize::from(*byte)] += 5.0;
        }
        let mut out: Vec<f64> = logits.iter().map(|&logit| logit.into()).collect();
        out[usize::from(b'e')] = -f64::INFINITY;
        for (&n, count) in &occurrence {
            out[n as usize] -= 0.2 + count * 0.2;
        }
        let (penalised, _) = sampler.penalised(&logits).unwrap();
        for (token, (&found, &expected)) in penalised.iter().zip(&out).enumerate() {
            let agrees = (f64::from(found) - expected).abs() < 1e-5
                || (found == NEVER && expected == -f64::INFINITY);
            assert!(
                agrees,
                "step {step}, token {token}: {found}, not {expected}"
            );
        }

        let token = sampler.sample(&logits).unwrap();
        assert_ne!(token, u32::from(b'e'));
        let text = char::from_u32(token).unwrap().to_string();
        let counted = !" \t0123456789".contains(&text);
        sampler.accept(token, counted);
        for count in occurrence.values_mut() {
            *count *= 0.996;
        }
        *occurrence.entry(token).or_insert(0.0) += if counted { 1.0 } else { 0.0 };
    }
    assert_eq!(sampler.counts().len(), occurrence.len());
    assert!(
        sampler
            .counts()
            .iter()
            .any(|&(token, count)| token == u32::from(b'1') && count == 0.0)
    );
    assert!(
        sampler
            .counts()
            .iter()
            .any(|&(token, count)| token == u32::from(b'a') && count > 5.0)
    );
}
