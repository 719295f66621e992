//! Matrices with few elements that are not zero: which of them run as compressed sparse rows, and pruning, which makes
//! such matrices (`pruned`).

mod offsets;
mod pruned;

use crate::{BlockWeight as B, Error, Result, Weight};
pub(crate) use offsets::sparse_row_offsets;
pub use offsets::{row_offsets, slab_rows};
pub use pruned::PrunedWeights;
use std::{fmt, str::FromStr};

/// Below this density compressed rows clearly take fewer bytes than F16, and are what a file keeps: an entry has 4 bytes.
pub const STORED_BELOW: f64 = 0.4;

/// Below this density a GPU runs them sooner than F16, which has kernels for several matrices at once: layers of 4,096
/// channels make 0.61 of the tokens at 50 %, 0.76 at 30 and 1.03 at 10 (H200). Alone, a product crosses over at 40 %.
const FASTER_BELOW: f64 = 0.1;

/// Which matrices a GPU executor keeps as compressed sparse rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SparseWeights {
    /// Those of a density at which that is faster, whether their file has them so or has their zeros.
    #[default]
    ByDensity,
    /// None.
    Never,
    /// All that pruning takes elements from and that would be F16, for measuring.
    Always,
}

impl SparseWeights {
    /// The density below which `weight` is kept as compressed sparse rows; `None` for one that never is.
    pub(crate) fn below(self, weight: Weight) -> Option<f64> {
        if !weight.is_prunable() {
            return None;
        }
        match self {
            Self::Never => None,
            Self::Always => Some(f64::INFINITY),
            Self::ByDensity => Some(FASTER_BELOW),
        }
    }
}

impl Weight {
    /// Whether pruning takes elements from it: the large matrices of layers. The embedding and the head, low-rank pairs,
    /// the tables of version 7a and vectors stay whole.
    pub fn is_prunable(self) -> bool {
        matches!(
            self,
            Self::Block(
                _,
                B::AttReceptance
                    | B::AttKey
                    | B::AttValue
                    | B::AttGate
                    | B::AttOutput
                    | B::FfnReceptance
                    | B::FfnKey
                    | B::FfnValue
            )
        )
    }
}

/// The share of a matrix's elements that become zero, from 0 up to 1: the smallest by magnitude, of equal ones the first.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct PruneRatio(f64);

impl PruneRatio {
    /// A share of at least 0 and less than 1; 0 takes nothing but finds zeros that are there.
    ///
    /// # Errors
    /// [`Error::PruneRatio`] for another.
    pub fn new(share: f64) -> Result<Self> {
        if (0.0..1.0).contains(&share) {
            return Ok(Self(share));
        }
        let text = share.to_string();
        Err(Error::PruneRatio { text })
    }

    /// The share.
    pub fn share(self) -> f64 {
        self.0
    }

    /// How many of so many elements become zero.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the share of a count, which is no larger"
    )]
    fn of(self, elements: u64) -> u64 {
        (self.0 * elements as f64).round() as u64
    }
}

impl FromStr for PruneRatio {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || Error::PruneRatio {
            text: text.to_owned(),
        };
        Self::new(text.parse().map_err(|_| wrong())?).map_err(|_| wrong())
    }
}

impl fmt::Display for PruneRatio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::Lora;

    #[test]
    fn ratios() {
        for (text, share) in [("0", 0.0), ("0.5", 0.5), (".75", 0.75), ("1e-3", 0.001)] {
            let ratio: PruneRatio = text.parse().unwrap();
            assert!((ratio.share() - share).abs() < 1e-12, "{text}");
        }
        for text in ["", "1", "-0.1", "nan", "inf", "50%", "half"] {
            let error = text.parse::<PruneRatio>().unwrap_err().to_string();
            assert!(error.contains("from 0 to less than 1"), "{error}");
        }
        assert_eq!(PruneRatio::new(0.5).unwrap().of(7), 4);
        assert_eq!(PruneRatio::new(0.999).unwrap().of(0), 0);
    }

    #[test]
    fn thresholds() {
        let check = |weight, want: [Option<f64>; 3]| {
            use SparseWeights::{Always, ByDensity, Never};
            assert_eq!([ByDensity, Never, Always].map(|s| s.below(weight)), want);
        };
        let all = Some(f64::INFINITY);
        check(Weight::Block(3, B::FfnKey), [Some(0.1), None, all]);
        check(Weight::Block(3, B::FfnValue), [Some(0.1), None, all]);
        for whole in [
            Weight::Embedding,
            Weight::Head,
            Weight::Block(0, B::LoraDown(Lora::Decay)),
            Weight::Block(0, B::Decay),
        ] {
            check(whole, [None; 3]);
        }
    }
}
