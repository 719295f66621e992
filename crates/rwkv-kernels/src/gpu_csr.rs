//! Sparse weights in GPU memory.

use crate::{
    Csr, CsrColumns, Result,
    csr_upload::{CsrUpload, UNIT},
    gpu_weights::Chunk,
};
use rwkv_gpu::{Buffer, Gpu};
use rwkv_mem::{Shape, Upload};

/// A matrix of compressed sparse rows as the kernels read it: each row begins at a whole unit of eight entries. Cut by
/// rows where it passes the adapter's limits.
#[derive(Debug)]
pub struct GpuCsr {
    pub(crate) shape: Shape,
    /// The value of the axis INDEX.
    pub(crate) index: &'static str,
    pub(crate) entries: usize,
    /// Parts: where rows are (first unit, entries), columns, values.
    pub(crate) chunks: Vec<Chunk>,
}

impl GpuCsr {
    /// Uploads `matrix`; `name` names it in errors.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] for a row that passes the adapter's limits, [`crate::Error::Gpu`] when it does not fit.
    pub fn new(gpu: &Gpu, name: &str, matrix: &Csr<'_>, upload: &mut Upload) -> Result<Self> {
        Self::in_parts(gpu, name, matrix, upload, u64::MAX)
    }

    /// As [`GpuCsr::new`], in as few parts as have no buffer of more than `most` bytes nor more than the adapter can
    /// bind.
    ///
    /// # Errors
    /// Those of [`GpuCsr::new`].
    pub fn in_parts(
        gpu: &Gpu,
        name: &str,
        matrix: &Csr<'_>,
        upload: &mut Upload,
        most: u64,
    ) -> Result<Self> {
        let wide = matches!(matrix.columns(), CsrColumns::U32(_));
        let mut made = CsrUpload::in_parts(
            gpu,
            name,
            matrix.shape(),
            matrix.row_offsets(),
            wide,
            upload,
            most,
        )?;
        made.push(matrix, upload)?;
        made.finish()
    }

    /// Bytes of GPU memory that a matrix of this shape with so many entries takes, about: rows end with half a unit that
    /// is empty.
    pub fn about(shape: Shape, entries: u64) -> u64 {
        let entry = if Csr::is_wide(shape.cols.0) { 6 } else { 4 };
        let rows = shape.rows.0 as u64;
        let padded = entries.saturating_add(rows.saturating_mul(UNIT as u64 / 2));
        padded
            .saturating_mul(entry)
            .saturating_add(rows.saturating_mul(8))
    }

    /// Rows (outputs) and columns (inputs).
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Entries.
    pub fn entries(&self) -> usize {
        self.entries
    }

    /// Bytes of GPU memory.
    pub fn bytes(&self) -> u64 {
        let parts = self.chunks.iter().flat_map(Chunk::parts);
        parts.map(Buffer::size).sum()
    }

    /// The value of the axis INDEX.
    pub(crate) fn index(&self) -> &'static str {
        self.index
    }

    pub(crate) fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }
}
