//! A layer norm, a token shift of one mix, and a matrix product in one dispatch: `y = f(W mix(norm(x), previous))`.

use crate::{
    BatchTables, Error, GpuMatrix, GpuVector, Kernels, Page, Result, View,
    kernels::u32_of,
    ops::{
        Function, MatvecShape, Weighs,
        matvec::{MATVEC_TOKENS, Resolved},
    },
};
use bytemuck::NoUninit;
use rwkv_gpu::{Binding, Buffer, Dispatch};

/// Norm, shift and product on the GPU, for up to 8 spans of one token each.
pub struct NormShiftLinear<'a> {
    /// The batch: span i has one token, row i.
    pub batch: BatchTables<'a>,
    /// The residual stream: tokens × columns of the matrix.
    pub x: View<'a>,
    /// The norm's weight, its bias, and the mix, one after the other.
    pub vectors: &'a GpuVector,
    /// Added to the variance.
    pub epsilon: f32,
    /// What the mix weighs.
    pub weighs: Weighs,
    /// Shift states `[slot, 2, channels]`.
    pub state: &'a Buffer,
    /// The slots in `state`; tokens of other slots are left alone.
    pub page: Page,
    /// Which of the two.
    pub which: u32,
    /// The matrix.
    pub weight: &'a GpuMatrix,
    /// Applied to each element of the product.
    pub function: Function,
    /// Tokens × columns: the normalised x, which is the next shift vector. Other workgroups still read the state here,
    /// so a later dispatch stores it.
    pub shifted: View<'a>,
    /// Tokens × rows of the matrix; another buffer than `shifted`.
    pub y: View<'a>,
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct Params {
    page: Page,
    rows: u32,
    first_row: u32,
    base: u32,
    units: u32,
    cols: u32,
    tokens: u32,
    x_stride: u32,
    y_stride: u32,
    which: u32,
    slice: u32,
    epsilon: f32,
    padding: u32,
}

/// Workgroups, unless a shape says otherwise: two for each core of the largest GPUs, and four where rows are short. All
/// of them make x.
const WORKGROUPS: u32 = 264;
const SHORT_ROW: usize = 4096;

/// Storage buffers of group 0, and how many WebGPU's default limits allow.
const OWN_BUFFERS: usize = 6;
const MOST_BUFFERS: usize = 8;

impl Kernels {
    /// The shape that [`norm_shift_linear`](Self::norm_shift_linear) uses.
    pub fn norm_shift_shape(&self, weight: &GpuMatrix, tokens: usize) -> MatvecShape {
        let shape = self.matvec_shape(weight, tokens);
        let short = weight.shape().cols.0 < SHORT_ROW;
        MatvecShape {
            threads: 256,
            split: shape.split.min(4 / shape.rows.max(1)),
            staged: true,
            workgroups: WORKGROUPS * if short { 2 } else { 1 },
            ..shape
        }
    }

    /// Whether [`norm_shift_linear`](Self::norm_shift_linear) can multiply `weight` by the x of `tokens` tokens: they
    /// must fit workgroup memory, and the format have two buffers at most. Otherwise run the three operations.
    pub fn norm_shift_linear_suits(&self, weight: &GpuMatrix, tokens: usize) -> bool {
        self.norm_shift_resolved(weight, tokens, None).is_some()
    }

    /// `shape`, or the default one, with all of x in workgroup memory, if it fits.
    fn norm_shift_resolved(
        &self,
        weight: &GpuMatrix,
        tokens: usize,
        shape: Option<MatvecShape>,
    ) -> Option<Resolved> {
        if !(1..=MATVEC_TOKENS).contains(&tokens) {
            return None;
        }
        let parts = weight.layout().row_bytes(weight.shape().cols.0).len()
            + usize::from(weight.layout().table().is_some());
        if OWN_BUFFERS + parts > MOST_BUFFERS {
            return None;
        }
        let shape = MatvecShape {
            staged: true,
            ..shape.unwrap_or_else(|| self.norm_shift_shape(weight, tokens))
        };
        // Unlike x of a product alone, x must be there as a whole; smaller shapes leave it more room.
        let smaller = MatvecShape { rows: 1, ..shape };
        let unit = weight.layout().unit();
        [shape, smaller]
            .into_iter()
            .find_map(|shape| self.resolve_whole(shape, unit, weight.units(), tokens))
    }

    /// The dispatches of `op`, of a chosen shape or the default one: one a part of the matrix.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes do not fit or the kernel does not suit, [`Error::Gpu`] when it does not compile.
    pub fn norm_shift_linear(
        &self,
        op: &NormShiftLinear<'_>,
        shape: Option<MatvecShape>,
    ) -> Result<Vec<Dispatch>> {
        let (tokens, cols) = (op.x.rows, op.x.width);
        let matrix = op.weight.shape();
        let fits = matrix.cols.0 == cols
            && op.vectors.len() == 3 * cols
            && op.y.rows == tokens
            && op.y.width == matrix.rows.0
            && op.shifted.rows == tokens
            && op.shifted.width == cols
            && op.batch.span_count == tokens;
        if !fits {
            return Err(Error::shape(
                "norm, shift and product",
                format!(
                    "{tokens}×{cols} in {} spans, {} vector elements, a {matrix} matrix into {}×{}",
                    op.batch.span_count,
                    op.vectors.len(),
                    op.y.rows,
                    op.y.width
                ),
            ));
        }
        let Some(resolved) = self.norm_shift_resolved(op.weight, tokens, shape) else {
            return Err(Error::shape(
                "norm, shift and product",
                format!(
                    "{tokens}×{cols} do not fit this adapter's workgroups; use one operation a dispatch"
                ),
            ));
        };
        let layout = op.weight.layout();
        let weighs = match op.weighs {
            Weighs::Previous => 0.0,
            Weighs::Current => 1.0,
        };
        let mut constants = vec![op.function.constant(), ("WEIGHS", weighs)];
        constants.extend(layout.constants());
        constants.extend(&resolved.constants);
        let name = format!("norm_shift_linear/{}/{}", layout.shader(), self.lanes());
        let pipeline = self.pipeline(&name, &constants)?;
        let mut dispatches = Vec::new();
        for chunk in op.weight.chunks() {
            let workgroups = resolved.workgroups(chunk.rows as usize);
            // The first part's workgroups write the shift vector.
            let slice = if chunk.first_row == 0 {
                cols.div_ceil(4).div_ceil(workgroups)
            } else {
                0
            };
            let params = Params {
                page: op.page,
                rows: chunk.rows,
                first_row: chunk.first_row,
                base: chunk.base,
                units: u32_of("units", op.weight.units())?,
                cols: u32_of("columns", cols)?,
                tokens: u32_of("tokens", tokens)?,
                x_stride: u32_of("stride", View::stride(cols) / 4)?,
                y_stride: u32_of("stride", View::stride(op.y.width))?,
                which: op.which,
                slice: u32_of("columns", slice)?,
                epsilon: op.epsilon,
                padding: 0,
            };
            let bindings = [
                op.batch.spans,
                op.x.binding(),
                op.vectors.binding(),
                Binding::from(op.state),
                op.shifted.binding(),
                op.y.binding(),
            ];
            let mut dispatch = self.dispatch(pipeline.clone(), &params, &bindings, workgroups)?;
            dispatch.groups.push(chunk.group(self.gpu(), &pipeline)?);
            dispatches.push(dispatch);
        }
        Ok(dispatches)
    }
}
