//! Filling a matrix in GPU memory row by row, from one matrix in host memory or from several.

use crate::{
    Error, Format, GpuMatrix, Matrix, Result,
    formats::{GpuLayout, outside_f16},
    gpu_weights::Chunk,
    kernels::u32_of,
};
use rayon::prelude::*;
use rwkv_gpu::{BufferKind, Gpu};
use rwkv_mem::{Shape, Slab, Target, Upload};
use std::{ops::Range, sync::Arc};

/// Bytes that a thread repacks before they go where the GPU copies them from.
const CACHED: usize = 128 << 10;

/// Elements that a thread converts together, in whole rows: encoders work on many blocks side by side.
const RUN: usize = 1 << 14;

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
                offset: 0,
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
        Ok(Self::onto(name, matrix))
    }

    /// All rows of `matrix`, which is no view of rows of another one.
    pub(crate) fn onto(name: &str, matrix: GpuMatrix) -> Self {
        Self {
            row_bytes: matrix.layout.row_bytes(matrix.shape.cols.0),
            matrix,
            name: name.to_owned(),
            filled: 0,
        }
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
        let slab_row: usize = self.row_bytes.iter().map(|n| n.next_multiple_of(16)).sum();
        let rows_per_slab = (Upload::MOST / slab_row.max(1)).max(1);
        for chunk in &self.matrix.chunks {
            let start = chunk.first().max(self.filled);
            let end = chunk.end().min(self.filled + rows);
            if verbatim && start < end {
                let bytes = source.packed_rows(start - self.filled, end - start);
                let to = chunk.offset + ((start - chunk.first()) * packed_row) as u64;
                upload.write(&chunk.parts[0], to, bytes)?;
                continue;
            }
            for first in (start..end).step_by(rows_per_slab) {
                let run = Run {
                    name,
                    source,
                    format,
                    layout: self.matrix.layout,
                    row_bytes: &self.row_bytes,
                    first: first - self.filled,
                    rows: rows_per_slab.min(end - first),
                };
                let parts = chunk.parts.iter().zip(&self.row_bytes);
                let targets: Vec<_> = parts
                    .map(|(buffer, bytes)| Target {
                        buffer,
                        offset: chunk.offset + ((first - chunk.first()) * bytes) as u64,
                        bytes: (run.rows * bytes) as u64,
                    })
                    .collect();
                upload.fill(&targets, |slab| run.write(slab))?;
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

/// Rows that are repacked together.
struct Run<'a> {
    name: &'a str,
    source: &'a Matrix<'a>,
    format: Format,
    layout: &'static GpuLayout,
    row_bytes: &'a [usize],
    first: usize,
    rows: usize,
}

impl Run<'_> {
    /// Repacks them into `slab`, a target a part, on all processors.
    fn write(&self, slab: &Slab<'_>) -> Result<()> {
        let row: usize = self.row_bytes.iter().sum();
        // Several tasks a thread, and what one of them repacks stays in its processor's cache.
        let fair = self.rows.div_ceil(8 * rayon::current_num_threads());
        let rows = fair.min(CACHED / row.max(1)).max(1);
        let tasks = (0..self.rows.div_ceil(rows)).into_par_iter();
        let packer = || Packer {
            converter: Converter::new(self.name, self.source, self.format, rows),
            parts: self.row_bytes.iter().map(|n| vec![0; n * rows]).collect(),
        };
        tasks.try_for_each_init(packer, |packer, task| {
            let start = task * rows;
            let end = (start + rows).min(self.rows);
            packer.pack(self, start..end)?;
            let parts = packer.parts.iter().zip(self.row_bytes).enumerate();
            for (index, (part, bytes)) in parts.filter(|(_, (_, bytes))| **bytes > 0) {
                let mut piece = slab.piece(index, start * bytes..end * bytes)?;
                piece.write(&part[..(end - start) * bytes])?;
            }
            Ok(())
        })
    }
}

/// What a thread repacks with. Mapped memory is written from the first byte to the last, so rows meet here before.
struct Packer<'a> {
    converter: Converter<'a>,
    /// Rows of each part.
    parts: Vec<Vec<u8>>,
}

