//! Which token is drawn: frequencies, seeds, greedy, extreme logits and what cannot be sampled.

use super::{super::SamplerOrder, Sampler, SamplerParams, SamplingError, uniform};

const INF: f32 = f32::INFINITY;

/// No filters, no penalties.
fn open() -> SamplerParams {
    SamplerParams {
        top_p: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        ..SamplerParams::default()
    }
}

fn sampler(params: SamplerParams) -> Sampler {
    Sampler::new(params).unwrap()
}

/// `count` tokens, each accepted.
fn generate(sampler: &mut Sampler, logits: &[f32], count: usize) -> Vec<u32> {
    let one = |_| {
        let token = sampler.sample(logits).unwrap();
        sampler.accept(token, true);
        token
    };
    (0..count).map(one).collect()
}

/// Pearson's statistic of 50,000 draws stays below its 99.9th percentile, which for `k` degrees of freedom is less
/// than `k + 4.4 √k + 7`.
#[test]
fn frequencies_follow_the_distribution() {
    fn check(params: SamplerParams, logits: &[f32]) {
        let mut sampler = sampler(params);
        let distribution = sampler.distribution(logits).unwrap();
        let mut counts = vec![0_u32; logits.len()];
        for _ in 0..50_000 {
            counts[sampler.sample(logits).unwrap() as usize] += 1;
        }
        let mut statistic = 0.0;
        let mut drawn = 0;
        for &(token, p) in &distribution {
            let (count, expected) = (f64::from(counts[token as usize]), 50_000.0 * f64::from(p));
            statistic += (count - expected).powi(2) / expected;
            drawn += counts[token as usize];
        }
        assert_eq!(drawn, 50_000, "a token outside the distribution was drawn");
        let degrees = distribution.len() as f64 - 1.0;
        assert!(
            statistic <= degrees + 4.4 * degrees.sqrt() + 7.0,
            "{statistic} for {degrees} degrees of freedom"
        );
    }
    let logits = [0.5, 2.0, -1.0, 1.0, 1.0, -INF, 0.0, 2.5];
    let wide: Vec<f32> = (0..40).map(|token| 3.0 * uniform(9, token)).collect();
    for seed in [0, 1, u64::MAX] {
        check(SamplerParams { seed, ..open() }, &logits);
        check(SamplerParams { seed, ..open() }, &wide);
        check(
            SamplerParams {
                seed,
                temperature: 1.7,
                ..SamplerParams::default()
            },
            &wide,
        );
        let order = SamplerOrder::TemperatureFirst;
        check(
            SamplerParams {
                seed,
                temperature: 0.6,
                top_k: 20,
                top_p: 0.9,
                min_p: 0.05,
                order,
                ..open()
            },
            &wide,
        );
    }
}

/// The definition of a draw, with binary fractions so that every sum is exact.
#[test]
fn first_running_sum_above_u() {
    let params = SamplerParams { seed: 17, ..open() };
    let mut sampler = sampler(params);
    for step in 0..2_000 {
        let expected = (uniform(17, step) * 4.0).floor();
        let token = sampler.sample(&[1.0, -INF, 1.0, 1.0, -INF, 1.0]).unwrap();
        assert_eq!(
            token,
            [0, 2, 3, 5][format!("{expected}").parse::<usize>().unwrap()],
            "step {step}"
        );
    }
}

#[test]
fn greedy_takes_the_first_of_the_largest() {
    #[track_caller]
    fn check(logits: &[f32], token: u32) {
        for order in [SamplerOrder::Reference, SamplerOrder::TemperatureFirst] {
            for top_p in [0.0, 0.85, 1.0] {
                let params = SamplerParams {
                    temperature: 0.0,
                    top_p,
                    top_k: 3,
                    min_p: 0.1,
                    order,
                    ..open()
                };
                let mut sampler = sampler(params);
                assert_eq!(sampler.distribution(logits).unwrap(), [(token, 1.0)]);
                assert_eq!(generate(&mut sampler, logits, 5), [token; 5]);
                assert_eq!(sampler.step(), 5);
            }
        }
    }
    check(&[1.0, 3.0, 2.0, 3.0], 1);
    check(&[-0.0, 0.0], 0);
    check(&[0.0, -0.0], 0);
    check(&[-INF, f32::MIN, -INF], 1);
    let mut wide = vec![0.0; 1000];
    (wide[997], wide[998]) = (1.0, 1.0);
    check(&wide, 997);

    // Penalties count: each token in turn.
    let params = SamplerParams {
        temperature: 0.0,
        presence_penalty: 10.0,
        ..SamplerParams::default()
    };
    assert_eq!(
        generate(&mut sampler(params), &[3.0, 2.0, 4.0], 3),
        [2, 0, 1]
    );
}

#[test]
fn seeds_and_replay() {
    let logits: Vec<f32> = (0..500).map(|token| 4.0 * uniform(5, token)).collect();
    let params = |seed| SamplerParams {
        seed,
        ..SamplerParams::default()
    };
    let mut first = sampler(params(1));
    let start = generate(&mut first, &logits, 50);
    let mut copy = first.clone();
    let rest = generate(&mut first, &logits, 50);
    assert_eq!(generate(&mut copy, &logits, 50), rest);
    assert_eq!(generate(&mut sampler(params(1)), &logits, 50), start);
    assert_ne!(generate(&mut sampler(params(2)), &logits, 50), start);
    assert_ne!(generate(&mut sampler(params(1 << 32)), &logits, 50), start);
    first.reset();
    assert_eq!(first.counts(), []);
    assert_eq!(generate(&mut first, &logits, 50), start);
}

