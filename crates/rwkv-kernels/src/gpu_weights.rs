//! Weights in GPU memory.

use crate::{
    Error, Format, Matrix, Result, formats::GpuLayout, kernels::u32_of, matrix_upload::MatrixUpload,
};
use rwkv_gpu::{BindGroup, Binding, Buffer, BufferKind, Gpu, Pipeline};
use rwkv_mem::{Rows, Shape, Upload};
use std::{
    ops::Range,
    sync::{Arc, OnceLock},
};

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
        // Whole fours, as kernels read them.
        let bytes = values.len().next_multiple_of(4) * size_of::<f32>();
        let buffer = gpu.buffer(BufferKind::Storage, name, bytes as u64)?;
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
    pub(crate) format: Format,
    pub(crate) layout: &'static GpuLayout,
    pub(crate) shape: Shape,
    pub(crate) chunks: Vec<Chunk>,
}

/// Rows of a matrix whose parts each fit one binding.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) first_row: u32,
    pub(crate) rows: u32,
    /// The row of `parts` that the first row is: more than 0 in a view.
    pub(crate) base: u32,
    /// The byte of each part that row 0 begins at: more than 0 where other matrices lie before it.
    pub(crate) offset: u64,
    pub(crate) parts: Vec<Buffer>,
    /// Pipelines that read one format share the layout of this group, and views of one matrix its buffers.
    pub(crate) group: Arc<OnceLock<BindGroup>>,
}

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
        let mut made = MatrixUpload::new(gpu, name, matrix.shape(), format, most)?;
        made.push(name, matrix, upload)?;
        made.finish()
    }

    /// Uploads matrices of the same columns one below the other: what one dispatch can read all of. Its members on
    /// their own are its [`view`](Self::view)s. ([`MatrixUpload`] takes them one at a time.)
    ///
    /// # Errors
    /// Those of [`GpuMatrix::new`], and [`Error::Shape`] for none or other columns.
    pub fn stack(
        gpu: &Gpu,
        name: &str,
        members: &[Matrix<'_>],
        format: Format,
        upload: &mut Upload,
    ) -> Result<Self> {
        let Some(first) = members.first() else {
            return Err(Error::shape(name, "a stack of no matrices"));
        };
        let rows = members.iter().map(|m| m.shape().rows.0).sum();
        let shape = Shape {
            rows: Rows(rows),
            cols: first.shape().cols,
        };
        let mut made = MatrixUpload::new(gpu, name, shape, format, u64::MAX)?;
        for member in members {
            made.push(name, member, upload)?;
        }
        made.finish()
    }

    /// The matrix of these rows, in the same memory.
    ///
    /// # Errors
    /// [`Error::Shape`] for rows that it does not have.
    pub fn view(&self, rows: Range<usize>) -> Result<Self> {
        if rows.start > rows.end || rows.end > self.shape.rows.0 {
            let problem = format!("rows {} to {} of {}", rows.start, rows.end, self.shape);
            return Err(Error::shape("a view of a matrix", problem));
        }
        let mut chunks = Vec::new();
        for chunk in &self.chunks {
            let (start, end) = (chunk.first().max(rows.start), chunk.end().min(rows.end));
            if start < end {
                chunks.push(Chunk {
                    first_row: u32_of("rows", start - rows.start)?,
                    rows: u32_of("rows", end - start)?,
                    base: chunk.base + u32_of("rows", start - chunk.first())?,
                    offset: chunk.offset,
                    parts: chunk.parts.clone(),
                    group: chunk.group.clone(),
                });
            }
        }
        Ok(Self {
            format: self.format,
            layout: self.layout,
            shape: Shape {
                rows: Rows(rows.len()),
                cols: self.shape.cols,
            },
            chunks,
        })
    }

    /// Whether one binding reaches all of it; otherwise it passed a limit and was cut by rows.
    pub fn is_whole(&self) -> bool {
        self.chunks.len() == 1
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
                base: 0,
                offset: 0,
                parts: vec![part],
                group: Arc::default(),
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

    /// Bytes of GPU memory that its rows take: a view's are counted in what it is a view of, too.
    pub fn bytes(&self) -> u64 {
        let row: usize = self.layout.row_bytes(self.shape.cols.0).iter().sum();
        let table = self.layout.table().map_or(0, size_of_val);
        (self.shape.rows.0 * row + self.chunks.len() * table) as u64
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
            base: 0,
            offset: 0,
            parts,
            group: Arc::default(),
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

    /// Its buffers, in which it begins at [`offset`](Self::offset).
    pub(crate) fn parts(&self) -> &[Buffer] {
        &self.parts
    }

    /// Its parts as kernels read them.
    pub(crate) fn bindings(&self) -> impl Iterator<Item = Binding<'_>> {
        self.parts.iter().map(|buffer| Binding {
            offset: self.offset,
            ..Binding::from(buffer)
        })
    }

    /// The bind group of the weight's parts.
    pub(crate) fn group(&self, gpu: &Gpu, pipeline: &Pipeline) -> Result<BindGroup> {
        self.group_at(gpu, pipeline, 1)
    }

    /// As [`group`](Self::group), where the pipeline has this format's slots in group `index`.
    pub(crate) fn group_at(&self, gpu: &Gpu, pipeline: &Pipeline, index: u32) -> Result<BindGroup> {
        if let Some(group) = self.group.get() {
            return Ok(group.clone());
        }
        let parts: Vec<_> = self.bindings().collect();
        let group = gpu.bind(pipeline, index, &parts)?;
        Ok(self.group.get_or_init(|| group).clone())
    }
}
