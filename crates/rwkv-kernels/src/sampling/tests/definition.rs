//! Random parameters and logits against full sorts in f64.

use super::{super::SamplerOrder, Sampler, SamplerParams, same, uniform};
use proptest::{prelude::*, sample::select};
use std::collections::BTreeMap;

/// The parameters, logits and accepted tokens of a case.
#[derive(Clone, Debug)]
struct Case {
    params: SamplerParams,
    logits: Vec<f32>,
    accepted: Vec<(u32, bool)>,
}

/// What the definitions say.
struct Expected {
    distribution: Vec<(u32, f64)>,
    /// A sum or ratio is so close to a threshold that f32's rounding may decide.
    ambiguous: bool,
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 2e-6 * b.abs().max(1e-12)
}

/// Leaves the probabilities that are above 0 and makes them sum to 1.
fn normalise(probabilities: &mut [f64]) {
    let total: f64 = probabilities.iter().sum();
    for p in probabilities {
        *p /= total;
    }
}

/// Token ids from the most to the least probable, the lower id first in a tie. Ranked by the logits, as probabilities
/// that underflow would be equal.
fn ranking(logits: &[f64]) -> Vec<usize> {
    let mut ids: Vec<usize> = (0..logits.len()).collect();
    ids.sort_by(|&a, &b| logits[b].partial_cmp(&logits[a]).unwrap().then(a.cmp(&b)));
    ids
}

impl Case {
    fn penalised(&self) -> Vec<f64> {
        let params = &self.params;
        let mut logits: Vec<f64> = self.logits.iter().map(|&logit| logit.into()).collect();
        for &(token, bias) in &params.logit_bias {
            logits[token as usize] += f64::from(bias);
        }
        let mut counts = BTreeMap::<u32, f64>::new();
        for &(token, counted) in &self.accepted {
            for count in counts.values_mut() {
                *count *= f64::from(params.penalty_decay);
            }
            *counts.entry(token).or_default() += f64::from(u8::from(counted));
        }
        for (token, count) in counts {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit -= f64::from(params.presence_penalty)
                    + count * f64::from(params.frequency_penalty);
            }
        }
        logits
    }

    fn expected(&self) -> Expected {
        let params = &self.params;
        let temperature = f64::from(params.temperature);
        let logits = self.penalised();
        let ranking = ranking(&logits);
        if params.temperature == 0.0 {
            let first = u32::try_from(ranking[0]).unwrap();
            return Expected {
                distribution: vec![(first, 1.0)],
                ambiguous: false,
            };
        }
        let divisor = if params.order == SamplerOrder::Reference {
            1.0
        } else {
            temperature
        };
        let max = logits[ranking[0]];
        let mut p: Vec<f64> = logits
            .iter()
            .map(|logit| ((logit - max) / divisor).exp())
            .collect();
        normalise(&mut p);
        let mut ambiguous = false;

        let top_k = |p: &mut [f64]| {
            if params.top_k > 0 {
                ranking
                    .iter()
                    .skip(params.top_k as usize)
                    .for_each(|&id| p[id] = 0.0);
            }
        };
        if params.order == SamplerOrder::TemperatureFirst {
            top_k(&mut p);
            normalise(&mut p);
        }
        if params.top_p < 1.0 {
            let mut cumulative = 0.0;
            let mut cutoff = 0.0;
            for &id in &ranking {
                cumulative += p[id];
                ambiguous |= close(cumulative, params.top_p.into());
                if cumulative >= f64::from(params.top_p) {
                    cutoff = p[id];
                    break;
                }
            }
            p.iter_mut().filter(|p| **p < cutoff).for_each(|p| *p = 0.0);
        }
        if params.order == SamplerOrder::Reference {
            top_k(&mut p);
        }
        let threshold = f64::from(params.min_p) * p[ranking[0]];
        ambiguous |= p.iter().any(|&p| p > 0.0 && close(p, threshold));
        p.iter_mut()
            .filter(|p| **p < threshold)
            .for_each(|p| *p = 0.0);
        if params.order == SamplerOrder::Reference {
            // p^(1/T) of p divided by the largest p, so that a low temperature does not make all of them underflow.
            let largest = p[ranking[0]];
            p.iter_mut()
                .filter(|p| **p > 0.0)
                .for_each(|p| *p = (*p / largest).powf(1.0 / temperature));
        }
        normalise(&mut p);
        let distribution = (0..).zip(p).filter(|(_, p)| *p > 1e-30).collect();
        Expected {
            distribution,
            ambiguous,
        }
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let mut sampler = Sampler::new(self.params.clone()).unwrap();
        for &(token, counted) in &self.accepted {
            sampler.accept(token, counted);
        }
        let mut found = sampler.distribution(&self.logits).unwrap();
        let total: f64 = found.iter().map(|&(_, p)| f64::from(p)).sum();
        prop_assert!((total - 1.0).abs() < 1e-5, "probabilities sum to {total}");
        let token = sampler.sample(&self.logits).unwrap();
        prop_assert!(
            found
                .iter()
                .any(|&(possible, p)| possible == token && p > 0.0)
        );

        found.retain(|&(_, p)| p > 1e-30);
        let expected = self.expected();
        prop_assert!(
            // f32 gaps up to 40 are off by 2e-6, so are their exponentials, and a low temperature multiplies that.
            same(
                &found,
                &expected.distribution,
                1e-5 / f64::from(self.params.temperature.clamp(0.1, 1.0))
            ) || expected.ambiguous,
            "found {found:?}, expected {:?}",
            expected.distribution
        );
        Ok(())
    }
}

