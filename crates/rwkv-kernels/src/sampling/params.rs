//! What a caller can ask of the sampler, and which values make sense.

use super::SamplingError;
use std::{fmt, str::FromStr};

/// Where the temperature comes among the filters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SamplerOrder {
    /// `reference`: top-p, top-k, min-p, then the temperature, as the reference package `rwkv` does. The temperature
    /// does not change which tokens can come.
    #[default]
    Reference,
    /// `temperature-first`: the temperature, then top-k, top-p (of the probabilities renormalised after top-k) and
    /// min-p, as most other engines do. A higher temperature lets more tokens through top-p and min-p.
    TemperatureFirst,
}

const ORDERS: [(&str, SamplerOrder); 2] = [
    ("reference", SamplerOrder::Reference),
    ("temperature-first", SamplerOrder::TemperatureFirst),
];

impl fmt::Display for SamplerOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Reference => "reference",
            Self::TemperatureFirst => "temperature-first",
        })
    }
}

impl FromStr for SamplerOrder {
    type Err = SamplingError;

    /// Parses the names that `Display` writes.
    fn from_str(name: &str) -> Result<Self, SamplingError> {
        let known = ORDERS.iter().find(|(known, _)| *known == name);
        known
            .map(|&(_, order)| order)
            .ok_or_else(|| SamplingError::UnknownOrder(name.to_owned()))
    }
}

/// How to choose a token. The default is the reference package's.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplerParams {
    /// Flattens (above 1) or sharpens (below 1) the distribution; 0 takes the most probable token (ties: the lower
    /// id), whatever the filters say.
    pub temperature: f32,
    /// Keep this many of the most probable tokens (ties: the lower id); 0 keeps all.
    pub top_k: u32,
    /// Keep the most probable tokens that together reach this probability, and those as probable as the last of
    /// them; 1 keeps all, 0 keeps the most probable and its ties.
    pub top_p: f32,
    /// Keep tokens at least this fraction as probable as the most probable one; 0 keeps all.
    pub min_p: f32,
    /// Taken off the logit of every token that was accepted before.
    pub presence_penalty: f32,
    /// Taken off the logit of a token times its (decayed) count.
    pub frequency_penalty: f32,
    /// What every count is multiplied by when a token is accepted; 1 never forgets.
    pub penalty_decay: f32,
    /// Added to the logits of these tokens, before the penalties; `-inf` bans a token.
    pub logit_bias: Vec<(u32, f32)>,
    /// Equal seeds (and logits) give equal tokens.
    pub seed: u64,
    /// Where the temperature comes.
    pub order: SamplerOrder,
}

impl Default for SamplerParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 0.85,
            min_p: 0.0,
            presence_penalty: 0.2,
            frequency_penalty: 0.2,
            penalty_decay: 0.996,
            logit_bias: Vec::new(),
            seed: 0,
            order: SamplerOrder::Reference,
        }
    }
}

