//! What a sequence carries from token to token.

use crate::{Error, ModelConfig, Result, Version};
use std::ops::Range;

/// The size of a sequence's state, all f32: a layer has one WKV block and one shift block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateLayout {
    /// Layers.
    pub layers: usize,
    /// Elements of a layer's recurrence: `[head, value, key]`, or of version 4 `[3, C]`, the numerator aa, the
    /// denominator bb and the exponent pp that both are divided by.
    pub wkv: usize,
    /// Elements of a layer's shift vectors, `[2, C]`: the time mix's, then the channel mix's.
    pub shift: usize,
}

impl StateLayout {
    /// The layout of a model's state.
    pub fn of(config: &ModelConfig) -> Self {
        let rows = match config.version {
            Version::V4 => 3,
            _ => config.head_size,
        };
        Self {
            layers: config.layers,
            wkv: config.width * rows,
            shift: 2 * config.width,
        }
    }

    /// Bytes of one sequence's state.
    pub fn bytes(self) -> u64 {
        let layer = (self.wkv as u64).saturating_add(self.shift as u64);
        layer.saturating_mul(self.layers as u64).saturating_mul(4)
    }
}

/// One sequence's state on the host.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// A layer each: `[head, value, key]`, or `[3, C]` of version 4.
    pub wkv: Vec<Vec<f32>>,
    /// A layer each: `[2, C]`.
    pub shift: Vec<Vec<f32>>,
}

impl State {
    /// The state before the first token: zeros, in every version (a denominator of 0 says so to version 4).
    pub fn zeros(layout: StateLayout) -> Self {
        Self {
            wkv: vec![vec![0.0; layout.wkv]; layout.layers],
            shift: vec![vec![0.0; layout.shift]; layout.layers],
        }
    }

    /// What some of its layers carry; it has them.
    pub(crate) fn part(&self, layers: Range<usize>) -> Self {
        let part = |all: &[Vec<f32>]| all.get(layers.clone()).unwrap_or_default().to_vec();
        Self {
            wkv: part(&self.wkv),
            shift: part(&self.shift),
        }
    }

    /// Checks that the state has the sizes of `layout`.
    ///
    /// # Errors
    /// [`Error::State`] says what differs.
    pub fn check(&self, layout: StateLayout) -> Result<()> {
        let fits = self.wkv.len() == layout.layers
            && self.shift.len() == layout.layers
            && self.wkv.iter().all(|l| l.len() == layout.wkv)
            && self.shift.iter().all(|l| l.len() == layout.shift);
        if fits {
            return Ok(());
        }
        let StateLayout { layers, wkv, shift } = layout;
        Err(Error::State {
            problem: format!("{layers} layers of {wkv} and {shift} elements are needed"),
        })
    }
}
