//! Sparse weights on their way to GPU memory, some rows at a time.

use crate::{Csr, Error, GpuCsr, Result, gpu_weights::Chunk, kernels::u32_of};
use half::f16;
use rayon::prelude::*;
use rwkv_gpu::{Buffer, BufferKind, Gpu};
use rwkv_mem::{Rows, Shape, Upload};

/// A [`GpuCsr`] that is filled from above, so that a matrix never has to be on the host as a whole: how many entries
/// its rows have is known before they come.
pub struct CsrUpload {
    name: String,
    matrix: GpuCsr,
    /// For each row: its first unit in its part, and its entries.
    places: Vec<[u32; 2]>,
    /// Rows that have come.
    filled: usize,
}

/// Entries of a unit, as in the WGSL.
pub(crate) const UNIT: usize = 8;

/// Bytes of columns that are gathered on the host at a time, but for a row that has more.
const SLAB: usize = 4 << 20;

impl CsrUpload {
    /// Room for a matrix whose rows begin at `row_offsets`, as [`Csr::row_offsets`] has them, with columns of 32 bits
    /// where `wide`, else 16; `name` names it in errors.
    ///
    /// # Errors
    /// [`Error::Shape`] for offsets that do not ascend from 0 or are not one more than the rows, or for a row that
    /// passes the adapter's limits; [`Error::Gpu`] when it does not fit.
    pub fn new(
        gpu: &Gpu,
        name: &str,
        shape: Shape,
        row_offsets: &[u32],
        wide: bool,
        upload: &mut Upload,
    ) -> Result<Self> {
        Self::in_parts(gpu, name, shape, row_offsets, wide, upload, u64::MAX)
    }

    pub(crate) fn in_parts(
        gpu: &Gpu,
        name: &str,
        shape: Shape,
        row_offsets: &[u32],
        wide: bool,
        upload: &mut Upload,
        most: u64,
    ) -> Result<Self> {
        let rows = shape.rows.0;
        let fits = rows.checked_add(1) == Some(row_offsets.len())
            && row_offsets.first() == Some(&0)
            && row_offsets.is_sorted();
        if !fits {
            let problem = format!("{} row offsets do not make {shape}", row_offsets.len());
            return Err(Error::shape(name, problem));
        }
        let index = if wide { "u32" } else { "u16" };
        let limits = &gpu.capabilities().limits;
        let largest = limits.binding_bytes.min(limits.buffer_bytes).min(most);
        let largest = usize::try_from(largest).unwrap_or(usize::MAX);
        // Where kernels count entries, these fit 32 bits.
        let most_units = (largest / (UNIT * width(index))).min(1 << 28);
        let most_rows = largest / 8;
        let entries = |row: usize| match row_offsets.get(row..row + 2) {
            Some([start, end]) => end.saturating_sub(*start),
            _ => 0,
        };
        let mut made = Self {
            name: name.to_owned(),
            matrix: GpuCsr {
                shape,
                index,
                entries: row_offsets.last().map_or(0, |n| *n as usize),
                chunks: Vec::new(),
            },
            places: Vec::with_capacity(rows),
            filled: 0,
        };
        let mut first = 0;
        while first < rows {
            let (mut end, mut units) = (first, 0);
            while end < rows && end - first < most_rows {
                let more = units_of(entries(end));
                if units + more > most_units {
                    break;
                }
                made.places.push([u32_of(name, units)?, entries(end)]);
                units += more;
                end += 1;
            }
            if end == first {
                return Err(Error::shape(
                    name,
                    format!(
                        "row {first} has {} entries, which pass the limit of {largest} bytes",
                        entries(first)
                    ),
                ));
            }
            let buffer = |part: &str, bytes: usize| {
                // The kernels bind at least one vector.
                let bytes = bytes.max(16) as u64;
                gpu.buffer(BufferKind::Storage, &format!("{name}.{part}"), bytes)
            };
            let places = made.places.get(first..end).unwrap_or_default();
            let part = buffer("rows", places.len() * 8)?;
            upload.write(&part, 0, bytemuck::cast_slice(places))?;
            let parts = vec![
                part,
                buffer("columns", units * UNIT * width(index))?,
                buffer("values", units * UNIT * 2)?,
            ];
            let (start, count) = (u32_of(name, first)?, u32_of(name, end - first)?);
            made.matrix.chunks.push(Chunk::new(start, count, parts));
            first = end;
        }
        Ok(made)
    }

