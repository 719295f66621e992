//! From a plan to a file.

use super::{
    Export, ExportError, OnProgress, Progress, Written, WrittenTensor,
    layout::{Planned, Source, Tensor, format_of},
    llama, original,
    output::OutputFile,
};
use crate::files::{Body, Container, GgufWriter, SafetensorsWriter};
use rwkv_kernels::Format;
use rwkv_sched::{BlockWeight, Weight, Weights, encode_rows, pack};
use std::{collections::BTreeMap, io::Write, ops::ControlFlow, path::Path};

/// Bytes that are encoded and then written at a time.
const SLAB: usize = 8 << 20;

impl Export<'_> {
    /// Writes the model to `output`.
    pub(super) fn write(
        &self,
        output: &Path,
        container: Container,
        progress: OnProgress<'_>,
    ) -> Result<Written, ExportError> {
        if let Some(quantization) = self.quantization {
            quantization.check(self.config.layers)?;
        }
        let tensors = match container {
            Container::Gguf => self.llama_layout()?,
            _ => original::layout(self.config, self.weights)?,
        };
        let mut plan = Vec::with_capacity(tensors.len());
        for tensor in tensors {
            let planned = format_of(&tensor, self.weights, self.quantization, container)?;
            plan.push((tensor, planned));
        }
        if container != Container::Gguf {
            // Larger elements first: every tensor is aligned then.
            plan.sort_by_key(|(_, planned)| match planned.format {
                Format::F32 => 0,
                Format::F16 | Format::Bf16 => 1,
                _ => 2,
            });
        }
        let mut file = OutputFile::create(output)?;
        let stream = Stream {
            weights: self.weights,
            plan: &plan,
        };
        let writer = file.writer();
        let done = match container {
            Container::Gguf => stream.run(self.begin_gguf(&plan, writer)?, progress),
            _ => stream.run(self.begin_safetensors(&plan, writer)?, progress),
        };
        // The container's words for a full disk do not say which file it was.
        let tensors = done.map_err(|error| match error {
            ExportError::Write(crate::files::WriteError::Io(source)) => {
                ExportError::io(output, source)
            }
            other => other,
        })?;
        let bytes = file.finish()?;
        Ok(Written { bytes, tensors })
    }

    fn llama_layout(&self) -> Result<Vec<Tensor>, ExportError> {
        let state = Weight::Block(0, BlockWeight::InitialState);
        if self.weights.describe(state).is_ok() {
            return Err(ExportError::InitialState);
        }
        Ok(llama::layout(self.config, self.weights)?)
    }

    fn begin_gguf<W: Write>(
        &self,
        plan: &[(Tensor, Planned)],
        out: W,
    ) -> Result<Body<W>, ExportError> {
        let version = self.config.version;
        let architecture =
            llama::architecture(version).ok_or(ExportError::NoArchitecture { version })?;
        let mut file = GgufWriter::new();
        let about = llama::About {
            config: self.config,
            weights: self.weights,
            name: &self.name,
            source: self.source,
            tokenizer: self.tokenizer.as_ref(),
            quantization: self.quantization,
            main_format: main_format(plan),
        };
        llama::metadata(&mut file, architecture, &about)?;
        for (tensor, planned) in plan {
            file.tensor(&tensor.name, planned.format, &tensor.shape)?;
        }
        Ok(file.begin(out)?)
    }

    fn begin_safetensors<W: Write>(
        &self,
        plan: &[(Tensor, Planned)],
        out: W,
    ) -> Result<Body<W>, ExportError> {
        let mut file = SafetensorsWriter::new();
        // What other programs look for before they load a file.
        file.set("format", "pt");
        for (key, epsilon, usual) in [
            (
                "norm_eps",
                self.config.norm_epsilon,
                crate::names::NORM_EPSILON,
            ),
            (
                "group_norm_eps",
                self.config.group_norm_epsilon,
                crate::names::GROUP_NORM_EPSILON,
            ),
        ] {
            if epsilon.to_bits() != usual.to_bits() {
                file.set(key, &epsilon.to_string());
            }
        }
        let errors: BTreeMap<&str, f64> = plan
            .iter()
            .filter_map(|(tensor, planned)| Some((tensor.name.as_str(), planned.error?)))
            .collect();
        if !errors.is_empty() {
            let text = serde_json::json!(errors).to_string();
            file.set(crate::model_file::ERRORS_KEY, &text);
        }
        for (tensor, planned) in plan {
            file.tensor(&tensor.name, planned.format, &tensor.shape)?;
        }
        Ok(file.begin(out)?)
    }
}

