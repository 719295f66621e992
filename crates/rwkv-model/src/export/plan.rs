//! What a file to be written holds: its tensors, each with its shape and format.

use super::{Export, ExportError, llama};
use crate::{
    files::Container,
    names::{
        gguf, original,
        table::{Presence, Row},
    },
};
use rwkv_kernels::{Csr, Format};
use rwkv_mem::Shape;
use rwkv_sched::{BlockWeight, Quantization, Result, STORED_BELOW, Weight, row_offsets};

/// A tensor of the file.
#[derive(Clone, Debug)]
pub(super) struct Tensor {
    pub(super) row: Row,
    /// Outermost dimension first.
    pub(super) shape: Vec<usize>,
    pub(super) format: Format,
    /// What packing it loses, where that was measured.
    pub(super) error: Option<f64>,
    /// Where rows begin, if it is written as compressed sparse rows: of F16 then.
    pub(super) row_offsets: Option<Vec<u32>>,
}

impl Tensor {
    pub(super) fn name(&self) -> &str {
        &self.row.name
    }

    /// The logical tensor that this is, element by element: it can be streamed, and keep its format.
    pub(super) fn plain(&self) -> Option<Weight> {
        let weight = self.row.holds.first().copied();
        weight.filter(|_| self.row.is_plain())
    }

    /// How many elements are kept, if it is written as compressed sparse rows.
    pub(super) fn entries(&self) -> Option<u64> {
        let last = self.row_offsets.as_ref()?.last();
        Some(last.map_or(0, |n| u64::from(*n)))
    }

    /// Bytes in the file, or `None` where they overflow.
    pub(super) fn bytes(&self) -> Option<u64> {
        if let (Some(entries), &[rows, cols]) = (self.entries(), self.shape.as_slice()) {
            return Some(Csr::bytes_of(Shape::new(rows, cols), entries));
        }
        let (cols, outer) = self.shape.split_last()?;
        let row = self.format.row_bytes(*cols)? as u64;
        outer
            .iter()
            .try_fold(row, |product, n| product.checked_mul(*n as u64))
    }
}

impl Export<'_> {
    /// The tensors of a file of this kind, in the order in which they are written.
    pub(super) fn plan(&self, container: Container) -> Result<Vec<Tensor>, ExportError> {
        if container == Container::Gguf {
            let state = Weight::Block(0, BlockWeight::InitialState);
            if self.weights.describe(state).is_ok() {
                return Err(ExportError::InitialState);
            }
            return Ok(self.tensors(container, gguf::rows(self.config))?);
        }
        let mut tensors = self.tensors(container, original::rows(self.config))?;
        // Larger elements first: every tensor is aligned then.
        tensors.sort_by_key(|tensor| match (tensor.format, &tensor.row_offsets) {
            (Format::F32, _) | (_, Some(_)) => 0,
            (Format::F16 | Format::Bf16, _) => 1,
            _ => 2,
        });
        Ok(tensors)
    }

    fn tensors(
        &self,
        container: Container,
        rows: impl Iterator<Item = Row>,
    ) -> Result<Vec<Tensor>> {
        let has = |weight: &Weight| self.weights.describe(*weight).is_ok();
        rows.filter(|row| row.presence != Presence::Optional || row.holds.iter().all(has))
            .map(|row| {
                let mut tensor = Tensor {
                    shape: row.shape(self.weights, self.config)?,
                    row,
                    format: Format::F32,
                    error: None,
                    row_offsets: None,
                };
                self.choose(&mut tensor, container)?;
                if container == Container::Safetensors {
                    self.compress(&mut tensor)?;
                }
                Ok(tensor)
            })
            .collect()
    }

    /// Sets `tensor`'s format: what readers expect, else what the quantization says, else what it is, else what
    /// `container` can hold instead.
    fn choose(&self, tensor: &mut Tensor, container: Container) -> Result<()> {
        let gguf = container == Container::Gguf;
        if gguf && llama::always_f32(&tensor.row) {
            tensor.format = Format::F32;
            return Ok(());
        }
        let mut formats = Vec::new();
        for weight in &tensor.row.holds {
            formats.push(self.weights.describe(*weight)?.0);
        }
        let first = formats.first().copied().unwrap_or(Format::F32);
        let float = matches!(first, Format::F32 | Format::F16 | Format::Bf16);
        if let Some(quantization) = self.quantization {
            if let Some(weight) = tensor.plain()
                && let Some(chosen) = quantization.choose(self.weights, weight)?
            {
                (tensor.format, tensor.error) = (chosen.format, chosen.error);
                return Ok(());
            }
            // Quantized GGUF files have their low-rank pairs in F16.
            if gguf && matches!(first, Format::F32 | Format::Bf16) {
                tensor.format = Format::F16;
                return Ok(());
            }
        }
        let width = tensor.shape.last().copied().unwrap_or(1);
        let plain = tensor.plain().is_some();
        let holds = match first {
            Format::Int8(_) | Format::Nf4(_) | Format::Sf4(_) => {
                !gguf && plain && tensor.shape.len() == 2
            }
            _ if float => true,
            _ => gguf && plain && first.row_bytes(width).is_some(),
        };
        tensor.format = match (formats.iter().all(|f| *f == first), holds) {
            (true, true) => first,
            (true, false) => Format::F16,
            (false, _) => Format::F32,
        };
        Ok(())
    }

    /// Makes `tensor` one of compressed sparse rows: one that is so already and would be F16, and one that was pruned
    /// where little enough is left.
    fn compress(&self, tensor: &mut Tensor) -> Result<()> {
        let (Some(weight), &[rows, cols]) = (tensor.plain(), tensor.shape.as_slice()) else {
            return Ok(());
        };
        let shape = Shape::new(rows, cols);
        let stored = tensor.format == Format::F16 && self.weights.entries(weight).is_some();
        let changes = |q: &Quantization| q.packing(weight).is_some();
        let pruned = self.prunes && weight.is_prunable() && self.quantization.is_some_and(changes);
        let most = match (stored, pruned) {
            (true, _) => f64::INFINITY,
            (false, true) => STORED_BELOW * rows as f64 * cols as f64,
            (false, false) => return Ok(()),
        };
        let Some(offsets) = row_offsets(self.weights, weight, most)? else {
            return Ok(());
        };
        let entries = offsets.last().map_or(0, |n| u64::from(*n));
        let smaller = tensor
            .bytes()
            .is_some_and(|bytes| Csr::bytes_of(shape, entries) < bytes);
        if stored || smaller {
            tensor.format = Format::F16;
            tensor.error = None;
            tensor.row_offsets = Some(offsets);
        }
        Ok(())
    }

    /// The format of most of the bytes of `tensors`.
    pub(super) fn main_format(tensors: &[Tensor]) -> Format {
        let mut bytes = std::collections::BTreeMap::<Format, u64>::new();
        for tensor in tensors {
            *bytes.entry(tensor.format).or_default() += tensor.bytes().unwrap_or(0);
        }
        bytes
            .into_iter()
            .max_by_key(|(_, bytes)| *bytes)
            .map_or(Format::F16, |(format, _)| format)
    }
}
