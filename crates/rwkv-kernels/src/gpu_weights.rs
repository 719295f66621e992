//! Weights in GPU memory.

use crate::{
    Error, Format, Matrix, Result,
    formats::{GpuLayout, outside_f16},
    kernels::u32_of,
};
use rayon::prelude::*;
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
    layout: &'static GpuLayout,
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
    /// read, columns that are no whole number of its blocks, or a row that passes the adapter's limits, [`Error::Gpu`]
    /// when it does not fit.
    pub fn new(
        gpu: &Gpu,
        name: &str,
        matrix: &Matrix<'_>,
        format: Format,
        upload: &mut Upload,
    ) -> Result<Self> {
        Self::in_parts(gpu, name, matrix, format, upload, u64::MAX)
    }

    /// As [`GpuMatrix::new`], in as few parts as have no buffer of more than `most` bytes nor more than the adapter can
    /// bind.
    ///
    /// # Errors
    /// Those of [`GpuMatrix::new`].
    pub fn in_parts(
        gpu: &Gpu,
        name: &str,
        matrix: &Matrix<'_>,
        format: Format,
        upload: &mut Upload,
        most: u64,
    ) -> Result<Self> {
        let shape = matrix.shape();
        let layout = format.gpu_layout().ok_or_else(|| {
            Error::shape(
                name,
                format!("the kernels do not read {format} directly; convert it to f16 or f32"),
            )
        })?;
        let cols = shape.cols.0;
        let Some(packed_row) = format.row_bytes(cols) else {
            let block = format.spec().block();
            return Err(Error::shape(
                name,
                format!(
                    "{cols} columns are no whole number of {format}'s blocks of {block}; choose a format with \
                     smaller blocks, or f16"
                ),
            ));
        };
        let row_bytes = layout.row_bytes(cols);
        let limits = &gpu.capabilities().limits;
        let largest = limits.binding_bytes.min(limits.buffer_bytes).min(most);
        let widest = row_bytes.iter().copied().max().unwrap_or(0).max(1) as u64;
        let fit = usize::try_from(largest / widest).unwrap_or(usize::MAX);
        if fit == 0 {
            return Err(Error::shape(
                name,
                format!("a row of {widest} bytes passes the limit of {largest}"),
            ));
        }
        // As the file has it, row after row, if nothing moves: then no copy is made on this side.
        let verbatim = matrix.format() == format && row_bytes == [packed_row];
        let rows_per_slab = (SLAB / packed_row.max(1)).clamp(1, shape.rows.0.max(1));
        let mut slabs: Vec<Vec<u8>> = row_bytes
            .iter()
            .map(|bytes| vec![0; if verbatim { 0 } else { bytes * rows_per_slab }])
            .collect();
        let mut chunks = Vec::new();
        let mut first = 0;
        while first < shape.rows.0 {
            let rows = fit.min(shape.rows.0 - first);
            let mut parts = (0..)
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
                    upload.write(&parts[0], (start * packed_row) as u64, bytes)?;
                    continue;
                }
                let slab = Slab {
                    first: first + start,
                    rows: count,
                    row_bytes: &row_bytes,
                };
                slab.pack(name, matrix, format, layout, &mut slabs)?;
                for ((part, slab), bytes) in parts.iter().zip(&slabs).zip(&row_bytes) {
                    upload.write(part, (start * bytes) as u64, &slab[..bytes * count])?;
                }
            }
            if let Some(table) = layout.table() {
                let bytes: &[u8] = bytemuck::cast_slice(table);
                let name = format!("{name}.table");
                let buffer = gpu.buffer(BufferKind::Storage, &name, bytes.len() as u64)?;
                upload.write(&buffer, 0, bytes)?;
                parts.push(buffer);
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
            layout,
            shape,
            chunks,
        })
    }

    /// A matrix of zeros in one of the formats whose layout is one part, for a kernel to write.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn zeros(gpu: &Gpu, name: &str, shape: Shape, format: Format) -> Result<Self> {
        let unwritten = || Error::shape(name, format!("no kernel writes {format}"));
        let layout = format.gpu_layout().ok_or_else(unwritten)?;
        let [bytes] = layout.row_bytes(shape.cols.0)[..] else {
            return Err(unwritten());
        };
        let limits = &gpu.capabilities().limits;
        let largest = limits.binding_bytes.min(limits.buffer_bytes);
        let fit = usize::try_from(largest / bytes.max(1) as u64).unwrap_or(usize::MAX);
        if fit == 0 {
            return Err(Error::shape(
                name,
                format!("a row of {bytes} bytes passes the adapter's limit of {largest}"),
            ));
        }
        let mut chunks = Vec::new();
        for first in (0..shape.rows.0).step_by(fit) {
            let rows = fit.min(shape.rows.0 - first);
            let part = gpu.buffer(
                BufferKind::Storage,
                &format!("{name}.0"),
                (rows * bytes) as u64,
            )?;
            chunks.push(Chunk {
                first_row: u32_of(name, first)?,
                rows: u32_of(name, rows)?,
                parts: vec![part],
                group: OnceLock::new(),
            });
        }
        Ok(Self {
            format,
            layout,
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

    /// How its rows lie.
    pub(crate) fn layout(&self) -> &'static GpuLayout {
        self.layout
    }

    /// Units a row: what the kernels step in.
    pub(crate) fn units(&self) -> usize {
        self.shape.cols.0.div_ceil(self.layout.unit())
    }

    /// Whether the last unit of a row reaches past the last column.
    pub(crate) fn ragged(&self) -> bool {
        !self.shape.cols.0.is_multiple_of(self.layout.unit())
    }
}

