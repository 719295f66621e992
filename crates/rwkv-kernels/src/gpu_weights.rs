//! Weights in GPU memory.

use crate::{Error, Format, Matrix, Result, kernels::u32_of};
use rwkv_gpu::{BindGroup, Binding, Buffer, BufferKind, Gpu, Pipeline};
use rwkv_mem::{Shape, Upload};
use std::sync::OnceLock;

/// A vector (norm, bias, mix) in f32.
#[derive(Debug)]
pub struct GpuVector {
    buffer: Buffer,
    len: usize,
}

impl GpuVector {
    /// Uploads `values`; `name` names it in errors.
    ///
    /// # Errors
    /// [`Error::Gpu`] when it does not fit.
    pub fn new(gpu: &Gpu, name: &str, values: &[f32], upload: &mut Upload) -> Result<Self> {
        let buffer = gpu.buffer(BufferKind::Storage, name, size_of_val(values) as u64)?;
        upload.write(&buffer, 0, bytemuck::cast_slice(values))?;
        Ok(Self {
            buffer,
            len: values.len(),
        })
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of GPU memory.
    pub fn bytes(&self) -> u64 {
        self.buffer.size()
    }

    pub(crate) fn binding(&self) -> Binding<'_> {
        Binding::from(&self.buffer)
    }
}

/// A matrix in one of the kernels' layouts, cut by rows where it passes the adapter's limits.
#[derive(Debug)]
pub struct GpuMatrix {
    format: Format,
    shape: Shape,
    chunks: Vec<Chunk>,
}

/// Rows of a matrix whose parts each fit one binding.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) first_row: u32,
    pub(crate) rows: u32,
    parts: Vec<Buffer>,
    /// Pipelines that read one format share the layout of group 1, and so this.
    group: OnceLock<BindGroup>,
}

/// Bytes that are repacked on the host at a time.
const SLAB: usize = 8 << 20;

impl GpuMatrix {
    /// Uploads `matrix` in `format`, converting if it has another; `name` names it in errors. When it fails, nothing
    /// stays allocated.
    ///
    /// # Errors
    /// [`Error::OutsideF16`] for a value that f16 cannot hold, [`Error::Shape`] for a format that the kernels do not
    /// read or a row that passes the adapter's limits, [`Error::Gpu`] when it does not fit.
    pub fn new(
        gpu: &Gpu,
        name: &str,
        matrix: &Matrix<'_>,
        format: Format,
        upload: &mut Upload,
    ) -> Result<Self> {
        let shape = matrix.shape();
        let layout = format.gpu_layout().ok_or_else(|| {
            Error::shape(name, format!("the kernels do not read {format} directly"))
        })?;
        let cols = shape.cols.0;
        let Some(packed_row) = format.row_bytes(cols) else {
            return Err(Error::shape(
                name,
                format!("{cols} columns are no whole number of {format} blocks"),
            ));
        };
        let row_bytes = layout.row_bytes(cols);
        let limits = &gpu.capabilities().limits;
        let largest = limits.binding_bytes.min(limits.buffer_bytes);
        let widest = row_bytes.iter().copied().max().unwrap_or(0).max(1) as u64;
        let fit = usize::try_from(largest / widest).unwrap_or(usize::MAX);
        if fit == 0 {
            return Err(Error::shape(
                name,
                format!("a row of {widest} bytes passes the adapter's limit of {largest}"),
            ));
        }
        // As the file has it, row after row, if nothing moves: then no copy is made on this side.
        let verbatim = matrix.format() == format && row_bytes == [packed_row];
        let rows_per_slab = (SLAB / packed_row.max(1)).max(1);
        let mut chunks = Vec::new();
        let mut first = 0;
        while first < shape.rows.0 {
            let rows = fit.min(shape.rows.0 - first);
            let parts = (0..)
                .zip(&row_bytes)
                .map(|(part, bytes)| {
                    gpu.buffer(
                        BufferKind::Storage,
                        &format!("{name}.{part}"),
                        (rows * bytes) as u64,
                    )
                })
                .collect::<rwkv_gpu::Result<Vec<_>>>()?;
            for start in (0..rows).step_by(rows_per_slab) {
                let count = rows_per_slab.min(rows - start);
                if verbatim {
                    let bytes = matrix.packed_rows(first + start, count);
                    write_padded(upload, &parts[0], (start * packed_row) as u64, bytes)?;
                    continue;
                }
                let mut slabs: Vec<Vec<u8>> = row_bytes
                    .iter()
                    .map(|bytes| vec![0; bytes * count])
                    .collect();
                let mut rows_of: Vec<_> = slabs
                    .iter_mut()
                    .zip(&row_bytes)
                    .map(|(slab, bytes)| slab.chunks_exact_mut((*bytes).max(1)))
                    .collect();
                let mut converted = vec![0; packed_row];
                for row in 0..count {
                    let source = matrix.packed_rows(first + start + row, 1);
                    let source = if matrix.format() == format {
                        source
                    } else {
                        convert(name, matrix, first + start + row, format, &mut converted)?;
                        &converted
                    };
                    let mut targets: Vec<&mut [u8]> =
                        rows_of.iter_mut().filter_map(Iterator::next).collect();
                    layout.pack_row(source, &mut targets);
                }
                for ((part, slab), bytes) in parts.iter().zip(&slabs).zip(&row_bytes) {
                    write_padded(upload, part, (start * bytes) as u64, slab)?;
                }
            }
            chunks.push(Chunk {
                first_row: u32_of(name, first)?,
                rows: u32_of(name, rows)?,
                parts,
                group: OnceLock::new(),
            });
            first += rows;
        }
        Ok(Self {
            format,
            shape,
            chunks,
        })
    }

