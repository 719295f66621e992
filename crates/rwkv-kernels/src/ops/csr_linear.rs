//! Matrix products with a pruned matrix in compressed sparse rows: `y = f(W x + bias) + residual`.

use crate::{
    Csr, Error, GpuCsr, GpuVector, Kernels, Result, View,
    kernels::u32_of,
    ops::{Function, linear::LinearParams},
};
use rayon::prelude::*;
use rwkv_gpu::Dispatch;

/// The twin of the product alone: `y[t] = W x[t]` for `x` of `tokens · cols`, into `y` of `tokens · rows`. Elements of W
/// without an entry are left out, so an infinite `x` there does not matter.
///
/// # Errors
/// [`Error::Shape`] when the sizes do not fit.
pub fn csr_matmul(x: &[f32], weight: &Csr<'_>, y: &mut [f32]) -> Result<()> {
    let (rows, cols) = (weight.shape().rows.0, weight.shape().cols.0);
    let tokens = x.len() / cols.max(1);
    if x.len() != tokens * cols || y.len() != tokens * rows {
        return Err(Error::shape(
            "sparse matmul",
            format!(
                "{} inputs, a {} matrix, {} outputs",
                x.len(),
                weight.shape(),
                y.len()
            ),
        ));
    }
    if tokens == 0 || rows == 0 {
        return Ok(());
    }
    let mut transposed = vec![0.0; tokens * rows];
    transposed
        .par_chunks_mut(tokens)
        .enumerate()
        .for_each(|(row, sums)| {
            for (x, sum) in x.chunks_exact(cols).zip(sums) {
                *sum = row_product(weight, row, x);
            }
        });
    for (row, sums) in transposed.chunks_exact(tokens).enumerate() {
        for (token, sum) in sums.iter().enumerate() {
            y[token * rows + row] = *sum;
        }
    }
    Ok(())
}

/// Sixteen sums side by side, as in the dense product: closer to the exact sum than one.
fn row_product(weight: &Csr<'_>, row: usize, x: &[f32]) -> f32 {
    let mut sums = [0.0f32; 16];
    for (i, (column, value)) in weight.row(row).enumerate() {
        sums[i % 16] += value * x.get(column).copied().unwrap_or(0.0);
    }
    sums.iter().sum()
}

/// A product with a sparse matrix and its epilogue on the GPU: `y = function(W x + bias) + residual`. For up to 8 tokens
/// elements without an entry are left out; for more, tiles of W are expanded, and an infinite `x` there makes NaN.
pub struct CsrLinear<'a> {
    /// Tokens × columns of the matrix.
    pub x: View<'a>,
    /// The matrix.
    pub weight: &'a GpuCsr,
    /// One element a row of the matrix.
    pub bias: Option<&'a GpuVector>,
    /// Applied after the bias.
    pub function: Function,
    /// Tokens × rows of the matrix; not the buffer of `y`.
    pub residual: Option<View<'a>>,
    /// Tokens × rows of the matrix.
    pub y: View<'a>,
}

/// Up to this many tokens the matrix-vector kernel reads each entry once for all of them.
const MATVEC_TOKENS: usize = 8;
/// Threads of a matvec workgroup, as in the WGSL.
const MATVEC_THREADS: u32 = 128;

impl Kernels {
    /// The dispatches of `op`: one a part of the matrix.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes do not fit, [`Error::Gpu`] when a kernel does not compile.
    pub fn csr_linear(&self, op: &CsrLinear<'_>) -> Result<Vec<Dispatch>> {
        let shape = op.weight.shape();
        let tokens = op.x.rows;
        let fits = tokens > 0
            && op.x.width == shape.cols.0
            && op.y.width == shape.rows.0
            && op.y.rows == tokens
            && op.bias.is_none_or(|b| b.len() == shape.rows.0)
            && op
                .residual
                .is_none_or(|r| r.width == shape.rows.0 && r.rows == tokens);
        if !fits {
            return Err(Error::shape(
                "sparse linear",
                format!(
                    "{tokens}×{} by a {shape} matrix into {}×{}",
                    op.x.width, op.y.rows, op.y.width
                ),
            ));
        }
        let matvec = tokens <= MATVEC_TOKENS;
        let constants = [
            op.function.constant(),
            ("HAS_BIAS", f64::from(u8::from(op.bias.is_some()))),
            ("HAS_RESIDUAL", f64::from(u8::from(op.residual.is_some()))),
        ];
        let name = if matvec {
            format!(
                "csr_matvec/{}/{}/{}",
                op.weight.index(),
                self.lanes(),
                tokens.next_power_of_two()
            )
        } else {
            format!("matmul_csr/{}", op.weight.index())
        };
        let pipeline = self.pipeline(&name, &constants)?;
        let mut dispatches = Vec::new();
        for chunk in op.weight.chunks() {
            let rows = chunk.rows as usize;
            let params = LinearParams {
                rows: chunk.rows,
                first_row: chunk.first_row,
                cols: u32_of("columns", shape.cols.0)?,
                units: 0,
                tokens: u32_of("tokens", tokens)?,
                x_stride: u32_of("stride", View::stride(op.x.width) / 4)?,
                y_stride: u32_of("stride", View::stride(op.y.width))?,
                residual_stride: u32_of("stride", View::stride(shape.rows.0))?,
                base: 0,
                chunk: 0,
            };
            let bindings = [
                op.x.binding(),
                op.bias.map_or(self.unused(), GpuVector::binding),
                op.residual.as_ref().map_or(self.unused(), View::binding),
                op.y.binding(),
            ];
            let workgroups = rows.div_ceil(self.rows_per_workgroup(MATVEC_THREADS));
            let mut dispatch = self.dispatch(pipeline.clone(), &params, &bindings, workgroups)?;
            if !matvec {
                dispatch.grid = self.tile_grid("sparse linear", rows, tokens)?;
            }
            dispatch.groups.push(chunk.group(self.gpu(), &pipeline)?);
            dispatches.push(dispatch);
        }
        Ok(dispatches)
    }
}
