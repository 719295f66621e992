//! A model's dimensions.

use crate::{Error, Result};
use std::fmt;

/// A version of RWKV.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Version {
    /// RWKV-4 "Dove" (Peng et al. 2023).
    V4,
    /// RWKV-5.0: heads with one decay and bonus each, no gate.
    V5_0,
    /// RWKV-5.1: with a gate.
    V5_1,
    /// RWKV-5.2 "Eagle" (Peng et al. 2024): decay and bonus by channel.
    V5_2,
    /// RWKV-6 "Finch" (Peng et al. 2024): mix and decay depend on the data.
    V6,
    /// RWKV-7 "Goose" (Peng et al. 2025).
    V7,
    /// RWKV-7 with DeepEmbed: the channel mix is weighed by a matrix that each token has.
    V7a,
}

impl Version {
    /// Every version, the oldest first.
    pub const ALL: [Self; 7] = [
        Self::V4,
        Self::V5_0,
        Self::V5_1,
        Self::V5_2,
        Self::V6,
        Self::V7,
        Self::V7a,
    ];
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "RWKV-4",
            Self::V5_0 => "RWKV-5.0",
            Self::V5_1 => "RWKV-5.1",
            Self::V5_2 => "RWKV-5.2",
            Self::V6 => "RWKV-6",
            Self::V7 => "RWKV-7",
            Self::V7a => "RWKV-7a",
        })
    }
}

/// A model's dimensions, all read from its tensors.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The version.
    pub version: Version,
    /// Layers.
    pub layers: usize,
    /// Channels of the residual stream.
    pub width: usize,
    /// Channels a head; 1 in version 4, whose channels are on their own.
    pub head_size: usize,
    /// Channels inside the channel mix.
    pub ffn: usize,
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// Added to the variance in layer norms.
    pub norm_epsilon: f32,
    /// Added to the variance in the group norm after the recurrence.
    pub group_norm_epsilon: f32,
}

impl ModelConfig {
    /// Heads of the recurrence.
    pub fn heads(&self) -> usize {
        self.width / self.head_size.max(1)
    }

    /// Checks that the dimensions make a model that the executors can run.
    ///
    /// # Errors
    /// [`Error::Config`] says which do not.
    pub fn validate(&self) -> Result<()> {
        let problem = if self.layers == 0 || self.width == 0 || self.ffn == 0 || self.vocab == 0 {
            format!(
                "{} layers of {} channels, {} inside, {} tokens",
                self.layers, self.width, self.ffn, self.vocab
            )
        } else if !(1..=128).contains(&self.head_size) || !self.width.is_multiple_of(self.head_size)
        {
            format!(
                "heads of {} in {} channels; sizes from 1 to 128 that divide them are supported",
                self.head_size, self.width
            )
        } else if self.version == Version::V4 && self.head_size != 1 {
            format!(
                "heads of {} in {}, whose channels are on their own: heads of 1 are needed",
                self.head_size, self.version
            )
        } else if let Some(epsilon) = [self.norm_epsilon, self.group_norm_epsilon]
            .into_iter()
            .find(|e| !(*e > 0.0 && *e < 1.0))
        {
            format!("a norm's epsilon of {epsilon}, where one between 0 and 1 is needed")
        } else {
            return Ok(());
        };
        Err(Error::Config { problem })
    }
}
