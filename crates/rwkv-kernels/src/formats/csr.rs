//! Compressed sparse rows: a pruned matrix as its elements that are not zero.

use crate::{Error, Matrix, Result};
use half::f16;
use rayon::prelude::*;
use rwkv_mem::{Cols, Rows, Shape};
use std::borrow::Cow;

/// The column of each entry.
#[derive(Clone, Debug, PartialEq)]
pub enum CsrColumns<'a> {
    /// For matrices of up to 65,536 columns.
    U16(Cow<'a, [u16]>),
    /// For any.
    U32(Cow<'a, [u32]>),
}

/// A `rows × cols` matrix as f16 entries, row after row, each row in ascending order of columns. What has no entry is
/// zero.
#[derive(Clone, Debug, PartialEq)]
pub struct Csr<'a> {
    shape: Shape,
    values: Cow<'a, [f16]>,
    columns: CsrColumns<'a>,
    row_offsets: Cow<'a, [u32]>,
}

/// The most columns whose numbers fit 16 bits.
const NARROW: usize = 1 << 16;

impl CsrColumns<'_> {
    /// Entries.
    pub fn len(&self) -> usize {
        match self {
            Self::U16(columns) => columns.len(),
            Self::U32(columns) => columns.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes an entry.
    pub fn width(&self) -> usize {
        match self {
            Self::U16(_) => 2,
            Self::U32(_) => 4,
        }
    }

    fn get(&self, entry: usize) -> Option<usize> {
        match self {
            Self::U16(columns) => columns.get(entry).map(|c| usize::from(*c)),
            Self::U32(columns) => columns.get(entry).map(|c| *c as usize),
        }
    }
}

impl<'a> Csr<'a> {
    /// The matrix of these entries: `values` and `columns` have one element an entry, and the entries of row `r` are
    /// `row_offsets[r] .. row_offsets[r + 1]`.
    ///
    /// # Errors
    /// [`Error::Shape`], which names `name`, when the lengths do not fit, offsets descend, or columns of a row do not
    /// ascend or lie outside.
    pub fn new(
        name: &str,
        rows: Rows,
        cols: Cols,
        values: impl Into<Cow<'a, [f16]>>,
        columns: CsrColumns<'a>,
        row_offsets: impl Into<Cow<'a, [u32]>>,
    ) -> Result<Self> {
        let made = Self {
            shape: Shape { rows, cols },
            values: values.into(),
            columns,
            row_offsets: row_offsets.into(),
        };
        match made.problem() {
            Some(problem) => Err(Error::shape(name, problem)),
            None => Ok(made),
        }
    }

    /// As [`new`](Self::new), of parts that it has accepted before: nothing is looked at. Where they are others after all
    /// (a file that changed), products are wrong, and nothing else happens.
    pub fn accepted(
        shape: Shape,
        values: impl Into<Cow<'a, [f16]>>,
        columns: CsrColumns<'a>,
        row_offsets: impl Into<Cow<'a, [u32]>>,
    ) -> Self {
        Self {
            shape,
            values: values.into(),
            columns,
            row_offsets: row_offsets.into(),
        }
    }

    /// What is wrong with it.
    fn problem(&self) -> Option<String> {
        let (rows, cols) = (self.shape.rows.0, self.shape.cols.0);
        let entries = self.values.len();
        let offsets = &self.row_offsets;
        if rows.checked_add(1) != Some(offsets.len()) || self.columns.len() != entries {
            return Some(format!(
                "{} row offsets, {entries} values and {} columns do not make a sparse {} matrix",
                offsets.len(),
                self.columns.len(),
                self.shape
            ));
        }
        let ends = (
            offsets.first().copied(),
            offsets.last().map(|n| *n as usize),
        );
        if ends != (Some(0), Some(entries)) || !offsets.is_sorted() {
            return Some(format!(
                "row offsets must ascend from 0 to the {entries} values"
            ));
        }
        let wrong = (0..rows).into_par_iter().find_any(|row| {
            let mut next = 0;
            self.range(*row).any(|entry| {
                let column = self.columns.get(entry).unwrap_or(usize::MAX);
                let fits = column >= next && column < cols;
                next = column.saturating_add(1);
                !fits
            })
        });
        wrong.map(|row| format!("the columns of row {row} must ascend and be below {cols}"))
    }

    /// The elements of `matrix` that are larger than `threshold` (0 keeps all that are not zero; NaN stays); `name`
    /// names it in errors.
    ///
    /// # Errors
    /// [`Error::OutsideF16`] for a value that f16 cannot hold, [`Error::Shape`] for more than 2³² entries.
    pub fn from_dense(name: &str, matrix: &Matrix<'_>, threshold: f32) -> Result<Csr<'static>> {
        let (rows, cols) = (matrix.shape().rows.0, matrix.shape().cols.0);
        let found: Vec<(Vec<u32>, Vec<f16>)> = (0..rows)
            .into_par_iter()
            .map_init(
                || vec![0.0; cols],
                |row, index| {
                    matrix.expand_row(index, row);
                    compress(name, row, threshold)
                },
            )
            .collect::<Result<_>>()?;
        let mut row_offsets = vec![0];
        let mut values = Vec::new();
        for (_, row) in &found {
            values.extend_from_slice(row);
            let end = u32::try_from(values.len())
                .map_err(|_| Error::shape(name, "more than 2³² entries are not supported"))?;
            row_offsets.push(end);
        }
        let columns = found.iter().flat_map(|(columns, _)| columns).copied();
        let columns = if column_bytes(cols) == 2 {
            // Checked: each is below `cols`.
            CsrColumns::U16(
                columns
                    .map(|c| u16::try_from(c).unwrap_or(u16::MAX))
                    .collect(),
            )
        } else {
            CsrColumns::U32(columns.collect())
        };
        Csr::new(name, Rows(rows), Cols(cols), values, columns, row_offsets)
    }

    /// Rows (outputs) and columns (inputs).
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The entries, row after row.
    pub fn values(&self) -> &[f16] {
        &self.values
    }

    /// Their columns.
    pub fn columns(&self) -> &CsrColumns<'a> {
        &self.columns
    }

    /// Where the entries of each row begin, and where the last one's end.
    pub fn row_offsets(&self) -> &[u32] {
        &self.row_offsets
    }

    /// The share of elements that have an entry.
    pub fn density(&self) -> f64 {
        let elements = self.shape.rows.0 as f64 * self.shape.cols.0 as f64;
        self.values.len() as f64 / elements.max(1.0)
    }

    /// Bytes of all three parts.
    pub fn bytes(&self) -> usize {
        self.values.len() * (2 + self.columns.width()) + self.row_offsets.len() * 4
    }

    /// Bytes of all three parts of a matrix of this shape with so many entries, as [`from_dense`](Self::from_dense)
    /// makes it.
    pub fn bytes_of(shape: Shape, entries: u64) -> u64 {
        let entry = 2 + column_bytes(shape.cols.0) as u64;
        let rows = (shape.rows.0 as u64).saturating_add(1);
        entries
            .saturating_mul(entry)
            .saturating_add(rows.saturating_mul(4))
    }

    /// Whether [`from_dense`](Self::from_dense) gives entries of a matrix of `cols` columns columns of 32 bits.
    pub fn is_wide(cols: usize) -> bool {
        column_bytes(cols) == 4
    }

    /// How many entries [`from_dense`](Self::from_dense) makes of `row`, where it keeps all that are not zero.
    pub fn entries_of(row: &[f32]) -> usize {
        row.iter().filter(|x| is_entry(**x, 0.0)).count()
    }

    /// The same matrix, borrowed from this one.
    pub fn lend(&self) -> Csr<'_> {
        let columns = match &self.columns {
            CsrColumns::U16(columns) => CsrColumns::U16(Cow::Borrowed(columns)),
            CsrColumns::U32(columns) => CsrColumns::U32(Cow::Borrowed(columns)),
        };
        Csr::accepted(
            self.shape,
            self.values.as_ref(),
            columns,
            self.row_offsets.as_ref(),
        )
    }

    /// The same matrix with parts of its own.
    pub fn into_owned(self) -> Csr<'static> {
        let columns = match self.columns {
            CsrColumns::U16(columns) => CsrColumns::U16(columns.into_owned().into()),
            CsrColumns::U32(columns) => CsrColumns::U32(columns.into_owned().into()),
        };
        let (values, row_offsets) = (self.values.into_owned(), self.row_offsets.into_owned());
        Csr::accepted(self.shape, values, columns, row_offsets)
    }

    /// The density below which the entries of a matrix of `cols` columns take fewer bytes than F16 does: a product is as
    /// fast as its weights are read. About a half with 16-bit columns, a third with 32.
    pub fn break_even(cols: usize) -> f64 {
        let entry = if column_bytes(cols) == 2 { 4.0 } else { 6.0 };
        let row = 2.0 * cols as f64;
        // A row's offset costs 4 bytes.
        ((row - 4.0) / (entry * cols.max(1) as f64)).max(0.0)
    }

    /// Whether it takes fewer bytes than F16 does.
    pub fn pays(&self) -> bool {
        let dense = 2.0 * self.shape.rows.0 as f64 * self.shape.cols.0 as f64;
        (self.bytes() as f64) < dense
    }

    /// The columns and values of row `index`; none for a row that there is not.
    pub fn row(&self, index: usize) -> impl Iterator<Item = (usize, f32)> + '_ {
        self.range(index).filter_map(|entry| {
            let value = self.values.get(entry)?;
            Some((self.columns.get(entry)?, value.to_f32()))
        })
    }

    /// How many entries row `index` has.
    pub fn row_entries(&self, index: usize) -> usize {
        self.range(index).len()
    }

    /// Expands row `index` into `out`, which has a place for each column.
    pub fn expand_row(&self, index: usize, out: &mut [f32]) {
        out.fill(0.0);
        for (column, value) in self.row(index) {
            if let Some(place) = out.get_mut(column) {
                *place = value;
            }
        }
    }

    fn range(&self, row: usize) -> std::ops::Range<usize> {
        let offset = |i: usize| self.row_offsets.get(i).map_or(0, |n| *n as usize);
        if row < self.shape.rows.0 {
            offset(row)..offset(row + 1).min(self.values.len())
        } else {
            0..0
        }
    }
}