    /// Fills the next rows.
    ///
    /// # Errors
    /// [`Error::Shape`] for rows that are not those that were announced, [`Error::Gpu`] for a device that is gone.
    pub fn push(&mut self, rows: &Csr<'_>, upload: &mut Upload) -> Result<()> {
        let Shape {
            rows: Rows(count),
            cols,
        } = rows.shape();
        let places = self.places.get(self.filled..).unwrap_or_default();
        let same = |(row, place): (usize, &[u32; 2])| rows.row_entries(row) == place[1] as usize;
        let announced = cols == self.matrix.shape.cols
            && count <= places.len()
            && rows.columns().width() == width(self.matrix.index)
            && places.iter().take(count).enumerate().all(same);
        if !announced {
            return Err(Error::shape(
                self.name.clone(),
                "its entries changed while it was read",
            ));
        }
        let slab = SLAB / (UNIT * width(self.matrix.index));
        for chunk in &self.matrix.chunks {
            let [_, columns, values] = chunk.parts() else {
                continue;
            };
            let mut first = chunk.first().max(self.filled);
            let end = chunk.end().min(self.filled + count);
            while first < end {
                let places = self.places.get(first..end).unwrap_or_default();
                let run = Run::of(places, slab);
                let from = first - self.filled;
                run.write(rows, from, columns, values, upload)?;
                first += run.places.len();
            }
        }
        self.filled += count;
        Ok(())
    }

    /// The matrix, when all rows are filled.
    ///
    /// # Errors
    /// [`Error::Shape`] when rows are missing.
    pub fn finish(self) -> Result<GpuCsr> {
        if self.filled != self.matrix.shape.rows.0 {
            let problem = format!("{} of {} rows were given", self.filled, self.matrix.shape);
            return Err(Error::shape(self.name, problem));
        }
        Ok(self.matrix)
    }
}

/// Bytes of a column.
fn width(index: &str) -> usize {
    if index == "u32" { 4 } else { 2 }
}

fn units_of(entries: u32) -> usize {
    (entries as usize).div_ceil(UNIT)
}

/// Rows of one part that are gathered together.
struct Run<'a> {
    places: &'a [[u32; 2]],
    /// Of all its rows.
    units: usize,
}

impl<'a> Run<'a> {
    /// The first of `places`: one, and as many more as make no more than `most` units.
    fn of(places: &'a [[u32; 2]], most: usize) -> Self {
        let (mut count, mut units) = (0, 0);
        for [_, entries] in places {
            let more = units_of(*entries);
            if count > 0 && units + more > most {
                break;
            }
            count += 1;
            units += more;
        }
        Self {
            places: places.get(..count).unwrap_or_default(),
            units,
        }
    }

    /// Writes these rows, which are `rows` from `first` on.
    fn write(
        &self,
        rows: &Csr<'_>,
        first: usize,
        columns: &Buffer,
        values: &Buffer,
        upload: &mut Upload,
    ) -> Result<()> {
        let start = self.places.first().map_or(0, |place| u64::from(place[0])) * UNIT as u64;
        let width = rows.columns().width();
        let wide = width == 4;
        let bytes = self.gather(width, |row, out| {
            for ((column, _), out) in rows.row(first + row).zip(out.chunks_exact_mut(width)) {
                // Checked: below the matrix's columns, which fit.
                let bytes = u32::try_from(column).unwrap_or(u32::MAX).to_le_bytes();
                out.copy_from_slice(if wide { &bytes } else { &bytes[..2] });
            }
        });
        upload.write(columns, start * width as u64, &bytes)?;
        let bytes = self.gather(2, |row, out| {
            for ((_, value), out) in rows.row(first + row).zip(out.chunks_exact_mut(2)) {
                out.copy_from_slice(&f16::from_f32(value).to_le_bytes());
            }
        });
        upload.write(values, start * 2, &bytes)?;
        Ok(())
    }

    /// A part's bytes of these rows, `each` an entry, padded to whole units; `fill` gets a row's.
    fn gather(&self, each: usize, fill: impl Fn(usize, &mut [u8]) + Sync) -> Vec<u8> {
        let mut bytes = vec![0; self.units * UNIT * each];
        let mut rest = bytes.as_mut_slice();
        let mut pieces = Vec::with_capacity(self.places.len());
        for [_, entries] in self.places {
            let (piece, more) =
                std::mem::take(&mut rest).split_at_mut(units_of(*entries) * UNIT * each);
            pieces.push(piece);
            rest = more;
        }
        pieces
            .into_par_iter()
            .enumerate()
            .for_each(|(row, piece)| fill(row, piece));
        bytes
    }
}
