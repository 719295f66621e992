//! Products of matrices: the twin, and how the tiled kernels (`wgsl/tiles.wgsl`) share one.

use crate::{Error, Kernels, Matrix, Result, kernels::u32_of};
use rayon::prelude::*;

/// The twin of the product alone: `y[t] = W x[t]` for `x` of `tokens · cols`, into `y` of `tokens · rows`.
///
/// # Errors
/// [`Error::Shape`] when the sizes do not fit.
pub fn matmul(x: &[f32], weight: &Matrix<'_>, y: &mut [f32]) -> Result<()> {
    let (rows, cols) = (weight.shape().rows.0, weight.shape().cols.0);
    let tokens = matmul_tokens(x, weight, y)?;
    if tokens == 0 || rows == 0 {
        return Ok(());
    }
    // A row of W serves all tokens once it is expanded, so the product is made transposed, row by row of W.
    let mut transposed = vec![0.0; tokens * rows];
    transposed.par_chunks_mut(tokens).enumerate().for_each_init(
        || vec![0.0; cols],
        |expanded, (row, sums)| {
            weight.expand_row(row, expanded);
            for (x, sum) in x.chunks_exact(cols).zip(sums) {
                *sum = dot(expanded, x);
            }
        },
    );
    for (row, sums) in transposed.chunks_exact(tokens).enumerate() {
        for (token, sum) in sums.iter().enumerate() {
            y[token * rows + row] = *sum;
        }
    }
    Ok(())
}

/// How many tokens a product has.
///
/// # Errors
/// [`Error::Shape`] when the sizes do not fit.
pub(crate) fn matmul_tokens(x: &[f32], weight: &Matrix<'_>, y: &[f32]) -> Result<usize> {
    let (rows, cols) = (weight.shape().rows.0, weight.shape().cols.0);
    let tokens = x.len() / cols.max(1);
    if x.len() == tokens * cols && y.len() == tokens * rows {
        return Ok(tokens);
    }
    let problem = format!(
        "{} inputs, a {} matrix, {} outputs",
        x.len(),
        weight.shape(),
        y.len()
    );
    Err(Error::shape("matmul", problem))
}

/// Sixteen sums side by side: independent, so that the compiler can use vector instructions, and closer to the exact
/// sum than one.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 16];
    let (a_blocks, a_rest) = a.as_chunks::<16>();
    let (b_blocks, b_rest) = b.as_chunks::<16>();
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for i in 0..16 {
            sums[i] += a[i] * b[i];
        }
    }
    for ((a, b), sum) in a_rest.iter().zip(b_rest).zip(&mut sums) {
        *sum += a * b;
    }
    let mut half = 8;
    while half > 0 {
        for i in 0..half {
            sums[i] += sums[i + half];
        }
        half /= 2;
    }
    sums[0]
}

/// The side of a tile, as in the WGSL.
const TILE: usize = 64;

impl Kernels {
    /// A workgroup for each tile of `rows` by `tokens`; `what` names the operation in errors.
    pub(crate) fn tile_grid(&self, what: &str, rows: usize, tokens: usize) -> Result<[u32; 3]> {
        let grid = [
            u32_of("rows", rows.div_ceil(TILE))?,
            u32_of("tokens", tokens.div_ceil(TILE))?,
            1,
        ];
        let limit = self.gpu().capabilities().limits.workgroups;
        if grid.iter().any(|n| *n > limit) {
            let problem = format!("{tokens} tokens by {rows} rows pass the grid's limit");
            return Err(Error::shape(what, problem));
        }
        Ok(grid)
    }
}