#[test]
fn extreme_logits() {
    #[track_caller]
    fn check(change: fn(&mut SamplerParams), logits: &[f32], expected: &[(u32, f32)]) {
        for order in [SamplerOrder::Reference, SamplerOrder::TemperatureFirst] {
            let mut params = SamplerParams { order, ..open() };
            change(&mut params);
            let mut sampler = sampler(params);
            assert_eq!(sampler.distribution(logits).unwrap(), expected);
            for token in generate(&mut sampler, logits, 20) {
                assert!(
                    expected.iter().any(|&(possible, _)| possible == token),
                    "token {token}"
                );
            }
        }
    }
    check(|_| (), &[1e30, -1e30, 1e30, -INF], &[(0, 0.5), (2, 0.5)]);
    check(|_| (), &[f32::MAX, f32::MIN, -INF], &[(0, 1.0)]);
    check(|_| (), &[f32::MIN, f32::MIN, -INF], &[(0, 0.5), (1, 0.5)]);
    check(
        |p| p.temperature = f32::MAX,
        &[1.0, -INF, 2.0],
        &[(0, 0.5), (2, 0.5)],
    );
    check(
        |p| p.temperature = f32::from_bits(1),
        &[2.0, 1.0, 2.0],
        &[(0, 0.5), (2, 0.5)],
    );
    check(|p| p.top_k = 1, &[-0.0, 0.0, -0.0], &[(0, 1.0)]);
    check(
        |p| p.top_k = 2,
        &[0.0, -0.0, 0.0, 0.0],
        &[(0, 0.5), (1, 0.5)],
    );
    // The largest is found to be −0 here, and −0 − 0 is −0.
    let mut zeros = [-0.0; 10];
    zeros[8] = 0.0;
    check(
        |p| p.top_k = 9,
        &zeros,
        &[0, 1, 2, 3, 4, 5, 6, 7, 8].map(|token| (token, 1.0 / 9.0)),
    );
    check(|p| p.top_p = 0.0, &[1.0, 2.0, 2.0], &[(1, 0.5), (2, 0.5)]);
    check(
        |p| p.min_p = 1.0,
        &[-1e30, 0.0, 0.0, -INF],
        &[(1, 0.5), (2, 0.5)],
    );
    check(|p| p.logit_bias = vec![(0, -INF)], &[5.0, 1.0], &[(1, 1.0)]);
    check(
        |p| p.logit_bias = vec![(0, f32::MAX)],
        &[f32::MAX, f32::MAX],
        &[(0, 0.5), (1, 0.5)],
    );
    // One token, whatever is asked.
    check(|_| (), &[0.0], &[(0, 1.0)]);
    check(
        |p| (p.top_p, p.top_k, p.min_p) = (0.0, 1, 1.0),
        &[f32::MIN],
        &[(0, 1.0)],
    );
    check(
        |p| (p.presence_penalty, p.frequency_penalty) = (f32::MAX, f32::MAX),
        &[-3.0],
        &[(0, 1.0)],
    );
}

#[test]
fn errors() {
    #[track_caller]
    fn check(bias: &[(u32, f32)], logits: &[f32], message: &str) {
        for temperature in [0.0, 1.0] {
            let params = SamplerParams {
                temperature,
                logit_bias: bias.to_vec(),
                ..SamplerParams::default()
            };
            let mut sampler = sampler(params);
            assert_eq!(sampler.sample(logits).unwrap_err().to_string(), message);
            assert_eq!(
                sampler.distribution(logits).unwrap_err().to_string(),
                message
            );
            assert_eq!(sampler.step(), 0);
        }
    }
    check(
        &[],
        &[],
        "cannot choose a token from 0 logits: pass one logit for each token of the vocabulary",
    );
    let broken = "the model's output is broken, check its weights and data types";
    check(
        &[],
        &[0.0, f32::NAN, INF],
        &format!("the logit of token 1 is NaN: {broken}"),
    );
    check(
        &[],
        &[0.0, -f32::NAN],
        &format!("the logit of token 1 is NaN: {broken}"),
    );
    check(
        &[],
        &[0.0, 1.0, INF],
        &format!("the logit of token 2 is inf: {broken}"),
    );
    let none = "tokens is ruled out (-inf): ban fewer tokens with logit_bias";
    check(&[], &[-INF; 3], &format!("every one of the 3 {none}"));
    check(
        &[(1, -INF)],
        &[-INF, 3.0],
        &format!("every one of the 2 {none}"),
    );
    check(
        &[(2, 1.0)],
        &[0.0, 0.0],
        "logit_bias names token 2, but the model has 2 tokens: use ids below that",
    );
    let negative = SamplerParams {
        temperature: -1.0,
        ..SamplerParams::default()
    };
    assert!(matches!(
        Sampler::new(negative),
        Err(SamplingError::Parameter {
            name: "temperature",
            ..
        })
    ));
}