    /// How it is packed.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Rows (outputs) and columns (inputs).
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Bytes of GPU memory.
    pub fn bytes(&self) -> u64 {
        self.chunks
            .iter()
            .flat_map(|c| &c.parts)
            .map(Buffer::size)
            .sum()
    }

    pub(crate) fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// Units a row: what the kernels step in.
    pub(crate) fn units(&self) -> usize {
        self.format
            .gpu_layout()
            .map_or(0, |l| self.shape.cols.0.div_ceil(l.unit()))
    }

    /// Whether the last unit of a row reaches past the last column.
    pub(crate) fn ragged(&self) -> bool {
        self.format
            .gpu_layout()
            .is_some_and(|l| !self.shape.cols.0.is_multiple_of(l.unit()))
    }
}

impl Chunk {
    /// The bind group of the weight's parts.
    pub(crate) fn group(&self, gpu: &Gpu, pipeline: &Pipeline) -> Result<BindGroup> {
        if let Some(group) = self.group.get() {
            return Ok(group.clone());
        }
        let parts: Vec<_> = self.parts.iter().map(Binding::from).collect();
        let group = gpu.bind(pipeline, 1, &parts)?;
        Ok(self.group.get_or_init(|| group).clone())
    }
}

/// Converts row `index` of `matrix` to `format`.
fn convert(
    name: &str,
    matrix: &Matrix<'_>,
    index: usize,
    format: Format,
    out: &mut [u8],
) -> Result<()> {
    let mut values = vec![0.0; matrix.shape().cols.0];
    matrix.expand_row(index, &mut values);
    if format == Format::F16
        && let Some(value) = values.iter().find(|x| x.is_finite() && x.abs() > 65504.0)
    {
        return Err(Error::OutsideF16 {
            tensor: name.to_owned(),
            value: *value,
        });
    }
    format.spec().quantize(&values, out);
    Ok(())
}

/// Writes are whole words; the buffer is too.
fn write_padded(upload: &mut Upload, buffer: &Buffer, offset: u64, bytes: &[u8]) -> Result<()> {
    if bytes.len().is_multiple_of(4) {
        return Ok(upload.write(buffer, offset, bytes)?);
    }
    let mut padded = bytes.to_vec();
    padded.resize(bytes.len().next_multiple_of(4), 0);
    Ok(upload.write(buffer, offset, &padded)?)
}
