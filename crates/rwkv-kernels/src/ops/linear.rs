//! Matrix products: `y = f(W x + bias) + residual`.

use crate::{
    Error, Format, GpuMatrix, GpuVector, Kernels, Result, View,
    kernels::u32_of,
    ops::{CoopShape, Function, MatvecShape, matvec::MATVEC_TOKENS},
};
use bytemuck::NoUninit;
use rwkv_gpu::Dispatch;

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

/// The constants of `wgsl/epilogue.wgsl`.
pub(crate) fn epilogue(op: &Linear<'_>) -> impl Iterator<Item = (&'static str, f64)> + use<> {
    let adds = [
        ("HAS_BIAS", op.bias.is_some()),
        ("HAS_RESIDUAL", op.residual.is_some()),
    ];
    let adds = adds.map(|(name, has)| (name, f64::from(u8::from(has))));
    std::iter::once(op.function.constant()).chain(adds)
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

/// Up to this many, weights that stream past tokens are faster than matrices of tokens: packed ones, and F16, of which 8
/// tokens read half of what the memory gives (H200, 2026-11).
const FEW_TOKENS: usize = 16;
const FEW_TOKENS_F16: usize = 4;

/// Tokens up to which products with `weight` read them as they are.
pub(super) fn few_tokens(weight: &GpuMatrix) -> usize {
    match weight.format() {
        Format::F16 => FEW_TOKENS_F16,
        _ => FEW_TOKENS,
    }
}

impl Kernels {
    /// The dispatches of `op`: one a part of the matrix. Products of 2 to 16 tokens are those of
    /// [`token_linear`](Self::token_linear) where it suits; those of more tokens, and with F16 of more than 4, where the
    /// adapter has cooperative matrices those of [`coop_linear`](Self::coop_linear), after one that rounds x.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes do not fit, [`Error::Gpu`] when a kernel does not compile.
    pub fn linear(&self, op: &Linear<'_>) -> Result<Vec<Dispatch>> {
        if let Some(shape) = self.rounding_shape(op) {
            return self.coop_linear_rounding(op, shape);
        }
        if self.token_linear_suits(op) {
            return self.token_linear(op, None);
        }
        self.linear_shaped(op, None)
    }

    /// The shape in which [`linear`](Self::linear) does `op` with x rounded to f16, if it does: whoever has several
    /// products of one input can then round it once, and call [`coop_linear`](Self::coop_linear) for each.
    pub fn rounding_shape(&self, op: &Linear<'_>) -> Option<CoopShape> {
        if op.x.rows <= few_tokens(op.weight) {
            return None;
        }
        self.coop_shape(op)
    }

    /// Whether [`linear`](Self::linear) rounds x to f16 for products of `tokens` tokens with `weight`.
    pub fn linear_rounds(&self, weight: &GpuMatrix, tokens: usize) -> bool {
        let view = |width: usize| View {
            buffer: self.unused().buffer,
            offset: 0,
            rows: tokens,
            width,
        };
        let shape = weight.shape();
        let op = Linear {
            x: view(shape.cols.0),
            weight,
            bias: None,
            function: Function::Identity,
            residual: None,
            y: view(shape.rows.0),
        };
        self.rounding_shape(&op).is_some()
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
        let mut constants: Vec<_> = epilogue(op).collect();
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
                dispatch.grid = self.tile_grid("linear", rows, tokens)?;
            }
            dispatch.groups.push(chunk.group(self.gpu(), &pipeline)?);
            dispatches.push(dispatch);
        }
        Ok(dispatches)
    }
}
