//! Re-encoding a model's matrices: which become what (`weight_type`), how (`encode`), and the weights that
//! hold the result.
//!
//! Only the large matrices are touched: the embedding, the head, and each layer's projections. Norms, biases, mixes,
//! the low-rank pairs of versions 6, 7 and 7a and the tables of version 7a stay as they are: they are a few per cent
//! of a model, and the recurrence is sensitive to them.

mod encode;
mod weight_type;
mod weights;

use crate::{Error, Model, Result, Weight, Weights};
pub(crate) use encode::packed_bytes;
pub use encode::{encode_rows, pack};
use rwkv_kernels::{Format, formats::Block};
use std::{collections::HashMap, fmt, ops::RangeInclusive, str::FromStr};
pub use weight_type::{Packing, WeightType};
pub use weights::QuantizedWeights;

/// What becomes of a model's matrices: `TYPE` or `TYPE:FIRST-LAST`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Quantization {
    weight_type: WeightType,
    layers: Option<RangeInclusive<usize>>,
}

/// What one matrix becomes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Chosen {
    /// The format.
    pub format: Format,
    /// Root mean square of what the matrix loses, relative to that of the matrix; known where a choice was measured, and of
    /// large matrices by a part of their rows ([`rwkv_kernels::formats::Family::choose`]).
    pub error: Option<f64>,
}

impl From<WeightType> for Quantization {
    /// Every layer, the embedding and the head.
    fn from(weight_type: WeightType) -> Self {
        Self {
            weight_type,
            layers: None,
        }
    }
}

impl Quantization {
    /// The same for these layers alone; the embedding and the head are in none, and stay as they are.
    #[must_use]
    pub fn layers(mut self, layers: RangeInclusive<usize>) -> Self {
        self.layers = Some(layers);
        self
    }

    /// The type.
    pub fn weight_type(&self) -> WeightType {
        self.weight_type
    }

    /// Checks that a model of `layers` layers has those that are named.
    ///
    /// # Errors
    /// [`Error::Quantization`].
    pub fn check(&self, layers: usize) -> Result<()> {
        match &self.layers {
            Some(range) if *range.end() >= layers => Err(Error::Quantization {
                text: self.to_string(),
                problem: format!(
                    "the model has {layers} layers, numbered from 0 to {}",
                    layers.saturating_sub(1)
                ),
            }),
            _ => Ok(()),
        }
    }

    /// What `weight` is packed as, if it is one that changes.
    pub fn packing(&self, weight: Weight) -> Option<Packing> {
        let within = match (&self.layers, weight) {
            (None, _) => true,
            (Some(range), Weight::Block(layer, _)) => range.contains(&layer),
            (Some(_), _) => false,
        };
        self.weight_type.packing(weight).filter(|_| within)
    }

    /// The format of `weight`, with the fallbacks for its width; `None` where it stays as it is. The block size of
    /// `int8`, `nf4` and `sf4` is chosen by the matrix's error, unless it has such a format already.
    ///
    /// # Errors
    /// [`Error::Weight`] when the tensor cannot be read.
    pub fn choose(&self, weights: &dyn Weights, weight: Weight) -> Result<Option<Chosen>> {
        let Some(packing) = self.packing(weight) else {
            return Ok(None);
        };
        let (format, shape) = weights.describe(weight)?;
        let cols = shape.cols.0;
        let fixed = |format| {
            Ok(Some(Chosen {
                format,
                error: None,
            }))
        };
        if packing.allows(format) {
            return fixed(format);
        }
        let family = match packing {
            Packing::Format(wanted) => return fixed(fit(wanted, cols)),
            Packing::Family(family) => family,
        };
        let mut choice = None;
        weights.with_rows(weight, 0..shape.rows.0, &mut |matrix| {
            choice = family.choose(matrix, family.bound());
            Ok(())
        })?;
        Ok(Some(match choice {
            Some(choice) => Chosen {
                format: family.format(choice.block),
                error: Some(f64::from(choice.error)),
            },
            None => Chosen {
                format: Format::F16,
                error: None,
            },
        }))
    }

    /// The formats of all tensors of `model` that change, told from their shapes: of the block sizes of `int8`, `nf4` and
    /// `sf4` it is the smallest, which takes the most space.
    ///
    /// # Errors
    /// [`Error::Quantization`] for layers that the model does not have, [`Error::Weight`] for an unknown tensor.
    pub(crate) fn largest(&self, model: &Model) -> Result<HashMap<Weight, Chosen>> {
        self.check(model.config().layers)?;
        let mut all = HashMap::new();
        for weight in model.tensors() {
            let Some(packing) = self.packing(weight) else {
                continue;
            };
            let (format, shape) = model.weights().describe(weight)?;
            let format = match packing {
                _ if packing.allows(format) => format,
                Packing::Format(wanted) => fit(wanted, shape.cols.0),
                Packing::Family(family) => fit(family.format(Block::B32), shape.cols.0),
            };
            let error = None;
            all.insert(weight, Chosen { format, error });
        }
        Ok(all)
    }

    /// The formats of all tensors of `model` that change.
    ///
    /// # Errors
    /// [`Error::Quantization`] for layers that the model does not have, [`Error::Weight`] when a tensor cannot be read.
    pub fn choose_all(&self, model: &Model) -> Result<HashMap<Weight, Chosen>> {
        self.check(model.config().layers)?;
        let mut all = HashMap::new();
        for weight in model.tensors() {
            if let Some(chosen) = self.choose(model.weights(), weight)? {
                all.insert(weight, chosen);
            }
        }
        Ok(all)
    }
}

