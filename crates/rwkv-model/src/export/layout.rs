//! Where each tensor of a file to be written comes from.

use crate::files::Container;
use rwkv_kernels::Format;
use rwkv_sched::{Error, Quantization, Result, Weight, Weights};

/// A tensor of the file.
#[derive(Clone, Debug)]
pub(super) struct Tensor {
    pub(super) name: String,
    /// Outermost first.
    pub(super) shape: Vec<usize>,
    pub(super) source: Source,
    /// Whether readers expect F32, whatever the rest of the file is in.
    pub(super) always_f32: bool,
}

/// How a tensor is made of logical ones.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// Their rows, one after the other.
    Rows(Vec<Weight>),
    /// Their rows, one after the other, transposed as one matrix.
    Transposed(Vec<Weight>),
    /// Each transposed, one after the other.
    EachTransposed(Vec<Weight>),
    /// Each run of so many rows transposed.
    BlocksTransposed(Weight, usize),
    /// One element of each run of so many.
    Every(Weight, usize),
}

impl Source {
    pub(super) fn weights(&self) -> &[Weight] {
        match self {
            Self::Rows(weights) | Self::Transposed(weights) | Self::EachTransposed(weights) => {
                weights
            }
            Self::BlocksTransposed(weight, _) | Self::Every(weight, _) => {
                std::slice::from_ref(weight)
            }
        }
    }

    /// The tensor that this is, element by element: it can be streamed, and keep its format.
    pub(super) fn verbatim(&self) -> Option<Weight> {
        match self {
            Self::Rows(weights) => match weights[..] {
                [weight] => Some(weight),
                _ => None,
            },
            _ => None,
        }
    }

    /// All elements, for those that are small.
    pub(super) fn values(&self, weights: &dyn Weights) -> Result<Vec<f32>> {
        let each = self.weights().iter().map(|weight| {
            let shape = weights.describe(*weight)?.1;
            let values = weights.vector(*weight, shape.elements().unwrap_or(0))?;
            Ok((values, shape.cols.0.max(1)))
        });
        let each = each.collect::<Result<Vec<_>>>()?;
        let all = || each.iter().flat_map(|(values, _)| values).copied();
        Ok(match self {
            Self::Rows(_) => all().collect(),
            Self::Transposed(_) => {
                let cols = each.first().map_or(1, |(_, cols)| *cols);
                transposed(&all().collect::<Vec<_>>(), cols)
            }
            Self::EachTransposed(_) => each
                .iter()
                .flat_map(|(values, cols)| transposed(values, *cols))
                .collect(),
            Self::BlocksTransposed(_, rows) => each
                .iter()
                .flat_map(|(values, cols)| {
                    let blocks = values.chunks(rows.saturating_mul(*cols).max(1));
                    blocks.flat_map(|block| transposed(block, *cols))
                })
                .collect(),
            Self::Every(_, run) => all().step_by((*run).max(1)).collect(),
        })
    }
}

/// The transpose of a matrix of rows of `cols`.
fn transposed(values: &[f32], cols: usize) -> Vec<f32> {
    (0..cols)
        .flat_map(|col| values.iter().skip(col).step_by(cols).copied())
        .collect()
}

/// Collects the tensors of a file, and checks their sizes.
pub(super) struct Layout<'a> {
    weights: &'a dyn Weights,
    tensors: Vec<Tensor>,
}

impl<'a> Layout<'a> {
    pub(super) fn new(weights: &'a dyn Weights) -> Self {
        Self {
            weights,
            tensors: Vec::new(),
        }
    }

    pub(super) fn finish(self) -> Vec<Tensor> {
        self.tensors
    }

    /// Rows and columns of a logical tensor.
    pub(super) fn shape_of(&self, weight: Weight) -> Result<[usize; 2]> {
        let shape = self.weights.describe(weight)?.1;
        Ok([shape.rows.0, shape.cols.0])
    }

    /// Whether the model has `weight`.
    pub(super) fn has(&self, weight: Weight) -> bool {
        self.weights.describe(weight).is_ok()
    }

