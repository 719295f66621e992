//! Matrix products: `y = f(W x + bias) + residual`.

use crate::{
    Error, GpuMatrix, GpuVector, Kernels, Matrix, Result, View,
    kernels::u32_of,
    ops::{Function, MatvecShape, matvec::MATVEC_TOKENS},
};
use bytemuck::NoUninit;
use rayon::prelude::*;
use rwkv_gpu::Dispatch;

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

/// A matrix product with its epilogue on the GPU: `y = function(W x + bias) + residual`.
#[derive(Clone, Copy)]
pub struct Linear<'a> {
    /// Tokens × columns of the matrix.
    pub x: View<'a>,
    /// The matrix.
    pub weight: &'a GpuMatrix,
    /// One element a row of the matrix.
    pub bias: Option<&'a GpuVector>,
    /// Applied after the bias.
    pub function: Function,
    /// Tokens × rows of the matrix; not the buffer of `y`.
    pub residual: Option<View<'a>>,
    /// Tokens × rows of the matrix.
    pub y: View<'a>,
}

/// The uniform of every kernel that ends as a product does (`wgsl/linear.wgsl`).
#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
pub(crate) struct LinearParams {
    pub(crate) rows: u32,
    pub(crate) first_row: u32,
    pub(crate) cols: u32,
    pub(crate) units: u32,
    pub(crate) tokens: u32,
    pub(crate) x_stride: u32,
    pub(crate) y_stride: u32,
    pub(crate) residual_stride: u32,
    pub(crate) base: u32,
    pub(crate) chunk: u32,
}

/// Whether the sizes fit.
pub(crate) fn check_linear(op: &Linear<'_>) -> Result<()> {
    let (shape, tokens) = (op.weight.shape(), op.x.rows);
    let fits = op.x.width == shape.cols.0
        && op.y.width == shape.rows.0
        && op.y.rows == tokens
        && op.bias.is_none_or(|b| b.len() == shape.rows.0)
        && op
            .residual
            .is_none_or(|r| r.width == shape.rows.0 && r.rows == tokens);
    if fits {
        return Ok(());
    }
    Err(Error::shape(
        "linear",
        format!(
            "{tokens}×{} by a {shape} matrix into {}×{}",
            op.x.width, op.y.rows, op.y.width
        ),
    ))
}

/// The side of a matmul tile, as in the WGSL.
const TILE: usize = 64;

impl Kernels {
    /// The dispatches of `op`: one a part of the matrix. Products of 2 to 16 tokens are those of
    /// [`token_linear`](Self::token_linear) where it suits.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes do not fit, [`Error::Gpu`] when a kernel does not compile.
    pub fn linear(&self, op: &Linear<'_>) -> Result<Vec<Dispatch>> {
        if self.token_linear_suits(op) {
            return self.token_linear(op, None);
        }
        self.linear_shaped(op, None)
    }

    /// As [`linear`](Self::linear) with x as it is, in the given shape of the matrix-vector kernel, which serves up to 8
    /// tokens.
    ///
    /// # Errors
    /// Those of [`linear`](Self::linear).
    pub fn linear_shaped(
        &self,
        op: &Linear<'_>,
        matvec_shape: Option<MatvecShape>,
    ) -> Result<Vec<Dispatch>> {
        self.linear_for(op, matvec_shape, op.x.rows)
    }

    /// As [`linear`](Self::linear), with every sum in one order, however many tokens there are: the matrix-vector kernel
    /// of 8 tokens, in one shape, for 8 of them after the other.
    ///
    /// # Errors
    /// Those of [`linear`](Self::linear).
    pub fn linear_in_one_order(&self, op: &Linear<'_>) -> Result<Vec<Dispatch>> {
        let shape = self.matvec_shape(op.weight, MATVEC_TOKENS);
        let mut dispatches = Vec::new();
        for first in (0..op.x.rows).step_by(MATVEC_TOKENS) {
            let part = Linear {
                x: op.x.part(first, MATVEC_TOKENS),
                residual: op.residual.map(|r| r.part(first, MATVEC_TOKENS)),
                y: op.y.part(first, MATVEC_TOKENS),
                ..*op
            };
            dispatches.extend(self.linear_for(&part, Some(shape), MATVEC_TOKENS)?);
        }
        Ok(dispatches)
    }

    /// The dispatches of a matrix-vector kernel of `slots` tokens, or of the tiled one for more.
    fn linear_for(
        &self,
        op: &Linear<'_>,
        matvec_shape: Option<MatvecShape>,
        slots: usize,
    ) -> Result<Vec<Dispatch>> {
        let shape = op.weight.shape();
        let tokens = op.x.rows;
        check_linear(op)?;
        let layout = op.weight.layout();
        let shader = layout.shader();
        let units = op.weight.units();
        let matvec = (tokens <= MATVEC_TOKENS).then(|| {
            let chosen = matvec_shape.unwrap_or_else(|| self.matvec_shape(op.weight, tokens));
            self.resolve(chosen, layout.unit(), units, slots)
        });
        let mut constants = vec![
            op.function.constant(),
            ("HAS_BIAS", f64::from(u8::from(op.bias.is_some()))),
            ("HAS_RESIDUAL", f64::from(u8::from(op.residual.is_some()))),
        ];
        constants.extend(layout.constants());
        let pipeline = if let Some(matvec) = &matvec {
            constants.push(("RAGGED", f64::from(u8::from(op.weight.ragged()))));
            constants.extend(&matvec.constants);
            self.pipeline(&format!("matvec/{shader}/{}", self.lanes()), &constants)?
        } else {
            self.pipeline(&format!("matmul/{shader}"), &constants)?
        };
        let mut dispatches = Vec::new();
        for chunk in op.weight.chunks() {
            let rows = chunk.rows as usize;
            let params = LinearParams {
                rows: chunk.rows,
                first_row: chunk.first_row,
                cols: u32_of("columns", shape.cols.0)?,
                units: u32_of("units", units)?,
                tokens: u32_of("tokens", tokens)?,
                x_stride: u32_of("stride", View::stride(op.x.width) / 4)?,
                y_stride: u32_of("stride", View::stride(op.y.width))?,
                residual_stride: u32_of("stride", View::stride(shape.rows.0))?,
                base: chunk.base,
                chunk: u32_of("units", matvec.as_ref().map_or(units, |m| m.chunk))?,
            };
            let bindings = [
                op.x.binding(),
                op.bias.map_or(self.unused(), GpuVector::binding),
                op.residual.as_ref().map_or(self.unused(), View::binding),
                op.y.binding(),
            ];
            let workgroups = matvec.as_ref().map_or(1, |m| m.workgroups(rows));
            let mut dispatch = self.dispatch(pipeline.clone(), &params, &bindings, workgroups)?;
            if matvec.is_none() {
                let limit = self.gpu().capabilities().limits.workgroups;
                dispatch.grid = [
                    u32_of("rows", rows.div_ceil(TILE))?,
                    u32_of("tokens", tokens.div_ceil(TILE))?,
                    1,
                ];
                if dispatch.grid.iter().any(|n| *n > limit) {
                    return Err(Error::shape(
                        "linear",
                        format!("{tokens} tokens by {rows} rows pass the grid's limit"),
                    ));
                }
            }
            dispatch.groups.push(chunk.group(self.gpu(), &pipeline)?);
            dispatches.push(dispatch);
        }
        Ok(dispatches)
    }
}
