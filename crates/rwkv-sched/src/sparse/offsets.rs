//! Where rows would begin if a dense matrix were compressed: its zeros, counted as its rows go by.

use crate::{Result, Weight, Weights};
use rayon::prelude::*;
use rwkv_kernels::{Csr, Matrix};

/// Bytes of f32 that are looked at together.
const SLAB: usize = 8 << 20;

/// Rows that tell about how dense a matrix is.
const SAMPLES: usize = 8;

/// How far above a threshold the sampled rows may be before the others are believed to be as dense.
const MARGIN: f64 = 0.1;

/// How many rows of `cols` are looked at together, so that memory stays flat whatever the matrix.
pub fn slab_rows(cols: usize) -> usize {
    (SLAB / cols.saturating_mul(4).max(1)).max(1)
}

/// The offsets that [`Csr::from_dense`] would give the rows of `weight`, or `None` where as many as `most` elements or
/// more are not zero.
///
/// # Errors
/// What reading the tensor says.
pub fn row_offsets(weights: &dyn Weights, weight: Weight, most: f64) -> Result<Option<Vec<u32>>> {
    let shape = weights.describe(weight)?.1;
    let mut offsets = vec![0];
    let mut total = 0u32;
    let slab = slab_rows(shape.cols.0);
    for first in (0..shape.rows.0).step_by(slab) {
        let mut counts = Vec::new();
        let rows = first..shape.rows.0.min(first + slab);
        weights.with_rows(weight, rows, &mut |matrix| {
            counts = entries(matrix);
            Ok(())
        })?;
        for count in counts {
            let sum = u32::try_from(count).ok().and_then(|n| total.checked_add(n));
            match sum {
                Some(sum) if f64::from(sum) < most => total = sum,
                _ => return Ok(None),
            }
            offsets.push(total);
        }
    }
    Ok(Some(offsets))
}

/// The same for a matrix whose density must be below `density`: a look at a few rows spares most matrices the rest.
///
/// # Errors
/// What reading the tensor says.
pub(crate) fn sparse_row_offsets(
    weights: &dyn Weights,
    weight: Weight,
    density: f64,
) -> Result<Option<Vec<u32>>> {
    let shape = weights.describe(weight)?.1;
    let (rows, cols) = (shape.rows.0, shape.cols.0);
    let (mut found, mut seen) = (0, 0);
    for sample in 0..SAMPLES.min(rows) {
        let row = sample * rows / SAMPLES.min(rows);
        weights.with_rows(weight, row..row + 1, &mut |matrix| {
            found += entries(matrix).iter().sum::<usize>();
            seen += cols;
            Ok(())
        })?;
    }
    if found as f64 >= (density + MARGIN) * seen as f64 {
        return Ok(None);
    }
    row_offsets(weights, weight, density * (rows * cols) as f64)
}

/// Elements of each row that are not zero.
fn entries(matrix: &Matrix<'_>) -> Vec<usize> {
    let (rows, cols) = (matrix.shape().rows.0, matrix.shape().cols.0);
    (0..rows)
        .into_par_iter()
        .map_init(
            || vec![0.0; cols],
            |row, index| {
                matrix.expand_row(index, row);
                Csr::entries_of(row)
            },
        )
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::InMemoryWeights;
    use proptest::prelude::*;
    use rwkv_kernels::Format;
    use rwkv_mem::{Cols, Rows};

    proptest! {
        #[test]
        fn those_of_the_compressed_matrix(rows in 0usize..40, cols in 1usize..9, seed: u32, density in 0.0..=1.0) {
            let element = |i: u32| f64::from(i.wrapping_mul(2_654_435_761).wrapping_add(seed)) / f64::from(u32::MAX);
            let values: Vec<f32> = (0..).take(rows * cols).map(|i| if element(i) < density { 0.5 } else { 0.0 }).collect();
            let mut weights = InMemoryWeights::default();
            weights.insert(Weight::Head, Format::F32, Rows(rows), Cols(cols), &values).unwrap();
            let dense = weights.matrix(Weight::Head).unwrap();
            let sparse = Csr::from_dense("w", &dense, 0.0).unwrap();
            let counted = row_offsets(&weights, Weight::Head, f64::INFINITY).unwrap();
            prop_assert_eq!(counted.as_deref(), Some(sparse.row_offsets()));
            let entries = sparse.values().len();
            if rows > 0 {
                prop_assert!(row_offsets(&weights, Weight::Head, entries as f64).unwrap().is_none() || entries == 0);
            }
            // Whatever the sample says, nothing that is too dense passes.
            if let Some(offsets) = sparse_row_offsets(&weights, Weight::Head, 0.4).unwrap() {
                prop_assert!(rows == 0 || sparse.density() < 0.4);
                prop_assert_eq!(offsets, sparse.row_offsets());
            }
        }
    }
}