/// Whether an element gets an entry: NaN does; what rounds to zero is zero.
fn is_entry(x: f32, threshold: f32) -> bool {
    let small = x.abs() <= threshold || f16::from_f32(x) == f16::ZERO;
    !small
}

/// Bytes of the column of an entry of a matrix of `cols` columns, as [`Csr::from_dense`] makes it.
fn column_bytes(cols: usize) -> usize {
    if cols <= NARROW { 2 } else { 4 }
}

/// The entries of one row.
fn compress(name: &str, row: &[f32], threshold: f32) -> Result<(Vec<u32>, Vec<f16>)> {
    let mut found = (Vec::new(), Vec::new());
    for (column, x) in (0u32..).zip(row) {
        if x.is_finite() && x.abs() > 65504.0 {
            return Err(Error::OutsideF16 {
                tensor: name.to_owned(),
                value: *x,
            });
        }
        if is_entry(*x, threshold) {
            found.0.push(column);
            found.1.push(f16::from_f32(*x));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::float_cmp,
        reason = "tests, of numbers that are moved"
    )]

    use super::*;
    use crate::Format;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn elements_come_back(rows in 0usize..9, cols in 0usize..40, threshold in prop_oneof![Just(0.0f32), 0.0f32..1.0],
                              bits in prop::collection::vec(any::<u16>(), 360)) {
            let numbers = bits.iter().map(|b| f16::from_bits(*b)).filter(|x| !x.is_nan());
            let values: Vec<f32> = numbers.cycle().map(f16::to_f32).take(rows * cols).collect();
            prop_assume!(values.len() == rows * cols);
            let bytes = bytemuck::cast_slice(&values);
            let matrix = Matrix::new(Format::F32, Rows(rows), Cols(cols), bytes).unwrap();
            let sparse = Csr::from_dense("w", &matrix, threshold).unwrap();
            let mut row = vec![f32::NAN; cols];
            for index in 0..rows {
                sparse.expand_row(index, &mut row);
                for (x, y) in values[index * cols..].iter().zip(&row) {
                    let want = if x.abs() <= threshold { 0.0 } else { *x };
                    prop_assert_eq!(want, *y);
                }
            }
            let kept = values.iter().filter(|x| x.abs() > threshold).count();
            prop_assert_eq!(sparse.bytes(), kept * 4 + (rows + 1) * 4);
            prop_assert_eq!(sparse.pays(), sparse.bytes() < rows * cols * 2);
            prop_assert_eq!(Csr::bytes_of(sparse.shape(), kept as u64), sparse.bytes() as u64);
            prop_assert_eq!(&sparse.lend(), &sparse);
            prop_assert_eq!(&sparse.lend().into_owned(), &sparse);
            if threshold == 0.0 {
                let counted: usize = values.chunks(cols.max(1)).map(Csr::entries_of).sum();
                prop_assert_eq!(counted, kept);
            }
        }

        /// Any lengths, offsets and columns: a matrix whose rows can be expanded, or an error.
        #[test]
        fn hostile(rows in 0usize..4, cols in 0usize..5, values in 0usize..6,
                   columns in prop::collection::vec(0u32..6, 0..6), wide: bool,
                   offsets in prop::collection::vec(prop_oneof![4 => 0u32..6, 1 => any::<u32>()], 0..5)) {
            let columns = if wide {
                CsrColumns::U32(columns.into())
            } else {
                CsrColumns::U16(columns.iter().map(|c| u16::try_from(*c).unwrap()).collect())
            };
            let values = vec![f16::ONE; values];
            if let Ok(sparse) = Csr::new("w", Rows(rows), Cols(cols), values, columns, offsets) {
                let mut expanded = 0;
                let mut row = vec![0.0; cols];
                for index in 0..=rows {
                    sparse.expand_row(index, &mut row);
                    expanded += row.iter().filter(|x| **x == 1.0).count();
                }
                prop_assert_eq!(expanded, sparse.values().len());
            }
        }
    }

    #[test]
    fn refused() {
        #[track_caller]
        fn check(values: usize, columns: &[u16], offsets: &[u32], want: &str) {
            let columns = CsrColumns::U16(columns.into());
            let values = vec![f16::ONE; values];
            let error = Csr::new("w", Rows(2), Cols(4), values, columns, offsets).unwrap_err();
            assert_eq!(error.to_string(), want);
        }
        let lengths = |n| {
            format!("w: {n} row offsets, 2 values and 2 columns do not make a sparse 2×4 matrix")
        };
        check(2, &[1, 3], &[0, 2], &lengths(2));
        check(2, &[1, 3], &[], &lengths(0));
        let offsets = "w: row offsets must ascend from 0 to the 2 values";
        check(2, &[1, 3], &[0, 3, 2], offsets);
        check(2, &[1, 3], &[1, 1, 2], offsets);
        check(2, &[1, 3], &[0, 1, 1], offsets);
        let columns = "w: the columns of row 1 must ascend and be below 4";
        check(2, &[1, 1], &[0, 0, 2], columns);
        check(2, &[2, 1], &[0, 0, 2], columns);
        check(2, &[2, 4], &[0, 1, 2], columns);
    }

    #[test]
    fn break_even() {
        assert_eq!(Csr::break_even(0), 0.0);
        assert_eq!(Csr::break_even(1000), 0.499);
        assert!((Csr::break_even(100_000) - 1.0 / 3.0).abs() < 1e-4);
    }
}
