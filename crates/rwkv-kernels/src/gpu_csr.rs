//! Sparse weights in GPU memory.

use crate::{Csr, CsrColumns, Error, Result, gpu_weights::Chunk, kernels::u32_of};
use half::f16;
use rwkv_gpu::{Buffer, BufferKind, Gpu};
use rwkv_mem::{Shape, Upload};

/// A matrix of compressed sparse rows as the kernels read it: each row begins at a whole unit of eight entries. Cut by
/// rows where it passes the adapter's limits.
#[derive(Debug)]
pub struct GpuCsr {
    shape: Shape,
    index: &'static str,
    entries: usize,
    /// Parts: where rows are (first unit, entries), columns, values.
    chunks: Vec<Chunk>,
}

/// Entries of a unit, as in the WGSL.
const UNIT: usize = 8;

/// Bytes of values that are gathered on the host at a time.
const SLAB: usize = 4 << 20;

impl GpuCsr {
    /// Uploads `matrix`; `name` names it in errors.
    ///
    /// # Errors
    /// [`Error::Shape`] for a row that passes the adapter's limits, [`Error::Gpu`] when it does not fit.
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
        let limits = &gpu.capabilities().limits;
        let largest = limits.binding_bytes.min(limits.buffer_bytes).min(most);
        let largest = usize::try_from(largest).unwrap_or(usize::MAX);
        // Where kernels count entries, these fit 32 bits.
        let most_units = (largest / (UNIT * matrix.columns().width())).min(1 << 28);
        let most_rows = largest / 8;
        let rows = matrix.shape().rows.0;
        let mut chunks = Vec::new();
        let mut first = 0;
        while first < rows {
            let (mut end, mut units) = (first, 0);
            while end < rows && end - first < most_rows {
                let more = matrix.row_entries(end).div_ceil(UNIT);
                if units + more > most_units {
                    break;
                }
                units += more;
                end += 1;
            }
            if end == first {
                return Err(Error::shape(
                    name,
                    format!(
                        "row {first} has {} entries, which pass the limit of {largest} bytes",
                        matrix.row_entries(first)
                    ),
                ));
            }
            let parts = Rows {
                matrix,
                first,
                end,
                units,
            };
            chunks.push(Chunk::new(
                u32_of(name, first)?,
                u32_of(name, end - first)?,
                parts.upload(gpu, name, upload)?,
            ));
            first = end;
        }
        Ok(Self {
            shape: matrix.shape(),
            index: match matrix.columns() {
                CsrColumns::U16(_) => "u16",
                CsrColumns::U32(_) => "u32",
            },
            entries: matrix.values().len(),
            chunks,
        })
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

/// Rows that make one part.
struct Rows<'a> {
    matrix: &'a Csr<'a>,
    first: usize,
    end: usize,
    units: usize,
}

impl Rows<'_> {
    fn upload(&self, gpu: &Gpu, name: &str, upload: &mut Upload) -> Result<Vec<Buffer>> {
        let buffer = |part: &str, bytes: usize| {
            // The kernels bind at least one vector.
            let bytes = bytes.max(16) as u64;
            gpu.buffer(BufferKind::Storage, &format!("{name}.{part}"), bytes)
        };
        let mut places: Vec<[u32; 2]> = Vec::new();
        let mut unit = 0;
        for row in self.first..self.end {
            let entries = self.matrix.row_entries(row);
            places.push([u32_of(name, unit)?, u32_of(name, entries)?]);
            unit += entries.div_ceil(UNIT);
        }
        let rows = buffer("rows", places.len() * 8)?;
        upload.write(&rows, 0, bytemuck::cast_slice(&places))?;

        let width = self.matrix.columns().width();
        let columns = buffer("columns", self.units * UNIT * width)?;
        let mut slabs = Slabs {
            buffer: &columns,
            written: 0,
            slab: Vec::new(),
        };
        let wide = width == 4;
        for row in self.first..self.end {
            for (column, _) in self.matrix.row(row) {
                // Checked: below the matrix's columns, which fit.
                let bytes = u32::try_from(column).unwrap_or(u32::MAX).to_le_bytes();
                slabs
                    .slab
                    .extend_from_slice(if wide { &bytes } else { &bytes[..2] });
            }
            slabs.end_row(UNIT * width, upload)?;
        }
        slabs.flush(upload)?;

        let values = buffer("values", self.units * UNIT * 2)?;
        let mut slabs = Slabs {
            buffer: &values,
            written: 0,
            slab: slabs.slab,
        };
        for row in self.first..self.end {
            for (_, value) in self.matrix.row(row) {
                slabs
                    .slab
                    .extend_from_slice(&f16::from_f32(value).to_le_bytes());
            }
            slabs.end_row(UNIT * 2, upload)?;
        }
        slabs.flush(upload)?;
        Ok(vec![rows, columns, values])
    }
}

/// A buffer that is filled from its beginning, a slab at a time.
struct Slabs<'a> {
    buffer: &'a Buffer,
    written: u64,
    slab: Vec<u8>,
}

impl Slabs<'_> {
    /// Pads the row to whole units of `unit` bytes.
    fn end_row(&mut self, unit: usize, upload: &mut Upload) -> Result<()> {
        self.slab.resize(self.slab.len().next_multiple_of(unit), 0);
        if self.slab.len() < SLAB {
            return Ok(());
        }
        self.flush(upload)
    }

    fn flush(&mut self, upload: &mut Upload) -> Result<()> {
        upload.write(self.buffer, self.written, &self.slab)?;
        self.written += self.slab.len() as u64;
        self.slab.clear();
        Ok(())
    }
}
