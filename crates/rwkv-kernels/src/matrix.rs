//! A weight matrix in host memory, packed as in its file.

use crate::{Error, Format, Result};
use rwkv_mem::{Cols, Rows, Shape};

/// A borrowed `rows × cols` matrix: `rows` packed rows one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    format: Format,
    shape: Shape,
    row_bytes: usize,
    bytes: &'a [u8],
}

impl<'a> Matrix<'a> {
    /// A view of `bytes`.
    ///
    /// # Errors
    /// [`Error::Shape`] when the size does not fit the shape and the format.
    pub fn new(format: Format, rows: Rows, cols: Cols, bytes: &'a [u8]) -> Result<Self> {
        let shape = Shape { rows, cols };
        let row_bytes = format
            .row_bytes(cols.0)
            .filter(|n| n.checked_mul(rows.0) == Some(bytes.len()));
        match row_bytes {
            Some(row_bytes) => Ok(Self {
                format,
                shape,
                row_bytes,
                bytes,
            }),
            None => Err(Error::shape(
                format!("a {shape} matrix of {format}"),
                format!("{} bytes do not fit", bytes.len()),
            )),
        }
    }

    /// How its elements are packed.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Rows (outputs) and columns (inputs).
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// All packed rows.
    #[inline]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The packed bytes of rows `first .. first + count`, cut to those that exist.
    #[inline]
    pub fn packed_rows(&self, first: usize, count: usize) -> &'a [u8] {
        let end = (first + count).min(self.shape.rows.0);
        &self.bytes[first.min(end) * self.row_bytes..end * self.row_bytes]
    }

    /// The matrix of these rows, cut to those that exist.
    ///
    /// # Errors
    /// None: the rows of a matrix make a matrix.
    pub fn rows(&self, rows: std::ops::Range<usize>) -> Result<Self> {
        let end = rows.end.min(self.shape.rows.0);
        let first = rows.start.min(end);
        let bytes = self.packed_rows(first, end - first);
        Self::new(self.format, Rows(end - first), self.shape.cols, bytes)
    }

    /// Expands row `index` into `out`, which has a place for each column.
    pub fn expand_row(&self, index: usize, out: &mut [f32]) {
        self.format
            .spec()
            .dequantize(self.packed_rows(index, 1), out);
    }
}