/// Multiples of 1/8, so that ties are frequent and penalties are exact.
fn eighths(range: std::ops::Range<i16>) -> impl Strategy<Value = f32> {
    range.prop_map(|eighths| f32::from(eighths) / 8.0)
}

prop_compose! {
    fn params(vocabulary: u32)(
        temperature in prop_oneof![Just(0.0), Just(1.0), 0.05_f32..4.0],
        top_k in prop_oneof![Just(0), 1..vocabulary + 3],
        top_p in prop_oneof![Just(0.0), Just(0.85), Just(1.0), 0.0_f32..1.0, 0.99_f32..1.0],
        min_p in prop_oneof![Just(0.0), Just(1.0), 0.0_f32..1.0, 0.0_f32..0.01],
        presence_penalty in eighths(-8..16),
        frequency_penalty in eighths(-8..16),
        penalty_decay in select(vec![0.0_f32, 0.5, 1.0]),
        bias in prop::collection::btree_map(0..vocabulary, eighths(-16..16), 0..4),
        seed in any::<u64>(),
        reference in any::<bool>(),
    ) -> SamplerParams {
        SamplerParams {
            temperature, top_k, top_p, min_p, presence_penalty, frequency_penalty, penalty_decay,
            logit_bias: bias.into_iter().collect(),
            seed,
            order: if reference { SamplerOrder::Reference } else { SamplerOrder::TemperatureFirst },
        }
    }
}

fn case(logit: impl Strategy<Value = f32> + Clone + 'static) -> impl Strategy<Value = Case> {
    prop_oneof![1_u32..12, 12_u32..300].prop_flat_map(move |vocabulary| {
        let logits = prop::collection::vec(logit.clone(), vocabulary as usize);
        let accepted = prop::collection::vec((0..vocabulary + 2, any::<bool>()), 0..8);
        (params(vocabulary), logits, accepted).prop_map(|(params, mut logits, accepted)| {
            // One token can come, whatever the others are.
            logits[0] = logits[0].max(-30.0);
            Case {
                params,
                logits,
                accepted,
            }
        })
    })
}

fn tied() -> BoxedStrategy<f32> {
    prop_oneof![8 => eighths(-40..40), 1 => Just(f32::NEG_INFINITY), 1 => Just(0.0), 1 => Just(-0.0)].boxed()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn ties(case in case(tied())) {
        case.check()?;
    }

    #[test]
    fn few_values(case in case(select(vec![1.0_f32, 1.5, 2.0, -3.0]).boxed())) {
        case.check()?;
    }

    #[test]
    fn any_values(case in case((-20.0_f32..20.0).boxed())) {
        case.check()?;
    }
}

/// A whole vocabulary, from equal logits to a few that matter, where the selection must pass over most tokens.
#[test]
fn whole_vocabulary() {
    for (row, scale) in (0..).zip([0.0_f32, 1.0, 8.0, 40.0]) {
        let logits: Vec<f32> = (0..65_536)
            .map(|token| scale * uniform(row, token))
            .collect();
        for (temperature, top_p, top_k, min_p) in [
            (1.0, 0.85, 0, 0.0),
            (0.7, 0.5, 1000, 0.0),
            (1.5, 0.999, 0, 0.03),
            (1.2, 1.0, 300, 0.0),
        ] {
            for order in [SamplerOrder::Reference, SamplerOrder::TemperatureFirst] {
                let params = SamplerParams {
                    temperature,
                    top_k,
                    top_p,
                    min_p,
                    order,
                    ..SamplerParams::default()
                };
                let accepted = vec![(3, true), (65_535, true), (70_000, true)];
                Case {
                    params,
                    logits: logits.clone(),
                    accepted,
                }
                .check()
                .unwrap();
            }
        }
    }
}
