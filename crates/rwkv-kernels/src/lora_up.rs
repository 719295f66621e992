//! The second matrices of a layer's low-rank pairs in one buffer, for kernels that read all of them.

use crate::{
    Error, Format, GpuMatrix, Matrix, MatrixUpload, Result, gpu_weights::Chunk, kernels::u32_of,
};
use rwkv_gpu::{BindGroup, Binding, Buffer, BufferKind, Gpu, Pipeline};
use rwkv_mem::{Cols, Rows, Shape, Upload};
use std::sync::OnceLock;

/// Up to four matrices `[channels, rank]` of F16 or of F32, one after the other in one buffer; each row is padded to 16
/// bytes, as in a [`GpuMatrix`].
#[derive(Debug)]
pub struct LoraUp {
    buffer: Buffer,
    format: Format,
    channels: usize,
    parts: Vec<LoraPart>,
    /// Pipelines that read one format share the layout of group 1, and so this.
    group: OnceLock<BindGroup>,
}

/// Where a matrix lies.
#[derive(Clone, Copy, Debug)]
struct LoraPart {
    rank: usize,
    /// The first unit of 16 bytes: all rows of the matrices before it.
    first: u32,
    /// Units a row.
    units: u32,
}

/// The most matrices that the kernels read together.
pub(crate) const MOST_PAIRS: usize = 4;

/// Bytes of a unit.
const UNIT: u64 = 16;

impl LoraPart {
    /// Its first byte.
    fn offset(self) -> u64 {
        u64::from(self.first) * UNIT
    }
}

impl LoraUp {
    /// Room for matrices of these ranks and `channels` rows; `name` names the buffer in errors. None when they cannot lie
    /// like this: for another format than F16 and F32, or where one would begin where the adapter binds nothing. Then the
    /// kernels that read each on its own must serve.
    ///
    /// # Errors
    /// [`Error::Shape`] when there are none or more than four, or when one has no columns; [`Error::Gpu`] when the buffer
    /// does not fit.
    pub fn new(
        gpu: &Gpu,
        name: &str,
        format: Format,
        channels: usize,
        ranks: &[usize],
    ) -> Result<Option<Self>> {
        if !(1..=MOST_PAIRS).contains(&ranks.len()) || ranks.contains(&0) {
            let problem =
                format!("matrices of ranks {ranks:?}, where 1 to {MOST_PAIRS} lie together");
            return Err(Error::shape(name, problem));
        }
        let layout = match format {
            Format::F16 | Format::F32 => format.gpu_layout(),
            _ => None,
        };
        let Some(layout) = layout else {
            return Ok(None);
        };
        let mut parts = Vec::new();
        let mut end = 0;
        for &rank in ranks {
            let units = rank.div_ceil(layout.unit());
            parts.push(LoraPart {
                rank,
                first: u32_of(name, end)?,
                units: u32_of(name, units)?,
            });
            end += channels * units;
        }
        u32_of(name, end)?;
        let alignment = gpu.capabilities().limits.offset_alignment;
        if parts.iter().any(|part| part.offset() % alignment > 0) {
            return Ok(None);
        }
        let buffer = gpu.buffer(BufferKind::Storage, name, end as u64 * UNIT)?;
        Ok(Some(Self {
            buffer,
            format,
            channels,
            parts,
            group: OnceLock::new(),
        }))
    }

    /// Uploads `matrices` in `format`, in this order. None as for [`new`](Self::new).
    ///
    /// # Errors
    /// Those of [`new`](Self::new); [`Error::Shape`] when their rows differ in number, [`Error::OutsideF16`] for a value
    /// that f16 cannot hold.
    pub fn upload(
        gpu: &Gpu,
        name: &str,
        matrices: &[Matrix<'_>],
        format: Format,
        upload: &mut Upload,
    ) -> Result<Option<Self>> {
        let channels = matrices.first().map_or(0, |first| first.shape().rows.0);
        let ranks: Vec<usize> = matrices.iter().map(|m| m.shape().cols.0).collect();
        let made = Self::new(gpu, name, format, channels, &ranks)?;
        if let Some(made) = &made {
            for (index, matrix) in matrices.iter().enumerate() {
                let mut filled = made.filling(name, index)?;
                filled.push(name, matrix, upload)?;
                filled.finish()?;
            }
        }
        Ok(made)
    }

    /// Fills the `index`-th matrix, in the memory that it has here; what it becomes serves kernels that read it alone.
    ///
    /// # Errors
    /// [`Error::Shape`] when there is none.
    pub fn filling(&self, name: &str, index: usize) -> Result<MatrixUpload> {
        let missing = || Error::shape(name, format!("matrix {index} of {}", self.parts.len()));
        let part = self.parts.get(index).ok_or_else(missing)?;
        let chunk = Chunk {
            offset: part.offset(),
            ..Chunk::new(0, u32_of(name, self.channels)?, vec![self.buffer.clone()])
        };
        let matrix = GpuMatrix {
            format: self.format,
            layout: self.format.gpu_layout().ok_or_else(missing)?,
            shape: Shape {
                rows: Rows(self.channels),
                cols: Cols(part.rank),
            },
            chunks: vec![chunk],
        };
        Ok(MatrixUpload::onto(name, matrix))
    }

    /// Bytes of GPU memory.
    pub fn bytes(&self) -> u64 {
        self.buffer.size()
    }

    /// F16 or F32.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Rows of each matrix.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// The rank of each matrix.
    pub fn ranks(&self) -> impl Iterator<Item = usize> {
        self.parts.iter().map(|p| p.rank)
    }

    /// The first unit of each matrix, and its units a row.
    pub(crate) fn places(&self) -> impl Iterator<Item = (u32, u32)> {
        self.parts.iter().map(|p| (p.first, p.units))
    }

    /// Elements of a unit.
    pub(crate) fn unit(&self) -> usize {
        if self.format == Format::F32 { 4 } else { 8 }
    }

    /// The bind group of the weights.
    pub(crate) fn group(&self, gpu: &Gpu, pipeline: &Pipeline) -> Result<BindGroup> {
        if let Some(group) = self.group.get() {
            return Ok(group.clone());
        }
        let group = gpu.bind(pipeline, 1, &[Binding::from(&self.buffer)])?;
        Ok(self.group.get_or_init(|| group).clone())
    }
}
