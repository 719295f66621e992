//! Re-encoding a model's matrices: which become what, and the weights that hold the result.
//!
//! Only the large matrices are touched: the embedding, the head, and each layer's projections. Norms, biases, mixes,
//! the low-rank pairs of versions 6, 7 and 7a and the tables of version 7a stay as they are: they are a few per cent
//! of a model, and the recurrence is sensitive to them.

use crate::{BlockWeight as B, Error, LoadProgress, Model, Result, Weight, Weights};
use rayon::prelude::*;
use rwkv_kernels::{
    Format, Matrix,
    formats::{Block, Family},
};
use rwkv_mem::Shape;
use std::{collections::HashMap, fmt, ops::Range, ops::RangeInclusive, str::FromStr, sync::Arc};

/// What a weight type packs a matrix as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Packing {
    /// One format.
    Format(Format),
    /// `Int8` with the block size that suits the matrix.
    Int8,
    /// `NF4` with the block size that suits the matrix.
    Nf4,
    /// `SF4` with the block size that suits the matrix.
    Sf4,
}

impl Packing {
    /// The format with blocks of this size; a fixed format has no choice.
    fn with(self, block: Block) -> Format {
        match self {
            Self::Format(format) => format,
            Self::Int8 => Format::Int8(block),
            Self::Nf4 => Format::Nf4(block),
            Self::Sf4 => Format::Sf4(block),
        }
    }

