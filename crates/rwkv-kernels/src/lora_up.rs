//! The second matrices of a layer's low-rank pairs in one buffer, for kernels that read all of them.

use crate::{Error, Format, GpuMatrix, Result, kernels::u32_of};
use rwkv_gpu::{BindGroup, Binding, Buffer, BufferKind, Gpu, Pipeline};
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
const MOST: usize = 4;

/// Bytes of a unit.
const UNIT: u64 = 16;

impl LoraUp {
    /// Copies `matrices` on the GPU, in this order; `name` names the buffer in errors. None when they are not all F16 or
    /// all F32: then the kernels that read each on its own must serve.
    ///
    /// # Errors
    /// [`Error::Shape`] when their rows differ in number, when there are none or more than four, or when one has no
    /// columns; [`Error::Gpu`] when the buffer does not fit.
    pub fn pack(gpu: &Gpu, name: &str, matrices: &[&GpuMatrix]) -> Result<Option<Self>> {
        let Some(first) = matrices.first().filter(|_| matrices.len() <= MOST) else {
            let problem = format!("{} matrices, where 1 to {MOST} are packed", matrices.len());
            return Err(Error::shape(name, problem));
        };
        let (format, channels) = (first.format(), first.shape().rows.0);
        if !matches!(format, Format::F16 | Format::F32)
            || matrices.iter().any(|m| m.format() != format)
        {
            return Ok(None);
        }
        let mut parts = Vec::new();
        let mut end = 0;
        for matrix in matrices {
            let shape = matrix.shape();
            if shape.rows.0 != channels || shape.cols.0 == 0 {
                let problem = format!("a {shape} matrix among those of {channels} rows");
                return Err(Error::shape(name, problem));
            }
            parts.push(LoraPart {
                rank: shape.cols.0,
                first: u32_of(name, end)?,
                units: u32_of(name, matrix.units())?,
            });
            end += channels * matrix.units();
        }
        u32_of(name, end)?;
        let buffer = gpu.buffer(BufferKind::Storage, name, end as u64 * UNIT)?;
        let mut recorder = gpu.recorder(name);
        for (matrix, part) in matrices.iter().zip(&parts) {
            for chunk in matrix.chunks() {
                let Some(rows) = chunk.parts().first() else {
                    continue;
                };
                let unit = u64::from(part.first) + chunk.first() as u64 * u64::from(part.units);
                let bytes = u64::from(chunk.rows) * u64::from(part.units) * UNIT;
                let from = u64::from(chunk.base) * u64::from(part.units) * UNIT;
                recorder.copy((rows, from), (&buffer, unit * UNIT), bytes);
            }
        }
        recorder.submit()?;
        Ok(Some(Self {
            buffer,
            format,
            channels,
            parts,
            group: OnceLock::new(),
        }))
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
