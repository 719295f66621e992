//! Shapes and element types of activations and weights.

use std::fmt;

/// A number of rows: tokens of an activation, outputs of a weight matrix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rows(pub usize);

/// A number of columns: channels of an activation, inputs of a weight matrix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cols(pub usize);

/// A row-major matrix's shape. A vector is one row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Rows.
    pub rows: Rows,
    /// Columns.
    pub cols: Cols,
}

impl Shape {
    /// `rows × cols`.
    pub fn new(rows: usize, cols: usize) -> Self {
        Self {
            rows: Rows(rows),
            cols: Cols(cols),
        }
    }

    /// One row of `cols`.
    pub fn vector(cols: usize) -> Self {
        Self::new(1, cols)
    }

    /// Elements, or `None` past `usize`.
    pub fn elements(self) -> Option<usize> {
        self.rows.0.checked_mul(self.cols.0)
    }

    /// Bytes as `dtype`, or `None` past `usize`.
    pub fn bytes(self, dtype: DType) -> Option<usize> {
        self.elements()?.checked_mul(dtype.bytes())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}×{}", self.rows.0, self.cols.0)
    }
}

/// The element type of an activation or of a table of integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// Unsigned 32-bit integer.
    U32,
}

impl DType {
    /// Bytes an element.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 | Self::U32 => 4,
            Self::F16 => 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(Shape::new(3, 5).bytes(DType::F16), Some(30));
        assert_eq!(Shape::vector(7).bytes(DType::U32), Some(28));
        assert_eq!(Shape::new(usize::MAX, 2).elements(), None);
        assert_eq!(Shape::new(usize::MAX / 2, 1).bytes(DType::F32), None);
        assert_eq!(Shape::new(3, 5).to_string(), "3×5");
    }
}
