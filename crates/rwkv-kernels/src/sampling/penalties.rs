//! What was said before, and the logits after biases and penalties.

use super::{SamplerParams, SamplingError};

/// The tokens that were accepted, with their decayed counts.
///
/// A token stays for ever, even when its count has decayed to nothing or was never raised: the presence penalty
/// applies to it all the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Occurrences {
    /// In the order of the tokens, each once.
    counts: Vec<(u32, f32)>,
}

impl Occurrences {
    /// Decays every count, then adds `amount` to the token's.
    pub(super) fn accept(&mut self, token: u32, amount: f32, decay: f32) {
        for (_, count) in &mut self.counts {
            *count *= decay;
            // A GPU flushes subnormal numbers, and on a CPU they are slow.
            if *count < f32::MIN_POSITIVE {
                *count = 0.0;
            }
        }
        match self.counts.binary_search_by_key(&token, |&(seen, _)| seen) {
            Ok(at) => {
                if let Some((_, count)) = self.counts.get_mut(at) {
                    *count += amount;
                }
            }
            Err(at) => self.counts.insert(at, (token, amount)),
        }
    }

    /// Every token that was accepted and its count, by ascending token.
    pub(super) fn counts(&self) -> &[(u32, f32)] {
        &self.counts
    }
}

/// A copy of the logits with biases added and penalties taken off, and its largest value.
///
/// Tokens outside the vocabulary that were accepted (a prompt's, say) have no logit and change nothing.
///
/// # Errors
///
/// For an empty slice, NaN or `+inf` in it, a bias outside the vocabulary, and when no token is left.
pub(super) fn penalise(
    logits: &[f32],
    params: &SamplerParams,
    seen: &Occurrences,
) -> Result<(Vec<f32>, f32), SamplingError> {
    let vocabulary = logits.len();
    if vocabulary == 0 || u32::try_from(vocabulary).is_err() {
        return Err(SamplingError::VocabularySize(vocabulary));
    }
    // `x < inf` is false for NaN too; counting vectorises, an early exit does not.
    if logits
        .iter()
        .filter(|logit| **logit < f32::INFINITY)
        .count()
        < vocabulary
    {
        let broken = (0..)
            .zip(logits)
            .find(|(_, logit)| logit.is_nan() || **logit == f32::INFINITY);
        let (token, &logit) = broken.unwrap_or((0, &f32::NAN));
        return Err(SamplingError::Logit { token, logit });
    }

    let mut adjusted = logits.to_vec();
    for &(token, bias) in &params.logit_bias {
        let Some(logit) = adjusted.get_mut(token as usize) else {
            return Err(SamplingError::BiasOutsideVocabulary { token, vocabulary });
        };
        *logit = if bias == f32::NEG_INFINITY {
            bias
        } else {
            shift(*logit, bias)
        };
    }
    for &(token, count) in seen.counts() {
        if let Some(logit) = adjusted.get_mut(token as usize) {
            *logit = shift(
                *logit,
                -(params.presence_penalty + count * params.frequency_penalty),
            );
        }
    }
    let max = largest(&adjusted);
    if max == f32::NEG_INFINITY {
        Err(SamplingError::NothingPossible(vocabulary))
    } else {
        Ok((adjusted, max))
    }
}

/// `logit + by`; what is finite stays finite and `-inf` stays `-inf`, so that no later difference is NaN.
fn shift(logit: f32, by: f32) -> f32 {
    if logit == f32::NEG_INFINITY {
        logit
    } else {
        (logit + by).clamp(f32::MIN, f32::MAX)
    }
}

/// The maximum of numbers that are not NaN, in eight lanes because one chain of comparisons does not vectorise.
fn largest(values: &[f32]) -> f32 {
    let (eights, rest) = values.as_chunks::<8>();
    let mut lanes = [f32::NEG_INFINITY; 8];
    for eight in eights {
        for (lane, &value) in lanes.iter_mut().zip(eight) {
            *lane = if value > *lane { value } else { *lane };
        }
    }
    lanes
        .iter()
        .chain(rest)
        .copied()
        .fold(f32::NEG_INFINITY, f32::max)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn counts_decay_and_tokens_stay() {
        let mut seen = Occurrences::default();
        for (token, amount) in [(9, 1.0), (4, 0.0), (9, 1.0), (u32::MAX, 1.0)] {
            seen.accept(token, amount, 0.5);
        }
        assert_eq!(seen.counts(), [(4, 0.0), (9, 0.625), (u32::MAX, 1.0)]);
        for _ in 0..300 {
            seen.accept(4, 0.0, 0.5);
        }
        assert_eq!(seen.counts(), [(4, 0.0), (9, 0.0), (u32::MAX, 0.0)]);
    }

    #[test]
    fn adjusted_logits() {
        const INF: f32 = f32::INFINITY;
        #[track_caller]
        fn check(
            logits: &[f32],
            bias: &[(u32, f32)],
            (presence, frequency): (f32, f32),
            expected: &[f32],
        ) {
            let params = SamplerParams {
                presence_penalty: presence,
                frequency_penalty: frequency,
                logit_bias: bias.to_vec(),
                ..SamplerParams::default()
            };
            // Token 1 twice, token 2 without a count, and one that no vocabulary here has.
            let mut seen = Occurrences::default();
            for (token, amount) in [(1, 1.0), (1, 1.0), (2, 0.0), (100, 1.0)] {
                seen.accept(token, amount, 1.0);
            }
            let (adjusted, max) = penalise(logits, &params, &seen).unwrap();
            assert_eq!(adjusted, expected);
            assert!(adjusted.contains(&max) && adjusted.iter().all(|&x| x <= max));
        }
        check(
            &[1.0, 2.0, 3.0, 4.0],
            &[],
            (0.0, 0.0),
            &[1.0, 2.0, 3.0, 4.0],
        );
        check(
            &[1.0, 2.0, 3.0, 4.0],
            &[],
            (0.5, 2.0),
            &[1.0, -2.5, 2.5, 4.0],
        );
        check(
            &[1.0, 2.0, 3.0, 4.0],
            &[(3, -INF), (1, 10.0)],
            (0.5, -2.0),
            &[1.0, 15.5, 2.5, -INF],
        );
        check(
            &[1.0, -INF, 3.0],
            &[(1, 5.0)],
            (f32::MIN, f32::MIN),
            &[1.0, -INF, f32::MAX],
        );
        check(
            &[f32::MAX, f32::MIN, f32::MIN],
            &[(0, f32::MAX)],
            (f32::MAX, f32::MAX),
            &[f32::MAX, f32::MIN, f32::MIN],
        );
        check(&[1.0], &[], (0.5, 2.0), &[1.0]);
    }
}