/// The format of most bytes.
fn main_format(plan: &[(Tensor, Planned)]) -> Format {
    let mut bytes: BTreeMap<Format, u64> = BTreeMap::new();
    for (tensor, planned) in plan {
        *bytes.entry(planned.format).or_default() += size(tensor, planned.format).unwrap_or(0);
    }
    bytes
        .into_iter()
        .max_by_key(|(_, bytes)| *bytes)
        .map_or(Format::F16, |(format, _)| format)
}

/// Bytes of a tensor, or `None` where they overflow.
fn size(tensor: &Tensor, format: Format) -> Option<u64> {
    let (cols, outer) = tensor.shape.split_last()?;
    let row = format.row_bytes(*cols)? as u64;
    outer
        .iter()
        .try_fold(row, |product, n| product.checked_mul(*n as u64))
}

/// Tensors on their way to a file.
struct Stream<'a> {
    weights: &'a dyn Weights,
    plan: &'a [(Tensor, Planned)],
}

impl Stream<'_> {
    fn run<W: Write>(
        &self,
        mut body: Body<W>,
        progress: OnProgress<'_>,
    ) -> Result<Vec<WrittenTensor>, ExportError> {
        let sizes = self
            .plan
            .iter()
            .map(|(tensor, planned)| size(tensor, planned.format).unwrap_or(0));
        let mut told = Progress {
            done: 0,
            total: sizes.fold(0, u64::saturating_add),
        };
        let mut tell = |bytes: usize| {
            told.done += bytes as u64;
            match progress(told) {
                ControlFlow::Continue(()) => Ok(()),
                ControlFlow::Break(()) => Err(ExportError::Interrupted),
            }
        };
        tell(0)?;
        let mut slab = Vec::new();
        let mut written = Vec::with_capacity(self.plan.len());
        for (tensor, planned) in self.plan {
            if let Some(weight) = tensor.source.verbatim() {
                self.rows(weight, tensor, planned.format, &mut slab, &mut |bytes| {
                    body.write(&tensor.name, bytes)?;
                    tell(bytes.len())
                })?;
            } else {
                self.whole(&tensor.source, tensor, planned.format, &mut slab)?;
                body.write(&tensor.name, &slab)?;
                tell(slab.len())?;
            }
            written.push(WrittenTensor {
                name: tensor.name.clone(),
                format: planned.format,
                bytes: size(tensor, planned.format).unwrap_or(0),
                error: planned.error,
            });
        }
        body.finish()?;
        Ok(written)
    }

    /// A logical tensor, slab by slab.
    fn rows(
        &self,
        weight: Weight,
        tensor: &Tensor,
        format: Format,
        slab: &mut Vec<u8>,
        write: &mut dyn FnMut(&[u8]) -> Result<(), ExportError>,
    ) -> Result<(), ExportError> {
        let shape = self.weights.describe(weight)?.1;
        let row_bytes = format.row_bytes(shape.cols.0).unwrap_or(0);
        // Made or expanded rows take room too, in formats of at most four bytes an element.
        let largest = row_bytes.max(shape.cols.0.saturating_mul(4)).max(1);
        let count = (SLAB / largest).max(1);
        for first in (0..shape.rows.0).step_by(count) {
            let rows = first..shape.rows.0.min(first + count);
            slab.resize(row_bytes * rows.len(), 0);
            let mut failed = None;
            self.weights.with_rows(weight, rows, &mut |matrix| {
                // Straight out of the map where nothing changes.
                let result = if matrix.format() == format {
                    write(matrix.bytes())
                } else {
                    encode_rows(&tensor.name, matrix, format, slab)?;
                    write(slab)
                };
                failed = result.err();
                Ok(())
            })?;
            if let Some(error) = failed {
                return Err(error);
            }
        }
        Ok(())
    }

    /// A small tensor that is put together.
    fn whole(
        &self,
        source: &Source,
        tensor: &Tensor,
        format: Format,
        out: &mut Vec<u8>,
    ) -> Result<(), ExportError> {
        let values = source.values(self.weights)?;
        let bytes = size(tensor, format).and_then(|n| usize::try_from(n).ok());
        out.clear();
        out.resize(bytes.unwrap_or(0), 0);
        Ok(pack(&tensor.name, &values, format, out)?)
    }
}