/// `format`, or what stands in for it where rows of `cols` are no whole number of its blocks: llama.cpp's choices.
fn fit(format: Format, cols: usize) -> Format {
    if format.row_bytes(cols).is_some() {
        return format;
    }
    match format {
        Format::Q2K | Format::Q3K => fit(Format::Q4_0, cols),
        Format::Q4K => fit(Format::Q5_0, cols),
        Format::Q5K => fit(Format::Q5_1, cols),
        Format::Q6K => fit(Format::Q8_0, cols),
        _ => Format::F16,
    }
}

impl FromStr for Quantization {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let Some((name, range)) = text.split_once(':') else {
            return Ok(text.parse::<WeightType>()?.into());
        };
        let wrong = |problem: &str| Error::Quantization {
            text: text.to_owned(),
            problem: problem.to_owned(),
        };
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let number = |digits: &str| {
            let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
            digits.parse::<usize>().ok().filter(|_| plain)
        };
        match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => {
                Ok(Self::from(name.parse::<WeightType>()?).layers(first..=last))
            }
            (Some(_), Some(_)) => Err(wrong("the first layer comes after the last")),
            _ => Err(wrong(
                "what follows the colon is a range of layers, such as 0-11",
            )),
        }
    }
}

impl fmt::Display for Quantization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.layers {
            None => self.weight_type.fmt(f),
            Some(range) => write!(f, "{}:{}-{}", self.weight_type, range.start(), range.end()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::{BlockWeight as B, InMemoryWeights, Lora};
    use rwkv_mem::{Cols, Rows};

    #[test]
    fn texts() {
        for weight_type in WeightType::ALL {
            let name = weight_type.name();
            let upper = name.to_uppercase();
            assert_eq!(upper.parse::<WeightType>().unwrap(), weight_type);
            let all: Quantization = name.parse().unwrap();
            assert_eq!(all.to_string(), name);
            let some: Quantization = format!("{name}:3-11").parse().unwrap();
            assert_eq!(some.to_string(), format!("{name}:3-11"));
            assert_eq!(
                some.packing(Weight::Block(11, B::FfnKey)),
                all.packing(Weight::Block(0, B::FfnKey))
            );
            for outside in [
                Weight::Block(2, B::FfnKey),
                Weight::Block(12, B::FfnKey),
                Weight::Embedding,
                Weight::Head,
            ] {
                assert_eq!(some.packing(outside), None);
                assert!(all.packing(outside).is_some());
            }
        }
        let check = |text: &str, part: &str| {
            let error = text.parse::<Quantization>().unwrap_err().to_string();
            assert!(error.contains(part) && !error.contains('\n'), "{error}");
        };
        for text in ["", "q9", "q8_0 ", "int8_64"] {
            check(text, "the weight types are f16, q8_0, q6_k");
        }
        for text in [
            "q8_0:",
            "q8_0:-",
            "q8_0:a-b",
            "q8_0:1-",
            "q8_0:+1-2",
            "q8_0:1-2-3",
        ] {
            check(text, "a range of layers, such as 0-11");
        }
        check("q8_0:5-4", "after the last");
        check("q9:0-1", "the weight types");
        let one: Quantization = "q8_0:4".parse().unwrap();
        assert_eq!(one.to_string(), "q8_0:4-4");
        assert!(one.check(5).is_ok());
        assert!(one.check(4).unwrap_err().to_string().contains("4 layers"));
    }

    /// A matrix `2 × cols` of f32 under some names.
    pub(super) fn weights(cols: usize) -> InMemoryWeights {
        let mut weights = InMemoryWeights::default();
        let values: Vec<f32> = (0..2 * cols).map(|i| (i as f32 * 0.37).sin()).collect();
        for weight in [
            Weight::Head,
            Weight::Embedding,
            Weight::Block(0, B::FfnValue),
            Weight::Block(0, B::LoraDown(Lora::Decay)),
        ] {
            weights
                .insert(weight, Format::F32, Rows(2), Cols(cols), &values)
                .unwrap();
        }
        weights
    }

    #[test]
    fn formats_by_type_and_width() {
        let check = |name: &str, cols: usize, body: Format, head: Format| {
            let quantization: Quantization = name.parse().unwrap();
            let weights = weights(cols);
            let of = |weight| {
                let chosen = quantization.choose(&weights, weight).unwrap();
                chosen.map(|c| c.format)
            };
            assert_eq!(of(Weight::Embedding), Some(body), "{name} {cols}");
            assert_eq!(of(Weight::Block(0, B::FfnValue)), Some(body));
            assert_eq!(of(Weight::Head), Some(head), "{name} {cols}");
            assert_eq!(of(Weight::Block(0, B::LoraDown(Lora::Decay))), None);
        };
        check("f16", 7, Format::F16, Format::F16);
        check("q8_0", 96, Format::Q8_0, Format::Q8_0);
        check("q8_0", 48, Format::F16, Format::F16);
        check("q4_k_m", 512, Format::Q4K, Format::Q6K);
        check("q4_k_m", 64, Format::Q5_0, Format::Q8_0);
        check("q4_k", 512, Format::Q4K, Format::Q4K);
        check("q5_k_m", 512, Format::Q5K, Format::Q6K);
        check("q5_k_m", 96, Format::Q5_1, Format::Q8_0);
        check("q5_k", 256, Format::Q5K, Format::Q5K);
        check("q6_k", 128, Format::Q8_0, Format::Q8_0);
        check("q2_k", 256, Format::Q2K, Format::Q2K);
        check("q3_k", 96, Format::Q4_0, Format::Q4_0);
        check("q2_k", 31, Format::F16, Format::F16);
        check("iq4_nl", 31, Format::F16, Format::F16);
        check("nf4", 31, Format::F16, Format::F16);
    }
}
