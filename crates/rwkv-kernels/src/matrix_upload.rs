//! Filling a matrix in GPU memory row by row, from one matrix in host memory or from several.

use crate::{
    Error, Format, GpuMatrix, Matrix, Result,
    formats::{GpuLayout, outside_f16},
    gpu_weights::Chunk,
    kernels::u32_of,
};
use rayon::prelude::*;
use rwkv_gpu::{BufferKind, Gpu};
use rwkv_mem::{Shape, Upload};
use std::sync::Arc;

/// Bytes that are repacked on the host at a time.
const SLAB: usize = 8 << 20;

/// A matrix on its way to GPU memory: all of it is allocated, and [`push`](Self::push) fills rows from the top.
/// Dropping it frees everything.
pub struct MatrixUpload {
    matrix: GpuMatrix,
    name: String,
    /// Bytes of a row in each part.
    row_bytes: Vec<usize>,
    filled: usize,
}

impl MatrixUpload {
    /// Allocates a matrix of `shape` in `format`, in as few parts as have no buffer of more than `most` bytes nor more
    /// than the adapter can bind. `name` names it in errors.
    ///
    /// # Errors
    /// Those of [`GpuMatrix::new`] but for its values.
    pub fn new(gpu: &Gpu, name: &str, shape: Shape, format: Format, most: u64) -> Result<Self> {
        let layout = format.gpu_layout().ok_or_else(|| {
            Error::shape(
                name,
                format!("the kernels do not read {format} directly; convert it to f16 or f32"),
            )
        })?;
        let cols = shape.cols.0;
        if format.row_bytes(cols).is_none() {
            let block = format.spec().block();
            return Err(Error::shape(
                name,
                format!(
                    "{cols} columns are no whole number of {format}'s blocks of {block}; choose a format with \
                     smaller blocks, or f16"
                ),
            ));
        }
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
            if let Some(table) = layout.table() {
                let bytes: &[u8] = bytemuck::cast_slice(table);
                let name = format!("{name}.table");
                let buffer = gpu.buffer(BufferKind::Storage, &name, bytes.len() as u64)?;
                gpu.write(&buffer, 0, bytes)?;
                parts.push(buffer);
            }
            chunks.push(Chunk {
                first_row: u32_of(name, first)?,
                rows: u32_of(name, rows)?,
                base: 0,
                parts,
                group: Arc::default(),
            });
            first += rows;
        }
        let matrix = GpuMatrix {
            format,
            layout,
            shape,
            chunks,
        };
        Ok(Self {
            matrix,
            name: name.to_owned(),
            row_bytes,
            filled: 0,
        })
    }

    /// The rows of `source` become the next ones, converted if their format is another; `name` names them in errors.
    ///
    /// # Errors
    /// [`Error::Shape`] for other columns or more rows than are left, [`Error::OutsideF16`] for a value that f16 cannot
    /// hold, [`Error::Gpu`] when the device is gone.
    pub fn push(&mut self, name: &str, source: &Matrix<'_>, upload: &mut Upload) -> Result<()> {
        let (shape, format) = (self.matrix.shape, self.matrix.format);
        let rows = source.shape().rows.0;
        if source.shape().cols != shape.cols || rows > shape.rows.0 - self.filled {
            let problem = format!(
                "a {} matrix from row {} of a {shape} one",
                source.shape(),
                self.filled
            );
            return Err(Error::shape(name, problem));
        }
        let packed_row = format.row_bytes(shape.cols.0).unwrap_or(0);
        // As the file has it, row after row, if nothing moves: then no copy is made on this side.
        let verbatim = source.format() == format && self.row_bytes == [packed_row];
        let rows_per_slab = (SLAB / packed_row.max(1)).clamp(1, rows.max(1));
        let mut slabs: Vec<Vec<u8>> = self
            .row_bytes
            .iter()
            .map(|bytes| vec![0; if verbatim { 0 } else { bytes * rows_per_slab }])
            .collect();
        for chunk in &self.matrix.chunks {
            let start = chunk.first().max(self.filled);
            let end = chunk.end().min(self.filled + rows);
            for first in (start..end).step_by(rows_per_slab) {
                let count = rows_per_slab.min(end - first);
                let (from, to) = (first - self.filled, first - chunk.first());
                if verbatim {
                    let bytes = source.packed_rows(from, count);
                    upload.write(&chunk.parts[0], (to * packed_row) as u64, bytes)?;
                    continue;
                }
                let slab = Slab {
                    first: from,
                    rows: count,
                    row_bytes: &self.row_bytes,
                };
                slab.pack(name, source, format, self.matrix.layout, &mut slabs)?;
                for ((part, slab), bytes) in chunk.parts.iter().zip(&slabs).zip(&self.row_bytes) {
                    upload.write(part, (to * bytes) as u64, &slab[..bytes * count])?;
                }
            }
        }
        self.filled += rows;
        Ok(())
    }

    /// The matrix, when all rows are filled.
    ///
    /// # Errors
    /// [`Error::Shape`] when rows are missing.
    pub fn finish(self) -> Result<GpuMatrix> {
        if self.filled != self.matrix.shape.rows.0 {
            let problem = format!("{} of {} rows were given", self.filled, self.matrix.shape);
            return Err(Error::shape(self.name, problem));
        }
        Ok(self.matrix)
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
