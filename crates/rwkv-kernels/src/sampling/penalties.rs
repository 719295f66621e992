//! What was said before, and the logits after biases and penalties.

use super::{SamplerParams, SamplingError};

/// The tokens that were accepted, with their decayed counts.
///
/// A token stays for ever, even when its count has decayed to nothing or was never raised: the presence penalty
/// applies to it all the same.
///
/// Accepting a token touches that token alone: a count is kept as it was when it last grew, and decays by a power when
/// it is read. A kernel can do the same without a pass over all tokens, and gets the same bits.
#[derive(Clone, Debug, Default)]
pub(super) struct Occurrences {
    /// In the order of the tokens, each once.
    seen: Vec<Seen>,
    /// How many tokens were accepted, modulo 2³².
    accepted: u32,
}

/// A token that was accepted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Seen {
    pub(super) token: u32,
    /// Its count when it was accepted last.
    pub(super) count: f32,
    /// [`Occurrences::accepted`] then, itself included.
    pub(super) at: u32,
}

impl Occurrences {
    /// Decays every count, then adds `amount` to the token's.
    pub(super) fn accept(&mut self, token: u32, amount: f32, decay: f32) {
        self.accepted = self.accepted.wrapping_add(1);
        let at = self.accepted;
        match self.seen.binary_search_by_key(&token, |seen| seen.token) {
            Ok(place) => {
                if let Some(seen) = self.seen.get_mut(place) {
                    seen.count = seen.decayed(at, decay) + amount;
                    seen.at = at;
                }
            }
            Err(place) => self.seen.insert(
                place,
                Seen {
                    token,
                    count: amount,
                    at,
                },
            ),
        }
    }

    /// Every token that was accepted and its count, by ascending token.
    pub(super) fn counts(&self, decay: f32) -> impl Iterator<Item = (u32, f32)> {
        let now = self.accepted;
        self.seen
            .iter()
            .map(move |seen| (seen.token, seen.decayed(now, decay)))
    }

    /// From tokens in any order; of one that is there twice, the first.
    pub(super) fn restored(mut seen: Vec<Seen>, accepted: u32) -> Self {
        seen.sort_by_key(|seen| seen.token);
        seen.dedup_by_key(|seen| seen.token);
        Self { seen, accepted }
    }

    /// What is kept, by ascending token.
    pub(super) fn seen(&self) -> &[Seen] {
        &self.seen
    }

    /// How many tokens were accepted, modulo 2³².
    pub(super) fn accepted(&self) -> u32 {
        self.accepted
    }
}

impl Seen {
    /// The count after all the tokens up to number `now`.
    fn decayed(&self, now: u32, decay: f32) -> f32 {
        flush(self.count * power(decay, now.wrapping_sub(self.at)))
    }
}

/// `base^n` by squaring, for a base from 0 to 1; the order of the products is that of the kernel. Squaring numbers near 1
/// would double their error each time: those are squared as what they lack to 1, 1 − (1 − c)² = c (2 − c).
fn power(base: f32, n: u32) -> f32 {
    let (mut result, mut square, mut lacks, mut rest) = (1.0, base, 1.0 - base, n);
    while rest > 0 {
        if rest & 1 == 1 {
            result = flush(result * square);
        }
        lacks = flush(lacks * (2.0 - lacks));
        square = if lacks < 0.5 {
            1.0 - lacks
        } else {
            flush(square * square)
        };
        rest >>= 1;
    }
    result
}

/// Subnormal numbers and −0 become 0. Some GPUs flush them, others do not, and on a CPU they are slow.
pub(super) fn flush(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { 0.0 } else { x }
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
    let whole = logits.iter().map(|x| u32::from(*x < f32::INFINITY));
    if (whole.sum::<u32>() as usize) < vocabulary {
        let broken = (0..)
            .zip(logits)
            .find(|(_, logit)| logit.is_nan() || **logit == f32::INFINITY);
        let (token, &logit) = broken.unwrap_or((0, &f32::NAN));
        return Err(SamplingError::Logit { token, logit });
    }

    let mut adjusted = logits.to_vec();
    for logit in &mut adjusted {
        *logit = flush(*logit);
    }
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
    for (token, count) in seen.counts(params.penalty_decay) {
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

/// `logit + by`, not subnormal; what is finite stays finite and `-inf` stays `-inf`, so that no later difference is NaN.
fn shift(logit: f32, by: f32) -> f32 {
    if logit == f32::NEG_INFINITY {
        logit
    } else {
        flush((logit + by).clamp(f32::MIN, f32::MAX))
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
        let counts = |seen: &Occurrences| seen.counts(0.5).collect::<Vec<_>>();
        let mut seen = Occurrences::default();
        for (token, amount) in [(9, 1.0), (4, 0.0), (9, 1.0), (u32::MAX, 1.0)] {
            seen.accept(token, amount, 0.5);
        }
        assert_eq!(counts(&seen), [(4, 0.0), (9, 0.625), (u32::MAX, 1.0)]);
        for _ in 0..300 {
            seen.accept(4, 0.0, 0.5);
        }
        assert_eq!(counts(&seen), [(4, 0.0), (9, 0.0), (u32::MAX, 0.0)]);
    }

    /// The powers are those of f64 but for rounding, and 0 once they would be subnormal.
    #[test]
    fn powers() {
        for base in [0.0, 0.25, 0.9, 0.996, 0.999_999, 1.0_f32] {
            for n in [0, 1, 2, 3, 7, 100, 1023, 65_537, u32::MAX] {
                let (found, exact) = (f64::from(power(base, n)), f64::from(base).powf(n.into()));
                let close = (found - exact).abs() <= 2e-7 * f64::from(n.max(1)) * exact;
                assert!(
                    close || exact < 2e-38 && found < 2e-38,
                    "{base}^{n}: {found}, not {exact}"
                );
                assert!(found == 0.0 || found >= f64::from(f32::MIN_POSITIVE));
            }
        }
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
                penalty_decay: 1.0,
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
