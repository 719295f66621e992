//! Weights in GPU memory by column: what kernels read that skip inputs which are zero.

use crate::{
    Error, Format, GpuMatrix, Kernels, Matrix, Result, gpu_weights::Chunk, kernels::u32_of,
    ops::Transpose,
};
use rwkv_gpu::{Buffer, BufferKind, Gpu};
use rwkv_mem::{Shape, Upload};

/// An F16 matrix stored transposed: the weights of one input (a column of the matrix) lie one after the other, padded to
/// 16 bytes, so element (output, input) is half `input · stride + output`. Cut by inputs where it passes the adapter's
/// limits.
#[derive(Debug)]
pub struct GpuColumns {
    shape: Shape,
    /// Their rows are inputs.
    chunks: Vec<Chunk>,
}

/// Bytes of F16 rows that wait on the GPU to be turned.
const SLAB: usize = 32 << 20;

/// Inputs of a part are a multiple of this: tiles of the kernel that turns, and offsets into activations that every
/// adapter can bind.
const GRAIN: usize = 64;

impl GpuColumns {
    /// What the number of outputs of a piece must be a multiple of, but for the last one.
    pub const OUTPUTS: usize = GRAIN;

    /// Uploads `matrix` as F16, converting if it has another format, and turns it on the GPU slab by slab; `name` names
    /// it in errors.
    ///
    /// # Errors
    /// [`Error::OutsideF16`] for a value that f16 cannot hold, [`Error::Shape`] for columns that pass the adapter's
    /// limits, [`Error::Gpu`] when it does not fit.
    pub fn new(
        kernels: &Kernels,
        name: &str,
        matrix: &Matrix<'_>,
        upload: &mut Upload,
    ) -> Result<Self> {
        Self::in_parts(kernels, name, matrix, upload, u64::MAX)
    }

    /// As [`GpuColumns::new`], in as few parts as have no buffer of more than `most` bytes nor more than the adapter can
    /// bind.
    ///
    /// # Errors
    /// Those of [`GpuColumns::new`].
    pub fn in_parts(
        kernels: &Kernels,
        name: &str,
        matrix: &Matrix<'_>,
        upload: &mut Upload,
        most: u64,
    ) -> Result<Self> {
        let made = Self::zeros_in_parts(kernels.gpu(), name, matrix.shape(), most)?;
        made.fill(kernels, name, matrix, 0, upload)?;
        Ok(made)
    }

    /// Sets the outputs from `first` on, a multiple of [`OUTPUTS`](Self::OUTPUTS), to the rows of `matrix`.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn fill(
        &self,
        kernels: &Kernels,
        name: &str,
        matrix: &Matrix<'_>,
        first: usize,
        upload: &mut Upload,
    ) -> Result<()> {
        let (gpu, shape) = (kernels.gpu(), matrix.shape());
        if shape.cols.0 == 0 {
            return Ok(());
        }
        let row_bytes = shape.cols.0.next_multiple_of(8) * 2;
        let slab = (SLAB / row_bytes).next_multiple_of(GRAIN).max(GRAIN);
        for start in (0..shape.rows.0).step_by(slab) {
            let rows = matrix.rows(start..start + slab)?;
            let rows = GpuMatrix::new(gpu, name, &rows, Format::F16, upload)?;
            let dispatches = kernels.transpose(&Transpose {
                x: &rows,
                first_output: first + start,
                y: self,
            })?;
            let mut recorder = gpu.recorder("transpose");
            recorder.dispatch(&dispatches);
            recorder.submit()?;
        }
        Ok(())
    }

    /// A matrix of zeros, for [`Kernels::transpose`] to write: `shape` has outputs as rows and inputs as columns.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn zeros(gpu: &Gpu, name: &str, shape: Shape) -> Result<Self> {
        Self::zeros_in_parts(gpu, name, shape, u64::MAX)
    }

    fn zeros_in_parts(gpu: &Gpu, name: &str, shape: Shape, most: u64) -> Result<Self> {
        let (outputs, inputs) = (shape.rows.0, shape.cols.0);
        let bytes = outputs.next_multiple_of(8) * 2;
        let limits = &gpu.capabilities().limits;
        let largest = limits.binding_bytes.min(limits.buffer_bytes).min(most);
        let mut fit = usize::try_from(largest / bytes.max(1) as u64).unwrap_or(usize::MAX);
        if fit < inputs {
            fit -= fit % GRAIN;
        }
        if fit == 0 {
            return Err(Error::shape(
                name,
                format!(
                    "{GRAIN} columns of {bytes} bytes pass the limit of {largest}; keep this matrix by rows"
                ),
            ));
        }
        let mut chunks = Vec::new();
        if outputs > 0 {
            for first in (0..inputs).step_by(fit) {
                let count = fit.min(inputs - first);
                let label = format!("{name}.columns");
                let part = gpu.buffer(BufferKind::Storage, &label, (count * bytes) as u64)?;
                chunks.push(Chunk::new(
                    u32_of(name, first)?,
                    u32_of(name, count)?,
                    vec![part],
                ));
            }
        }
        Ok(Self { shape, chunks })
    }

    /// Rows (outputs) and columns (inputs) of the matrix.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Bytes of GPU memory.
    pub fn bytes(&self) -> u64 {
        let parts = self.chunks.iter().flat_map(Chunk::parts);
        parts.map(Buffer::size).sum()
    }

    pub(crate) fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// 16-byte units of a column.
    pub(crate) fn units(&self) -> usize {
        self.shape.rows.0.div_ceil(8)
    }
}