impl Chunk {
    /// `rows` rows from `first_row` on, in these buffers.
    pub(crate) fn new(first_row: u32, rows: u32, parts: Vec<Buffer>) -> Self {
        Self {
            first_row,
            rows,
            parts,
            group: OnceLock::new(),
        }
    }

    /// The number of its first row.
    pub(crate) fn first(&self) -> usize {
        self.first_row as usize
    }

    /// One more than that of its last.
    pub(crate) fn end(&self) -> usize {
        self.first() + self.rows as usize
    }

    /// Its buffers.
    pub(crate) fn parts(&self) -> &[Buffer] {
        &self.parts
    }

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

/// Rows of a matrix that are repacked together.
struct Slab<'a> {
    first: usize,
    rows: usize,
    row_bytes: &'a [usize],
}

impl Slab<'_> {
    /// Repacks the rows into the beginning of `slabs`, one a part, on all processors. Padding stays as it is.
    fn pack(
        &self,
        name: &str,
        matrix: &Matrix<'_>,
        format: Format,
        layout: &GpuLayout,
        slabs: &mut [Vec<u8>],
    ) -> Result<()> {
        // A few runs of rows a thread, and their pieces of each part.
        let run = self.rows.div_ceil(4 * rayon::current_num_threads()).max(1);
        let mut runs: Vec<Vec<&mut [u8]>> =
            (0..self.rows.div_ceil(run)).map(|_| Vec::new()).collect();
        for (slab, bytes) in slabs.iter_mut().zip(self.row_bytes) {
            let used = &mut slab[..bytes * self.rows];
            for (pieces, piece) in runs.iter_mut().zip(used.chunks_mut((bytes * run).max(1))) {
                pieces.push(piece);
            }
        }
        let pack_run = |(number, pieces): (usize, Vec<&mut [u8]>)| -> Result<()> {
            let mut rows_of: Vec<_> = pieces
                .into_iter()
                .zip(self.row_bytes)
                .map(|(piece, bytes)| piece.chunks_exact_mut((*bytes).max(1)))
                .collect();
            let mut converter = Converter::new(name, matrix, format);
            let start = number * run;
            for row in start..(start + run).min(self.rows) {
                let source = converter.row(self.first + row)?;
                let mut targets: Vec<&mut [u8]> =
                    rows_of.iter_mut().filter_map(Iterator::next).collect();
                layout.pack_row(source, &mut targets);
            }
            Ok(())
        };
        runs.into_par_iter().enumerate().try_for_each(pack_run)
    }
}

/// Rows of a matrix in a format, as they are or converted.
struct Converter<'a> {
    name: &'a str,
    matrix: &'a Matrix<'a>,
    format: Format,
    values: Vec<f32>,
    converted: Vec<u8>,
}

impl<'a> Converter<'a> {
    fn new(name: &'a str, matrix: &'a Matrix<'a>, format: Format) -> Self {
        let cols = matrix.shape().cols.0;
        let (values, bytes) = if matrix.format() == format {
            (0, 0)
        } else {
            (cols, format.row_bytes(cols).unwrap_or(0))
        };
        Self {
            name,
            matrix,
            format,
            values: vec![0.0; values],
            converted: vec![0; bytes],
        }
    }

    fn row(&mut self, index: usize) -> Result<&[u8]> {
        if self.matrix.format() == self.format {
            return Ok(self.matrix.packed_rows(index, 1));
        }
        self.matrix.expand_row(index, &mut self.values);
        if self.format == Format::F16
            && let Some(value) = outside_f16(&self.values)
        {
            return Err(Error::OutsideF16 {
                tensor: self.name.to_owned(),
                value,
            });
        }
        let spec = self.format.spec();
        spec.quantize(&self.values, &mut self.converted);
        Ok(&self.converted)
    }
}