impl SamplerParams {
    /// Checks every field.
    ///
    /// # Errors
    ///
    /// [`SamplingError::Parameter`], [`SamplingError::Bias`] or [`SamplingError::RepeatedBias`] for the first field
    /// that cannot be used.
    pub fn validate(&self) -> Result<(), SamplingError> {
        let share = "from 0 to 1";
        let finite = "a finite number";
        for (name, value, allowed, expected) in [
            (
                "temperature",
                self.temperature,
                0.0..=f32::MAX,
                "0 (greedy) or a positive finite number",
            ),
            ("top_p", self.top_p, 0.0..=1.0, share),
            ("min_p", self.min_p, 0.0..=1.0, share),
            (
                "presence_penalty",
                self.presence_penalty,
                f32::MIN..=f32::MAX,
                finite,
            ),
            (
                "frequency_penalty",
                self.frequency_penalty,
                f32::MIN..=f32::MAX,
                finite,
            ),
            ("penalty_decay", self.penalty_decay, 0.0..=1.0, share),
        ] {
            // NaN is in no range.
            if !allowed.contains(&value) {
                return Err(SamplingError::Parameter {
                    name,
                    value,
                    expected,
                });
            }
        }
        if let Some(&(token, bias)) = self
            .logit_bias
            .iter()
            .find(|(_, bias)| bias.is_nan() || *bias == f32::INFINITY)
        {
            return Err(SamplingError::Bias { token, bias });
        }
        let mut tokens: Vec<u32> = self.logit_bias.iter().map(|&(token, _)| token).collect();
        tokens.sort_unstable();
        match tokens.array_windows().find(|[a, b]| a == b) {
            Some(&[token, _]) => Err(SamplingError::RepeatedBias { token }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn order_names_round_trip() {
        for (name, order) in ORDERS {
            assert_eq!(order.to_string(), name);
            assert_eq!(name.parse::<SamplerOrder>().unwrap(), order);
        }
        let error = "Reference".parse::<SamplerOrder>().unwrap_err().to_string();
        assert_eq!(
            error,
            r#"sampler order "Reference" is not known: use "reference" or "temperature-first""#
        );
    }

    #[test]
    fn validation() {
        fn check(change: fn(&mut SamplerParams), message: &str) {
            let mut params = SamplerParams::default();
            change(&mut params);
            let found = params
                .validate()
                .err()
                .map(|error| error.to_string())
                .unwrap_or_default();
            assert_eq!(found, message);
        }
        const INF: f32 = f32::INFINITY;
        check(|_| (), "");
        check(|p| p.temperature = 0.0, "");
        check(|p| p.temperature = -0.0, "");
        check(|p| p.temperature = f32::MAX, "");
        let temperature = "it must be 0 (greedy) or a positive finite number";
        check(
            |p| p.temperature = -1.0,
            &format!("sampling parameter temperature is -1: {temperature}"),
        );
        check(
            |p| p.temperature = INF,
            &format!("sampling parameter temperature is inf: {temperature}"),
        );
        check(
            |p| p.temperature = f32::NAN,
            &format!("sampling parameter temperature is NaN: {temperature}"),
        );
        check(
            |p| (p.top_p, p.min_p, p.penalty_decay) = (0.0, 0.0, 0.0),
            "",
        );
        check(
            |p| (p.top_p, p.min_p, p.penalty_decay) = (1.0, 1.0, 1.0),
            "",
        );
        check(
            |p| p.top_p = 1.5,
            "sampling parameter top_p is 1.5: it must be from 0 to 1",
        );
        check(
            |p| p.top_p = f32::NAN,
            "sampling parameter top_p is NaN: it must be from 0 to 1",
        );
        check(
            |p| p.min_p = -0.5,
            "sampling parameter min_p is -0.5: it must be from 0 to 1",
        );
        check(
            |p| p.penalty_decay = 1.25,
            "sampling parameter penalty_decay is 1.25: it must be from 0 to 1",
        );
        check(
            |p| (p.presence_penalty, p.frequency_penalty) = (-2.0, f32::MIN),
            "",
        );
        check(
            |p| p.presence_penalty = -INF,
            "sampling parameter presence_penalty is -inf: it must be a finite number",
        );
        check(
            |p| p.frequency_penalty = INF,
            "sampling parameter frequency_penalty is inf: it must be a finite number",
        );
        check(|p| (p.top_k, p.seed) = (u32::MAX, u64::MAX), "");
        check(
            |p| p.logit_bias = vec![(7, 1.0), (u32::MAX, -INF), (0, -3.0)],
            "",
        );
        let bias = "give a finite number, or -inf to ban the token";
        check(
            |p| p.logit_bias = vec![(7, 1.0), (9, INF)],
            &format!("logit_bias of token 9 is inf: {bias}"),
        );
        check(
            |p| p.logit_bias = vec![(7, f32::NAN)],
            &format!("logit_bias of token 7 is NaN: {bias}"),
        );
        let repeated = "logit_bias names token 7 more than once: give each token one bias";
        check(
            |p| p.logit_bias = vec![(7, 1.0), (2, 0.0), (7, 1.0)],
            repeated,
        );
    }
}
