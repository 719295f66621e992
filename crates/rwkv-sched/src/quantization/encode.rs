//! Rows of one format to rows of another.

use crate::{Error, Result};
use rayon::prelude::*;
use rwkv_kernels::{Format, Matrix, formats::outside_f16};
use rwkv_mem::Shape;

/// Rows that a thread encodes at a time, in elements.
const RUN: usize = 1 << 14;

/// Packs all rows of `matrix` as `format` into `out`, on all threads; `name` names the tensor in errors.
///
/// # Errors
/// [`Error::Weight`] for sizes that do not fit, [`rwkv_kernels::Error::OutsideF16`] for a value that f16 cannot hold.
pub fn encode_rows(name: &str, matrix: &Matrix<'_>, format: Format, out: &mut [u8]) -> Result<()> {
    let Shape { rows, cols } = matrix.shape();
    let row_bytes = format
        .row_bytes(cols.0)
        .filter(|n| n.checked_mul(rows.0) == Some(out.len()))
        .ok_or_else(|| Error::Weight {
            name: name.to_owned(),
            problem: format!(
                "{} do not make {} bytes of {format}",
                matrix.shape(),
                out.len()
            ),
        })?;
    if matrix.format() == format {
        out.copy_from_slice(matrix.bytes());
        return Ok(());
    }
    if row_bytes == 0 {
        return Ok(());
    }
    let rows_a_run = (RUN / cols.0.max(1)).max(1);
    out.par_chunks_mut(row_bytes * rows_a_run)
        .enumerate()
        .try_for_each(|(run, out)| {
            let first = run * rows_a_run;
            let count = out.len() / row_bytes;
            let mut values = vec![0.0; count * cols.0];
            matrix
                .format()
                .spec()
                .dequantize(matrix.packed_rows(first, count), &mut values);
            pack(name, &values, format, out)
        })
}

/// Packs whole blocks of `values`.
///
/// # Errors
/// [`rwkv_kernels::Error::OutsideF16`] for a value that f16 cannot hold.
pub fn pack(name: &str, values: &[f32], format: Format, out: &mut [u8]) -> Result<()> {
    if format == Format::F16
        && let Some(value) = outside_f16(values)
    {
        return Err(rwkv_kernels::Error::OutsideF16 {
            tensor: name.to_owned(),
            value,
        }
        .into());
    }
    format.spec().quantize(values, out);
    Ok(())
}

/// Bytes of a tensor.
pub(crate) fn packed_bytes((format, shape): (Format, Shape)) -> u64 {
    let row = format.row_bytes(shape.cols.0).unwrap_or(0) as u64;
    row.saturating_mul(shape.rows.0 as u64)
}
