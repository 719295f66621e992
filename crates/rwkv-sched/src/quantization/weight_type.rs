//! Weight types: what flags call them, and which matrix becomes what.

use crate::{BlockWeight as B, Error, Result, Weight};
use rwkv_kernels::{
    Format,
    formats::{Block, Family},
};
use std::{fmt, str::FromStr};

/// What a weight type packs a matrix as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Packing {
    /// One format.
    Format(Format),
    /// The one of these whose block size suits the matrix.
    Family(Family),
}

impl Packing {
    /// Whether `format` is one of those that this may choose.
    pub(super) fn allows(self, format: Format) -> bool {
        match self {
            Self::Format(wanted) => wanted == format,
            Self::Family(family) => Block::ALL.iter().any(|b| family.format(*b) == format),
        }
    }
}

/// What flags call a weight type: a format, a family of formats, or a mixture of formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WeightType {
    name: &'static str,
    body: Packing,
    head: Packing,
}

const fn uniform(name: &'static str, packing: Packing) -> WeightType {
    mixture(name, packing, packing)
}

const fn mixture(name: &'static str, body: Packing, head: Packing) -> WeightType {
    WeightType { name, body, head }
}

impl WeightType {
    /// Every type. The mixtures are those of llama.cpp for RWKV: everything in one format, and the head, whose errors
    /// go straight to the logits, in `Q6_K`. The plain names are plain: the head too is in that format.
    pub const ALL: [WeightType; 17] = [
        uniform("f16", Packing::Format(Format::F16)),
        uniform("q8_0", Packing::Format(Format::Q8_0)),
        uniform("q6_k", Packing::Format(Format::Q6K)),
        mixture(
            "q5_k_m",
            Packing::Format(Format::Q5K),
            Packing::Format(Format::Q6K),
        ),
        uniform("q5_k", Packing::Format(Format::Q5K)),
        mixture(
            "q4_k_m",
            Packing::Format(Format::Q4K),
            Packing::Format(Format::Q6K),
        ),
        uniform("q4_k", Packing::Format(Format::Q4K)),
        uniform("q4_0", Packing::Format(Format::Q4_0)),
        uniform("q4_1", Packing::Format(Format::Q4_1)),
        uniform("q5_0", Packing::Format(Format::Q5_0)),
        uniform("q5_1", Packing::Format(Format::Q5_1)),
        uniform("q2_k", Packing::Format(Format::Q2K)),
        uniform("q3_k", Packing::Format(Format::Q3K)),
        uniform("iq4_nl", Packing::Format(Format::Iq4Nl)),
        uniform("int8", Packing::Family(Family::Int8)),
        uniform("nf4", Packing::Family(Family::Nf4)),
        uniform("sf4", Packing::Family(Family::Sf4)),
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        self.name
    }

    /// What a matrix becomes; `None` for a tensor that is never re-encoded.
    pub fn packing(self, weight: Weight) -> Option<Packing> {
        match weight {
            Weight::Head => Some(self.head),
            Weight::Embedding
            | Weight::Block(
                _,
                B::AttReceptance
                | B::AttKey
                | B::AttValue
                | B::AttGate
                | B::AttOutput
                | B::FfnReceptance
                | B::FfnKey
                | B::FfnValue,
            ) => Some(self.body),
            _ => None,
        }
    }
}

impl FromStr for WeightType {
    type Err = Error;

    /// By name, in any case.
    fn from_str(text: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|t| t.name.eq_ignore_ascii_case(text))
            .ok_or_else(|| {
                let names: Vec<_> = Self::ALL.iter().map(|t| t.name).collect();
                Error::Quantization {
                    text: text.to_owned(),
                    problem: format!("the weight types are {}", names.join(", ")),
                }
            })
    }
}

impl fmt::Display for WeightType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}
