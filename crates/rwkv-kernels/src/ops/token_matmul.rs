//! A product with another matrix for each token: `y = x E`, so `y[j] = Σ x[i] E[i, j]`. RWKV-7a's DeepEmbed.

use crate::{Error, Kernels, Result, View, kernels::u32_of};
use bytemuck::NoUninit;
use rwkv_gpu::Dispatch;

/// The twin, for rows of `x` of `rows` elements and rows of `y` of `cols`; a row of `e` holds the token's matrix,
/// `[rows, cols]`.
///
/// # Errors
/// [`Error::Shape`] when the sizes do not fit.
pub fn token_matmul(x: &[f32], e: &[f32], rows: usize, cols: usize, y: &mut [f32]) -> Result<()> {
    let tokens = x.len().checked_div(rows).unwrap_or(0);
    let matrix = rows.checked_mul(cols).filter(|n| *n > 0);
    let fit = x.len() == tokens * rows
        && matrix.and_then(|n| n.checked_mul(tokens)) == Some(e.len())
        && y.len() == tokens * cols;
    if !fit {
        return Err(Error::shape(
            "token matmul",
            format!(
                "{} inputs, {} elements of {rows}×{cols} matrices, {} outputs",
                x.len(),
                e.len(),
                y.len()
            ),
        ));
    }
    y.fill(0.0);
    let tokens = x.chunks_exact(rows).zip(e.chunks_exact(rows * cols));
    for ((x, e), y) in tokens.zip(y.chunks_exact_mut(cols)) {
        for (x, e) in x.iter().zip(e.chunks_exact(cols)) {
            for (e, y) in e.iter().zip(&mut *y) {
                *y += x * e;
            }
        }
    }
    Ok(())
}

/// The product on the GPU.
pub struct TokenMatMul<'a> {
    /// Tokens × rows.
    pub x: View<'a>,
    /// Tokens × (rows · columns).
    pub e: View<'a>,
    /// Tokens × columns.
    pub y: View<'a>,
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct Params {
    tokens: u32,
    rows: u32,
    cols: u32,
    x_stride: u32,
    e_stride: u32,
    y_stride: u32,
}

/// Threads of a workgroup, as in the WGSL.
const THREADS: usize = 64;

impl Kernels {
    /// The dispatch of `op`.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes do not fit, [`Error::Gpu`] when the kernel does not compile.
    pub fn token_matmul(&self, op: &TokenMatMul<'_>) -> Result<Dispatch> {
        let (tokens, rows, cols) = (op.x.rows, op.x.width, op.y.width);
        let fit = op.e.rows == tokens && op.y.rows == tokens && op.e.width == rows * cols;
        if !fit || rows == 0 || cols == 0 {
            return Err(Error::shape(
                "token matmul",
                format!("{rows} inputs, matrices of {}, {cols} outputs", op.e.width),
            ));
        }
        let params = Params {
            tokens: u32_of("tokens", tokens)?,
            rows: u32_of("rows", rows)?,
            cols: u32_of("columns", cols)?,
            x_stride: u32_of("stride", View::stride(rows))?,
            e_stride: u32_of("stride", View::stride(op.e.width))?,
            y_stride: u32_of("stride", View::stride(cols))?,
        };
        let bindings = [op.x.binding(), op.e.binding(), op.y.binding()];
        let pipeline = self.pipeline("token_matmul", &[])?;
        self.dispatch(
            pipeline,
            &params,
            &bindings,
            (tokens * cols).div_ceil(THREADS),
        )
    }
}