    /// A tensor that `source` makes; returns it for marks.
    pub(super) fn push(
        &mut self,
        name: String,
        shape: &[usize],
        source: Source,
    ) -> Result<&mut Tensor> {
        let mut elements = 0usize;
        let mut cols = None;
        for weight in source.weights() {
            let shape = self.weights.describe(*weight)?.1;
            let same = *cols.get_or_insert(shape.cols);
            if same != shape.cols {
                return Err(self.wrong(
                    *weight,
                    format!("{shape}, where rows of {} are needed", same.0),
                ));
            }
            elements = elements.saturating_add(shape.elements().unwrap_or(usize::MAX));
        }
        let made = match source {
            Source::Every(_, run) => elements.div_ceil(run.max(1)),
            _ => elements,
        };
        if shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d)) != Some(made) {
            let problem = format!("{made} elements, where {name} needs a shape of {shape:?}");
            return Err(match source.weights() {
                [weight, ..] => self.wrong(*weight, problem),
                [] => Error::Weight { name, problem },
            });
        }
        self.tensors.push(Tensor {
            name,
            shape: shape.to_vec(),
            source,
            always_f32: false,
        });
        let last = self.tensors.len() - 1;
        Ok(&mut self.tensors[last])
    }

    fn wrong(&self, weight: Weight, problem: String) -> Error {
        Error::Weight {
            name: self.weights.name(weight),
            problem,
        }
    }

    /// A tensor as the model has it, in another shape perhaps.
    pub(super) fn tensor(
        &mut self,
        name: String,
        shape: &[usize],
        weight: Weight,
    ) -> Result<&mut Tensor> {
        self.push(name, shape, Source::Rows(vec![weight]))
    }

    /// A matrix as the model has it.
    pub(super) fn matrix(&mut self, name: String, weight: Weight) -> Result<&mut Tensor> {
        let shape = self.shape_of(weight)?;
        self.tensor(name, &shape, weight)
    }
}

/// The format of a tensor in the file, and what choosing it measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Planned {
    pub(super) format: Format,
    pub(super) error: Option<f64>,
}

/// What `tensor` becomes: what the quantization says, else what it is, else what `container` can hold instead.
pub(super) fn format_of(
    tensor: &Tensor,
    weights: &dyn Weights,
    quantization: Option<&Quantization>,
    container: Container,
) -> Result<Planned> {
    let plain = |format| Planned {
        format,
        error: None,
    };
    if tensor.always_f32 {
        return Ok(plain(Format::F32));
    }
    let gguf = container == Container::Gguf;
    let mut formats = Vec::new();
    for weight in tensor.source.weights() {
        formats.push(weights.describe(*weight)?.0);
    }
    let (first, same) = match formats.split_first() {
        Some((first, rest)) => (*first, rest.iter().all(|f| f == first)),
        None => (Format::F32, true),
    };
    if let Some(quantization) = quantization {
        if let Some(weight) = tensor.source.verbatim()
            && let Some(chosen) = quantization.choose(weights, weight)?
        {
            return Ok(Planned {
                format: chosen.format,
                error: chosen.error,
            });
        }
        // Quantized GGUF files have their low-rank pairs in F16.
        if gguf && matches!(first, Format::F32 | Format::Bf16) {
            return Ok(plain(Format::F16));
        }
    }
    let float = matches!(first, Format::F32 | Format::F16 | Format::Bf16);
    let width = tensor.shape.last().copied().unwrap_or(1);
    let holds = match first {
        Format::Int8(_) | Format::Nf4(_) | Format::Sf4(_) => {
            !gguf && tensor.source.verbatim().is_some() && tensor.shape.len() == 2
        }
        _ if float => true,
        _ => gguf && tensor.source.verbatim().is_some() && first.row_bytes(width).is_some(),
    };
    Ok(plain(match (same, holds) {
        (true, true) => first,
        (true, false) => Format::F16,
        (false, _) => Format::F32,
    }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use rwkv_mem::{Cols, Rows};
    use rwkv_sched::InMemoryWeights;

    #[test]
    fn arrangements() {
        let mut weights = InMemoryWeights::default();
        let (a, b) = (Weight::Embedding, Weight::Head);
        for (weight, rows, values) in [(a, 2, &[1., 2., 3., 4., 5., 6.][..]), (b, 1, &[7., 8., 9.])]
        {
            weights
                .insert(weight, Format::F16, Rows(rows), Cols(3), values)
                .unwrap();
        }
        let check = |source: Source, want: &[f32]| {
            assert_eq!(source.values(&weights).unwrap(), want, "{source:?}");
        };
        check(
            Source::Rows(vec![a, b]),
            &[1., 2., 3., 4., 5., 6., 7., 8., 9.],
        );
        check(
            Source::Transposed(vec![a, b]),
            &[1., 4., 7., 2., 5., 8., 3., 6., 9.],
        );
        check(
            Source::EachTransposed(vec![a, b]),
            &[1., 4., 2., 5., 3., 6., 7., 8., 9.],
        );
        check(Source::BlocksTransposed(a, 2), &[1., 4., 2., 5., 3., 6.]);
        check(Source::BlocksTransposed(a, 1), &[1., 2., 3., 4., 5., 6.]);
        check(Source::Every(a, 3), &[1., 4.]);
        let mut layout = Layout::new(&weights);
        assert!(
            layout
                .push("x".into(), &[3, 3], Source::Transposed(vec![a, b]))
                .is_ok()
        );
        let error = layout
            .push("x".into(), &[3, 4], Source::Rows(vec![a]))
            .unwrap_err();
        assert!(error.to_string().contains("6 elements"), "{error}");
    }
}
