//! From a plan to a file.

use super::{
    Export, ExportError, OnProgress, Progress, Written, WrittenTensor, llama, plan::Tensor,
};
use crate::{
    files::{Body, Container, GgufWriter, SafetensorsWriter},
    names::gguf,
    output_file::OutputFile,
    state_file::{ORDER_KEY, VALUE_KEY, is_tuned_state},
};
use half::f16;
use rwkv_kernels::{Csr, CsrColumns};
use rwkv_sched::{ModelConfig, Weight, Weights, encode_rows, pack, slab_rows};
use std::{collections::BTreeMap, io::Write, ops::ControlFlow, path::Path};

/// Bytes that are encoded and then written at a time.
const SLAB: usize = 8 << 20;

/// Takes the next bytes of a part of a sparse matrix, which it names.
type WritePart<'a> = &'a mut dyn FnMut(&str, &[u8]) -> Result<(), ExportError>;

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
        let plan = self.plan(container)?;
        let failed = |source| ExportError::io(output, source);
        let mut file = OutputFile::create(output).map_err(failed)?;
        let stream = Stream {
            weights: self.weights,
            config: self.config,
            plan: &plan,
        };
        let writer = file.writer();
        let done = match container {
            Container::Gguf => stream.run(self.begin_gguf(&plan, writer)?, progress),
            _ => stream.run(self.begin_safetensors(&plan, writer)?, progress),
        };
        // The container's words for a full disk do not say which file it was.
        let tensors = done.map_err(|error| match error {
            ExportError::Write(crate::files::WriteError::Io(source)) => failed(source),
            other => other,
        })?;
        let bytes = file.finish().map_err(failed)?;
        Ok(Written { bytes, tensors })
    }

    fn begin_gguf<W: Write>(&self, plan: &[Tensor], out: W) -> Result<Body<W>, ExportError> {
        let version = self.config.version;
        let architecture =
            gguf::architecture(version).ok_or(ExportError::NoArchitecture { version })?;
        let mut file = GgufWriter::new();
        let about = llama::About {
            config: self.config,
            weights: self.weights,
            name: &self.name,
            source: self.source,
            tokenizer: self.tokenizer.as_ref(),
            quantization: self.quantization,
            main_format: Self::main_format(plan),
        };
        llama::metadata(&mut file, architecture, &about)?;
        for tensor in plan {
            file.tensor(tensor.name(), tensor.format, &tensor.shape)?;
        }
        Ok(file.begin(out)?)
    }

    fn begin_safetensors<W: Write>(&self, plan: &[Tensor], out: W) -> Result<Body<W>, ExportError> {
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
        if plan.iter().any(|tensor| is_tuned_state(tensor.name())) {
            file.set(ORDER_KEY, VALUE_KEY);
        }
        let errors: BTreeMap<&str, f64> = plan
            .iter()
            .filter_map(|tensor| Some((tensor.name(), tensor.error?)))
            .collect();
        if !errors.is_empty() {
            let text = serde_json::json!(errors).to_string();
            file.set(crate::model_file::ERRORS_KEY, &text);
        }
        for tensor in plan {
            match (tensor.entries(), tensor.shape.as_slice()) {
                (Some(entries), &[rows, cols]) => {
                    let entries = usize::try_from(entries).unwrap_or(usize::MAX);
                    file.csr(tensor.name(), [rows, cols], entries, Csr::is_wide(cols))?;
                }
                (_, shape) => {
                    file.tensor(tensor.name(), tensor.format, shape)?;
                }
            }
        }
        Ok(file.begin(out)?)
    }
}

/// Tensors on their way to a file.
struct Stream<'a> {
    weights: &'a dyn Weights,
    config: &'a ModelConfig,
    plan: &'a [Tensor],
}

impl Stream<'_> {
    fn run<W: Write>(
        &self,
        mut body: Body<W>,
        progress: OnProgress<'_>,
    ) -> Result<Vec<WrittenTensor>, ExportError> {
        let sizes = self.plan.iter().map(|tensor| tensor.bytes().unwrap_or(0));
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
        for tensor in self.plan {
            if let (Some(weight), Some(offsets)) = (tensor.plain(), &tensor.row_offsets) {
                self.sparse(weight, tensor, offsets, &mut |part, bytes| {
                    body.write(part, bytes)?;
                    tell(bytes.len())
                })?;
            } else if let Some(weight) = tensor.plain() {
                self.rows(weight, tensor, &mut slab, &mut |bytes| {
                    body.write(tensor.name(), bytes)?;
                    tell(bytes.len())
                })?;
            } else {
                self.whole(tensor, &mut slab)?;
                body.write(tensor.name(), &slab)?;
                tell(slab.len())?;
            }
            written.push(WrittenTensor {
                name: tensor.name().to_owned(),
                format: tensor.format,
                entries: tensor.entries(),
                bytes: tensor.bytes().unwrap_or(0),
                error: tensor.error,
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
        slab: &mut Vec<u8>,
        write: &mut dyn FnMut(&[u8]) -> Result<(), ExportError>,
    ) -> Result<(), ExportError> {
        let shape = self.weights.describe(weight)?.1;
        let format = tensor.format;
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
                    encode_rows(tensor.name(), matrix, format, slab)?;
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

    /// The parts of a sparse matrix, slab by slab: once for the columns, once for the values.
    fn sparse(
        &self,
        weight: Weight,
        tensor: &Tensor,
        offsets: &[u32],
        write: WritePart<'_>,
    ) -> Result<(), ExportError> {
        let [first, columns, values] = SafetensorsWriter::csr_parts(tensor.name());
        write(&first, &little_endian(offsets, u32::to_le_bytes))?;
        self.entries(weight, tensor.name(), &mut |slab| {
            let bytes = match slab.columns() {
                CsrColumns::U16(columns) => little_endian(columns, u16::to_le_bytes),
                CsrColumns::U32(columns) => little_endian(columns, u32::to_le_bytes),
            };
            write(&columns, &bytes)
        })?;
        self.entries(weight, tensor.name(), &mut |slab| {
            write(&values, &little_endian(slab.values(), f16::to_le_bytes))
        })
    }

    /// What is not zero in a logical tensor, slab by slab.
    fn entries(
        &self,
        weight: Weight,
        name: &str,
        each: &mut dyn FnMut(&Csr<'_>) -> Result<(), ExportError>,
    ) -> Result<(), ExportError> {
        let shape = self.weights.describe(weight)?.1;
        let count = slab_rows(shape.cols.0);
        for first in (0..shape.rows.0).step_by(count) {
            let rows = first..shape.rows.0.min(first + count);
            let mut slab = None;
            self.weights.with_rows(weight, rows, &mut |matrix| {
                slab = Some(Csr::from_dense(name, matrix, 0.0)?);
                Ok(())
            })?;
            if let Some(slab) = slab {
                each(&slab)?;
            }
        }
        Ok(())
    }

    /// A small tensor that is put together.
    fn whole(&self, tensor: &Tensor, out: &mut Vec<u8>) -> Result<(), ExportError> {
        let values = tensor.row.gather(self.weights, self.config)?;
        let bytes = tensor.bytes().and_then(|n| usize::try_from(n).ok());
        out.clear();
        out.resize(bytes.unwrap_or(0), 0);
        Ok(pack(tensor.name(), &values, tensor.format, out)?)
    }
}

/// The bytes of `numbers`.
fn little_endian<T: Copy, const N: usize>(numbers: &[T], bytes: fn(T) -> [u8; N]) -> Vec<u8> {
    numbers.iter().flat_map(|n| bytes(*n)).collect()
}