impl Packer<'_> {
    /// Repacks these rows of `run` into the beginning of each part. Padding stays as it is.
    fn pack(&mut self, run: &Run<'_>, rows: Range<usize>) -> Result<()> {
        let parts = self.parts.iter_mut().zip(run.row_bytes);
        let mut rows_of: Vec<_> = parts
            .map(|(part, bytes)| part.chunks_exact_mut((*bytes).max(1)))
            .collect();
        let together = self.converter.together;
        for first in rows.clone().step_by(together) {
            let count = together.min(rows.end - first);
            let source = self.converter.rows(run.first + first, count)?;
            for row in source.chunks_exact((source.len() / count).max(1)) {
                let mut targets: Vec<&mut [u8]> =
                    rows_of.iter_mut().filter_map(Iterator::next).collect();
                run.layout.pack_row(row, &mut targets);
            }
        }
        Ok(())
    }
}

/// Rows of a matrix in a format, as they are or converted.
struct Converter<'a> {
    name: &'a str,
    matrix: &'a Matrix<'a>,
    format: Format,
    /// Rows at a time, at most.
    together: usize,
    values: Vec<f32>,
    converted: Vec<u8>,
}

impl<'a> Converter<'a> {
    fn new(name: &'a str, matrix: &'a Matrix<'a>, format: Format, rows: usize) -> Self {
        let cols = matrix.shape().cols.0;
        let together = (RUN / cols.max(1)).clamp(1, rows.max(1));
        let (values, bytes) = if matrix.format() == format {
            (0, 0)
        } else {
            (cols, format.row_bytes(cols).unwrap_or(0))
        };
        Self {
            name,
            matrix,
            format,
            together,
            values: vec![0.0; together * values],
            converted: vec![0; together * bytes],
        }
    }

    /// `count` rows from `first` on.
    fn rows(&mut self, first: usize, count: usize) -> Result<&[u8]> {
        let packed = self.matrix.packed_rows(first, count);
        if self.matrix.format() == self.format {
            return Ok(packed);
        }
        let share = |all: usize| all / self.together * count;
        let (elements, bytes) = (share(self.values.len()), share(self.converted.len()));
        let values = &mut self.values[..elements];
        let converted = &mut self.converted[..bytes];
        self.matrix.format().spec().dequantize(packed, values);
        if self.format == Format::F16
            && let Some(value) = outside_f16(values)
        {
            return Err(Error::OutsideF16 {
                tensor: self.name.to_owned(),
                value,
            });
        }
        self.format.spec().quantize(values, converted);
        Ok(converted)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use rwkv_mem::{Cols, Rows};

    /// Rows are converted several at a time; the last of a task are fewer.
    #[test]
    fn rows_are_packed_one_by_one() {
        let (rows, cols, format) = (7, 4096, Format::Q8_0);
        let values: Vec<f32> = (0..rows * cols).map(|i| (i as f32 * 0.37).sin()).collect();
        let source = bytemuck::cast_slice(&values);
        let source = Matrix::new(Format::F32, Rows(rows), Cols(cols), source).unwrap();
        let layout = format.gpu_layout().unwrap();
        let row_bytes = layout.row_bytes(cols);
        let run = Run {
            name: "matrix",
            source: &source,
            format,
            layout,
            row_bytes: &row_bytes,
            first: 1,
            rows: rows - 1,
        };
        let mut packer = Packer {
            converter: Converter::new("matrix", &source, format, rows - 1),
            parts: row_bytes.iter().map(|n| vec![0; n * rows]).collect(),
        };
        assert_eq!(packer.converter.together, 4);
        packer.pack(&run, 0..rows - 1).unwrap();
        for (row, values) in values.chunks_exact(cols).skip(1).enumerate() {
            let mut packed = vec![0; format.row_bytes(cols).unwrap()];
            format.spec().quantize(values, &mut packed);
            let mut want: Vec<Vec<u8>> = row_bytes.iter().map(|n| vec![0; *n]).collect();
            let mut parts: Vec<&mut [u8]> = want.iter_mut().map(Vec::as_mut_slice).collect();
            layout.pack_row(&packed, &mut parts);
            for ((got, want), bytes) in packer.parts.iter().zip(&want).zip(&row_bytes) {
                assert!(got[row * bytes..][..*bytes] == want[..], "row {row}");
            }
        }
    }
}
