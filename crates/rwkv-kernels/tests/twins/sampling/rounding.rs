//! When sums in another order may choose another token: a draw or a cut-off within 1e-5 of its boundary.

use rwkv_kernels::sampling::{Sampler, SamplerOrder, uniform};

/// The share of a total that rounding of its parts may amount to.
const ROUNDING: f64 = 1e-5;

/// Whether `token` is what a sampler with exact sums would choose, but for `ROUNDING`. Everything that is not a sum is
/// computed as defined, in f32.
pub(super) fn may_choose(sampler: &Sampler, logits: &[f32], token: u32) -> bool {
    let params = sampler.params();
    if params.temperature == 0.0 {
        return false;
    }
    let mut adjusted = logits.to_vec();
    for &(token, bias) in &params.logit_bias {
        adjusted[token as usize] += bias;
    }
    for (token, count) in sampler.counts() {
        if let Some(logit) = adjusted.get_mut(token as usize) {
            *logit += -(params.presence_penalty + count * params.frequency_penalty);
        }
    }
    let max = adjusted.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let gap = |id: usize| f64::from(max - adjusted[id]);
    let mut ranking: Vec<usize> = (0..adjusted.len()).collect();
    ranking.sort_by(|&a, &b| gap(a).total_cmp(&gap(b)).then(a.cmp(&b)));

    let temperature = f64::from(params.temperature);
    let temperature_first = params.order == SamplerOrder::TemperatureFirst;
    let filter = if temperature_first { temperature } else { 1.0 };
    let k = match params.top_k {
        0 => ranking.len(),
        k => ranking.len().min(k as usize),
    };
    let candidates = if temperature_first {
        &ranking[..k]
    } else {
        &ranking[..]
    };
    let weights = candidates.iter().map(|&id| (-gap(id) / filter).exp());
    let total: f64 = weights.clone().sum();
    let step = sampler.step();
    let u = f64::from(uniform(params.seed, step));
    [-ROUNDING, 0.0, ROUNDING].iter().any(|error| {
        let mut widest = f64::INFINITY;
        if params.top_p < 1.0 {
            let mut running = 0.0;
            for (weight, &id) in weights.clone().zip(candidates) {
                running += weight;
                if running >= (f64::from(params.top_p) + error) * total {
                    widest = gap(id);
                    break;
                }
            }
        }
        let min_p = f64::from(params.min_p).ln().abs() * filter;
        #[allow(
            clippy::cast_possible_truncation,
            reason = "as the definition rounds it"
        )]
        let widest = widest.min(f64::from(min_p as f32));
        let mut kept: Vec<usize> = ranking[..k].to_vec();
        kept.retain(|&id| gap(id) <= widest);
        kept.sort_unstable();
        let chance = |id: usize| (-gap(id) / temperature).exp();
        let total: f64 = kept.iter().map(|&id| chance(id)).sum();
        let mut running = 0.0;
        for &id in &kept {
            let before = running;
            running += chance(id);
            if id == token as usize {
                let near = (before - ROUNDING * total)..=(running + ROUNDING * total);
                return chance(id) > 0.0 && near.contains(&(u * total));
            }
        }
        false
    })
}
