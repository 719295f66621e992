//! What to make up.

use super::super::ExportError;
use crate::names::{GROUP_NORM_EPSILON, NORM_EPSILON};
use rwkv_sched::{ModelConfig, Version};
use std::{fmt, str::FromStr};

/// A model to make up: `VERSION:LAYERSxWIDTH[:KEY=VALUE,…]`, such as `v7:24x2048` or `v6:12x768:vocab=1000,seed=7`.
///
/// Versions are `v4`, `v5.0`, `v5.1`, `v5.2` (or `v5`), `v6`, `v7` and `v7a`. Keys are `vocab` (65536), `head` (64; version 4 has none), `ffn`
/// (as the published models of the version: 3.5 widths, rounded down to 32, in versions 5 and 6, else 4 widths),
/// `zeros` (0.5: the share of activations in the channel mix that are zero) and `seed` (0).
#[derive(Clone, Debug, PartialEq)]
pub struct SyntheticSpec {
    pub(super) config: ModelConfig,
    pub(super) zeros: f64,
    pub(super) seed: u64,
}

const VERSIONS: [(&str, Version); 8] = [
    ("v4", Version::V4),
    ("v5.0", Version::V5_0),
    ("v5.1", Version::V5_1),
    ("v5.2", Version::V5_2),
    ("v5", Version::V5_2),
    ("v6", Version::V6),
    ("v7", Version::V7),
    ("v7a", Version::V7a),
];

/// Far above every model, so that no product of two overflows.
const MOST: usize = 1 << 20;

impl SyntheticSpec {
    /// The model's dimensions.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The share of activations in the channel mix that are zero.
    pub fn zeros(&self) -> f64 {
        self.zeros
    }
}

impl FromStr for SyntheticSpec {
    type Err = ExportError;

    fn from_str(text: &str) -> Result<Self, ExportError> {
        let wrong = |problem: String| ExportError::Spec {
            text: text.to_owned(),
            problem,
        };
        let mut parts = text.splitn(3, ':');
        let name = parts.next().unwrap_or_default();
        let version = VERSIONS.iter().find(|(known, _)| *known == name);
        let (_, version) = version.ok_or_else(|| {
            let names: Vec<_> = VERSIONS.iter().map(|(name, _)| *name).collect();
            wrong(format!(
                "it begins with a version, one of {}",
                names.join(", ")
            ))
        })?;
        let number = |digits: &str| {
            digits
                .parse::<usize>()
                .ok()
                .filter(|n| (1..=MOST).contains(n) && digits.bytes().all(|b| b.is_ascii_digit()))
        };
        let size = parts.next().and_then(|size| size.split_once('x'));
        let (layers, width) = size
            .and_then(|(layers, width)| Some((number(layers)?, number(width)?)))
            .ok_or_else(|| {
                wrong("after the version comes :LAYERSxWIDTH, such as :24x2048".into())
            })?;
        let ffn = match version {
            Version::V5_0 | Version::V5_1 | Version::V5_2 | Version::V6 => width * 7 / 2 / 32 * 32,
            _ => 4 * width,
        };
        let mut spec = Self {
            config: ModelConfig {
                version: *version,
                layers,
                width,
                // Version 4 has no heads: its channels are on their own.
                head_size: if *version == Version::V4 { 1 } else { 64 },
                ffn: ffn.max(1),
                vocab: 65_536,
                norm_epsilon: NORM_EPSILON,
                group_norm_epsilon: GROUP_NORM_EPSILON,
            },
            zeros: 0.5,
            seed: 0,
        };
        for pair in parts.next().into_iter().flat_map(|rest| rest.split(',')) {
            let bad = || {
                wrong(format!(
                    "`{pair}` cannot be used; the keys are vocab, head, ffn, zeros and seed, such as vocab=65536,zeros=0.9"
                ))
            };
            let (key, value) = pair.split_once('=').ok_or_else(bad)?;
            match key {
                "vocab" => spec.config.vocab = number(value).ok_or_else(bad)?,
                "head" => spec.config.head_size = number(value).ok_or_else(bad)?,
                "ffn" => spec.config.ffn = number(value).ok_or_else(bad)?,
                "seed" => spec.seed = value.parse().map_err(|_| bad())?,
                "zeros" => {
                    let share = value.parse().ok().filter(|x| (0.01..=0.99).contains(x));
                    spec.zeros = share.ok_or_else(|| {
                        wrong(format!(
                            "zeros={value}, where a share from 0.01 to 0.99 is needed"
                        ))
                    })?;
                }
                _ => return Err(bad()),
            }
        }
        spec.config
            .validate()
            .map_err(|error| wrong(error.to_string()))?;
        if layers > 1024 || width > 1 << 16 {
            return Err(wrong("more than 1024 layers or 65536 channels".to_owned()));
        }
        Ok(spec)
    }
}

impl fmt::Display for SyntheticSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let config = &self.config;
        let name = VERSIONS
            .iter()
            .find(|(_, version)| *version == config.version)
            .map_or("v7", |(name, _)| name);
        write!(
            f,
            "{name}:{}x{}:vocab={},head={},ffn={},zeros={},seed={}",
            config.layers,
            config.width,
            config.vocab,
            config.head_size,
            config.ffn,
            self.zeros,
            self.seed
        )
    }
}
