//! The sampler: one for each sequence, it chooses tokens and remembers what was said.

use super::{
    SamplerOrder, SamplerParams, SamplingError,
    penalties::{Occurrences, flush, penalise},
    random::uniform,
    ranking::{Place, inverse, min_p_gap, nucleus_gap, top_k, weight, within},
};

/// Chooses the tokens of one sequence.
///
/// A clone continues exactly as the original would, so a generation can be replayed from any point.
///
/// ```
/// use rwkv_kernels::sampling::{Sampler, SamplerParams};
///
/// let mut sampler = Sampler::new(SamplerParams { seed: 42, ..SamplerParams::default() })?;
/// let token = sampler.sample(&[0.5, 2.0, -1.0])?;
/// sampler.accept(token, true);
/// # Ok::<(), rwkv_kernels::sampling::SamplingError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Sampler {
    params: SamplerParams,
    seen: Occurrences,
    step: u64,
}

impl Sampler {
    /// A sampler that has seen nothing.
    ///
    /// # Errors
    ///
    /// Those of [`SamplerParams::validate`].
    pub fn new(params: SamplerParams) -> Result<Self, SamplingError> {
        params.validate()?;
        Ok(Self {
            params,
            seen: Occurrences::default(),
            step: 0,
        })
    }

    /// The parameters that it was made with.
    pub fn params(&self) -> &SamplerParams {
        &self.params
    }

    /// The number of tokens chosen so far, which picks the next random number.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Every token accepted so far with its decayed count, by ascending token.
    pub fn counts(&self) -> Vec<(u32, f32)> {
        self.seen.counts(self.params.penalty_decay).collect()
    }

    /// Draws number `step` next, with these tokens said.
    pub(super) fn continue_from(&mut self, step: u64, seen: Occurrences) {
        (self.step, self.seen) = (step, seen);
    }

    /// What was said, as it is kept.
    pub(super) fn seen(&self) -> &Occurrences {
        &self.seen
    }

    /// Forgets every token and starts the random numbers again.
    pub fn reset(&mut self) {
        self.seen = Occurrences::default();
        self.step = 0;
    }

    /// Chooses a token by its logits, one for each token of the vocabulary (`-inf`: cannot come).
    ///
    /// Each success takes one random number, also with temperature 0 where it is not used. The choice is not
    /// counted until [`accept`](Self::accept).
    ///
    /// # Errors
    ///
    /// When `logits` is empty or holds NaN or `+inf`, when a bias is for a token beyond them, or when every token is
    /// ruled out; the sampler is then as it was before.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32, SamplingError> {
        let kept = self.kept(logits)?;
        let token = pick(&kept, uniform(self.params.seed, self.step));
        self.step = self.step.wrapping_add(1);
        token.ok_or(SamplingError::NothingPossible(logits.len()))
    }

    /// Notes that a token now belongs to the text: all counts decay, then the token's count grows by 1.
    ///
    /// With `counted` false it grows by nothing, and only the presence penalty applies to the token. The reference
    /// package does that for tokens whose text is a part of `" \t0123456789"`, and accepts only tokens that it
    /// generated, not those of the prompt.
    pub fn accept(&mut self, token: u32, counted: bool) {
        self.seen.accept(
            token,
            if counted { 1.0 } else { 0.0 },
            self.params.penalty_decay,
        );
    }

    /// Notes a token that was chosen elsewhere with this sampler's next random number: what [`sample`](Self::sample) and
    /// [`accept`](Self::accept) would leave behind.
    pub fn drawn(&mut self, token: u32, counted: bool) {
        self.step = self.step.wrapping_add(1);
        self.accept(token, counted);
    }

    /// The tokens that [`sample`](Self::sample) could choose now, by ascending id, and their probabilities.
    ///
    /// # Errors
    ///
    /// As [`sample`](Self::sample).
    pub fn distribution(&self, logits: &[f32]) -> Result<Vec<(u32, f32)>, SamplingError> {
        let kept = self.kept(logits)?;
        let total = total(&kept);
        #[allow(
            clippy::cast_possible_truncation,
            reason = "a probability is rounded to f32"
        )]
        let share = |weight: f32| (f64::from(weight) / total) as f32;
        let possible = kept.into_iter().filter(|(_, weight)| *weight > 0.0);
        Ok(possible
            .map(|(token, weight)| (token, share(weight)))
            .collect())
    }

    /// The logits with biases and penalties, and the largest of them.
    pub(super) fn penalised(&self, logits: &[f32]) -> Result<(Vec<f32>, f32), SamplingError> {
        penalise(logits, &self.params, &self.seen)
    }

    /// The tokens that are left after all filters, by ascending id, with weights that are not normalised (and may be 0).
    fn kept(&self, logits: &[f32]) -> Result<Vec<(u32, f32)>, SamplingError> {
        let params = &self.params;
        let temperature = params.temperature;
        let (mut gaps, max) = self.penalised(logits)?;
        if temperature == 0.0 {
            let first = (0..).zip(&gaps).find(|(_, logit)| **logit >= max);
            return Ok(first.map(|(token, _)| (token, 1.0)).into_iter().collect());
        }
        for gap in &mut gaps {
            *gap = flush(max - *gap);
        }
        let widest = |gaps: &[f32], at: f32| {
            nucleus_gap(gaps, params.top_p, inverse(at)).min(min_p_gap(params.min_p, at))
        };
        let mut places;
        match params.order {
            SamplerOrder::Reference => {
                // Min-p does not depend on what top-k leaves, so it can go before.
                places = within(&gaps, widest(&gaps, 1.0));
                top_k(&mut places, params.top_k);
            }
            SamplerOrder::TemperatureFirst => {
                places = within(&gaps, f32::INFINITY);
                top_k(&mut places, params.top_k);
                let left: Vec<f32> = places.iter().map(|place| place.gap()).collect();
                let widest = widest(&left, temperature);
                places.retain(|place| place.gap() <= widest);
            }
        }
        let inverse = inverse(temperature);
        let weigh = |place: &Place| (place.token, weight(place.gap(), inverse));
        Ok(places.iter().map(weigh).collect())
    }
}

/// The first token whose running sum of weights exceeds the share `u` of the total; `None` when there are no tokens.
fn pick(kept: &[(u32, f32)], u: f32) -> Option<u32> {
    let threshold = f64::from(u) * total(kept);
    let mut running = 0.0;
    let picked = kept.iter().find(|(_, weight)| {
        running += f64::from(*weight);
        running > threshold
    });
    // u is at most 1 − 2⁻²⁴ and the sums are the same, so the last token is reached at the latest.
    picked.or(kept.last()).map(|&(token, _)| token)
}

fn total(kept: &[(u32, f32)]) -> f64 {
    kept.iter().map(|&(_, weight)| f64::from(weight)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pick_takes_the_first_running_sum_above() {
        let kept = [(3, 0.0), (4, 1.0), (7, 0.5), (8, 0.0), (9, 0.5)];
        for (u, token) in [
            (0.0, 4),
            (0.499_99, 4),
            (0.5, 7),
            (0.749_99, 7),
            (0.75, 9),
            (0.999_99, 9),
            (1.0_f32.next_down(), 9),
        ] {
            assert_eq!(pick(&kept, u), Some(token), "u {u}");
        }
        assert_eq!(pick(&[], 0.5), None);
    }
}