    /// Whether `format` is one of those that this may choose.
    fn allows(self, format: Format) -> bool {
        Block::ALL.iter().any(|block| self.with(*block) == format)
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
        uniform("int8", Packing::Int8),
        uniform("nf4", Packing::Nf4),
        uniform("sf4", Packing::Sf4),
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

    /// Whether all its formats are ggml's, which GGUF files can hold.
    pub fn is_ggml(self) -> bool {
        matches!(self.body, Packing::Format(_))
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
    /// Root mean square of what the matrix loses, relative to that of the matrix; known where a choice was measured.
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
        if let Packing::Format(wanted) = packing {
            return fixed(fit(wanted, cols));
        }
        if !Block::ALL
            .iter()
            .any(|block| cols.is_multiple_of(block.elements()))
        {
            return fixed(Format::F16);
        }
        let mut chosen = None;
        weights.with_rows(weight, 0..shape.rows.0, &mut |matrix| {
            let (block, error) = block_by_error(packing, matrix);
            chosen = Some(Chosen {
                format: packing.with(block),
                error,
            });
            Ok(())
        })?;
        Ok(chosen)
    }
}

/// The block size for a matrix, and what it loses.
fn block_by_error(packing: Packing, matrix: &Matrix<'_>) -> (Block, Option<f64>) {
    let family = match packing {
        Packing::Format(_) => None,
        Packing::Int8 => Some(Family::Int8),
        Packing::Nf4 => Some(Family::Nf4),
        Packing::Sf4 => Some(Family::Sf4),
    };
    match family.and_then(|family| family.choose(matrix, family.bound())) {
        Some(choice) => (choice.block, Some(f64::from(choice.error))),
        None => (Block::B32, None),
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

/// Rows that a thread encodes at a time, in elements.
const RUN: usize = 1 << 14;

/// Packs all rows of `matrix` as `format` into `out`, on all threads; `name` names the tensor in errors.
///
/// # Errors
/// [`Error::Weight`] for sizes that do not fit, [`rwkv_kernels::Error::OutsideF16`] for a value that f16 cannot hold.
pub fn encode_rows(name: &str, matrix: &Matrix<'_>, format: Format, out: &mut [u8]) -> Result<()> {
    let Shape { rows, cols } = matrix.shape();
    let row_bytes = format
        .row_bytes(cols.0)
        .filter(|n| n.checked_mul(rows.0) == Some(out.len()))
        .ok_or_else(|| Error::Weight {
            name: name.to_owned(),
            problem: format!(
                "{} do not make {} bytes of {format}",
                matrix.shape(),
                out.len()
            ),
        })?;
    if matrix.format() == format {
        out.copy_from_slice(matrix.bytes());
        return Ok(());
    }
    if row_bytes == 0 {
        return Ok(());
    }
    let rows_a_run = (RUN / cols.0.max(1)).max(1);
    out.par_chunks_mut(row_bytes * rows_a_run)
        .enumerate()
        .try_for_each(|(run, out)| {
            let first = run * rows_a_run;
            let count = out.len() / row_bytes;
            let mut values = vec![0.0; count * cols.0];
            matrix
                .format()
                .spec()
                .dequantize(matrix.packed_rows(first, count), &mut values);
            pack(name, &values, format, out)
        })
}

/// Packs whole blocks of `values`.
///
/// # Errors
/// [`rwkv_kernels::Error::OutsideF16`] for a value that f16 cannot hold.
pub fn pack(name: &str, values: &[f32], format: Format, out: &mut [u8]) -> Result<()> {
    let outside = |x: &&f32| x.is_finite() && x.abs() > 65504.0;
    if format == Format::F16
        && let Some(value) = values.iter().find(outside)
    {
        return Err(rwkv_kernels::Error::OutsideF16 {
            tensor: name.to_owned(),
            value: *value,
        }
        .into());
    }
    format.spec().quantize(values, out);
    Ok(())
}

/// Weights of which some are re-encoded, in memory; the others stay where they are.
pub struct QuantizedWeights {
    source: Arc<dyn Weights>,
    matrices: HashMap<Weight, Packed>,
}

struct Packed {
    chosen: Chosen,
    shape: Shape,
    bytes: Vec<u8>,
}

impl QuantizedWeights {
    /// Re-encodes those of `tensors` that `quantization` changes, one after the other, each on all threads.
    ///
    /// # Errors
    /// What reading or packing a tensor says; it names the tensor.
    pub fn new(
        source: Arc<dyn Weights>,
        tensors: &[Weight],
        quantization: &Quantization,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Self> {
        let changing = || {
            tensors
                .iter()
                .copied()
                .filter(|weight| quantization.packing(*weight).is_some())
        };
        let mut total = 0;
        for weight in changing() {
            total += packed_bytes(source.describe(weight)?);
        }
        let mut done = 0;
        let mut matrices = HashMap::new();
        for weight in changing() {
            let (format, shape) = source.describe(weight)?;
            if let Some(chosen) = quantization.choose(source.as_ref(), weight)?
                && chosen.format != format
            {
                let name = source.name(weight);
                let size = chosen
                    .format
                    .row_bytes(shape.cols.0)
                    .and_then(|n| n.checked_mul(shape.rows.0));
                let mut bytes = vec![0; size.unwrap_or(0)];
                source.with_rows(weight, 0..shape.rows.0, &mut |matrix| {
                    encode_rows(&name, matrix, chosen.format, &mut bytes)
                })?;
                let packed = Packed {
                    chosen,
                    shape,
                    bytes,
                };
                matrices.insert(weight, packed);
            }
            done += packed_bytes((format, shape));
            progress(LoadProgress { done, total });
        }
        Ok(Self { source, matrices })
    }

    /// What became of the matrices that changed.
    pub fn chosen(&self) -> impl Iterator<Item = (Weight, Chosen)> + '_ {
        self.matrices.iter().map(|(weight, p)| (*weight, p.chosen))
    }
}

/// Bytes of a tensor.
pub(crate) fn packed_bytes((format, shape): (Format, Shape)) -> u64 {
    let row = format.row_bytes(shape.cols.0).unwrap_or(0) as u64;
    row.saturating_mul(shape.rows.0 as u64)
}

impl Weights for QuantizedWeights {
    fn matrix(&self, weight: Weight) -> Result<Matrix<'_>> {
        match self.matrices.get(&weight) {
            Some(Packed {
                chosen,
                shape,
                bytes,
            }) => Ok(Matrix::new(chosen.format, shape.rows, shape.cols, bytes)?),
            None => self.source.matrix(weight),
        }
    }

    fn name(&self, weight: Weight) -> String {
        self.source.name(weight)
    }

    fn describe(&self, weight: Weight) -> Result<(Format, Shape)> {
        match self.matrices.get(&weight) {
            Some(packed) => Ok((packed.chosen.format, packed.shape)),
            None => self.source.describe(weight),
        }
    }

    fn with_rows(
        &self,
        weight: Weight,
        rows: Range<usize>,
        read: &mut dyn FnMut(&Matrix<'_>) -> Result<()>,
    ) -> Result<()> {
        if self.matrices.contains_key(&weight) {
            return read(&self.matrix(weight)?.rows(rows)?);
        }
        self.source.with_rows(weight, rows, read)
    }
}

impl Model {
    /// The same model with its matrices re-encoded in memory, as the CPU executor needs them; a GPU converts while it
    /// uploads ([`crate::LoadOptions::quantization`]).
    ///
    /// # Errors
    /// [`Error::Quantization`] for layers that the model does not have, or a tensor that cannot be packed.
    pub fn quantized(
        &self,
        quantization: &Quantization,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Self> {
        quantization.check(self.config().layers)?;
        let weights = QuantizedWeights::new(
            self.shared_weights(),
            &self.tensors(),
            quantization,
            progress,
        )?;
        Ok(self.with_weights(Arc::new(weights)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::{InMemoryWeights, Lora};
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
    fn weights(cols: usize) -> InMemoryWeights {
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

    #[test]
    fn weights_are_those_of_the_encoder() {
        let source = Arc::new(weights(64));
        let tensors = [
            Weight::Embedding,
            Weight::Head,
            Weight::Block(0, B::FfnValue),
            Weight::Block(0, B::LoraDown(Lora::Decay)),
        ];
        let quantization: Quantization = "q8_0".parse().unwrap();
        let mut last = None;
        let quantized =
            QuantizedWeights::new(source.clone(), &tensors, &quantization, &mut |progress| {
                last = Some(progress);
            })
            .unwrap();
        assert_eq!(last.map(|p| (p.done, p.total)), Some((1536, 1536)));
        assert_eq!(quantized.chosen().count(), 3);
        let matrix = quantized.matrix(Weight::Head).unwrap();
        assert_eq!(matrix.format(), Format::Q8_0);
        let values = source.vector(Weight::Head, 128).unwrap();
        let mut want = vec![0; 2 * 68];
        Format::Q8_0.spec().quantize(&values, &mut want);
        assert_eq!(matrix.bytes(), want);
        quantized
            .with_rows(Weight::Head, 1..2, &mut |row| {
                assert_eq!(row.bytes(), &want[68..]);
                Ok(())
            })
            .unwrap();
        let pair = Weight::Block(0, B::LoraDown(Lora::Decay));
        assert_eq!(quantized.describe(pair).unwrap().0, Format::F32);
        // What is right already stays where it is.
        let again: Arc<dyn Weights> = Arc::new(quantized);
        let twice = QuantizedWeights::new(again, &tensors, &quantization, &mut |_| {}).unwrap();
        assert_eq!(twice.chosen().count(), 0);
    }

    #[test]
    fn f16_has_a_range() {
        let mut weights = InMemoryWeights::default();
        weights
            .insert(Weight::Head, Format::F32, Rows(1), Cols(2), &[1.0, 1e5])
            .unwrap();
        let quantization: Quantization = "f16".parse().unwrap();
        let result = QuantizedWeights::new(
            Arc::new(weights),
            &[Weight::Head],
            &quantization,
            &mut |_| {},
        );
        let error = result.err().unwrap().to_string();
        assert!(
            error.contains("Head") && error.contains("100000"),
            "{error}"
        );
    }
}
