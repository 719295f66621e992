//! A matrix product of one token: `y = f(W x) + residual`, and a shift vector stored on the side.

use super::stream::{Stream, StreamShape};
use crate::{
    Error, GpuMatrix, Kernels, Page, Result, View,
    kernels::{PARTIAL_COUNTS, PARTIAL_SUMS, u32_of},
    ops::{Function, StoreShift},
    tuning::{Problem, Tunable},
};
use bytemuck::NoUninit;
use rwkv_gpu::{Binding, Dispatch};

/// A product of one token on the GPU. Codes of up to 8 bits multiply x rounded to 16 bits
/// ([`round_to_16_bits`](super::round_to_16_bits)); its twin is [`matmul`](super::matmul()) of that x.
pub struct StreamLinear<'a> {
    /// 1 × columns of the matrix.
    pub x: View<'a>,
    /// The matrix.
    pub weight: &'a GpuMatrix,
    /// Applied to each element of the product.
    pub function: Function,
    /// 1 × rows of the matrix; not the buffer of `y`.
    pub residual: Option<View<'a>>,
    /// 1 × rows of the matrix.
    pub y: View<'a>,
    /// A row, of as many elements as the matrix has rows, that becomes a shift vector of the state. It lies in the buffer
    /// of `x`.
    pub stores: Option<StoreShift<'a>>,
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct Params {
    page: Page,
    first_row: u32,
    shifted: u32,
    which: u32,
    width: u32,
}

impl StreamLinear<'_> {
    fn epilogue(&self) -> &'static str {
        match self.stores {
            Some(_) => "shift",
            None => "sums",
        }
    }
}

impl Kernels {
    /// Whether [`stream_linear`](Self::stream_linear) can do a product of one token with `weight`; `stores` if it stores
    /// a shift vector.
    pub fn stream_linear_suits(&self, weight: &GpuMatrix, stores: bool) -> bool {
        let epilogue = if stores { "shift" } else { "sums" };
        (!stores || weight.is_whole())
            && self.has_stream_kernel("stream_matvec", weight, epilogue)
            && self.stream_resolved(weight, None).is_some()
    }

    /// `shape`, or the one that was tuned or else the default one.
    fn stream_resolved(&self, weight: &GpuMatrix, shape: Option<StreamShape>) -> Option<Stream> {
        let problem = || Problem::of_matrix(Tunable::StreamMatvec, weight, 1);
        let tuned = shape.or_else(|| self.stream_choice(problem()));
        let usual = || self.stream_fitted(weight, self.stream_shape(weight, false));
        tuned
            .and_then(|shape| self.stream_fitted(weight, shape))
            .or_else(usual)
    }

    /// `shape` with as many slices as there is room for: one where workgroups cannot share sums.
    fn stream_fitted(&self, weight: &GpuMatrix, mut shape: StreamShape) -> Option<Stream> {
        let room = PARTIAL_SUMS / weight.shape().rows.0.max(1);
        let room = match u32::try_from(room).unwrap_or(u32::MAX) {
            room if self.orders_partials() => room,
            _ => 1,
        };
        shape.slices = shape.slices.clamp(1, room.max(1));
        let mut stream = self.stream(weight, shape, 0)?;
        if stream.slices > 1 {
            stream.at_most(PARTIAL_COUNTS);
        }
        (stream.slices == 1 || stream.slices <= room as usize).then_some(stream)
    }

    /// The dispatches of `op`, of a chosen shape or the default one: one a part of the matrix.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes do not fit or the kernel does not suit, [`Error::Gpu`] when it does not compile.
    pub fn stream_linear(
        &self,
        op: &StreamLinear<'_>,
        shape: Option<StreamShape>,
    ) -> Result<Vec<Dispatch>> {
        let matrix = op.weight.shape();
        let fits = op.x.rows == 1
            && op.x.width == matrix.cols.0
            && op.y.rows == 1
            && op.y.width == matrix.rows.0
            && op
                .residual
                .is_none_or(|r| r.rows == 1 && r.width == matrix.rows.0)
            && op.stores.as_ref().is_none_or(|stores| {
                stores.x.rows == 1
                    && stores.x.width == matrix.rows.0
                    && stores.batch.span_count == 1
                    && stores.x.buffer == op.x.buffer
            });
        let suits = self.stream_linear_suits(op.weight, op.stores.is_some());
        let stream = self.stream_resolved(op.weight, shape);
        let (true, true, Some(stream)) = (fits, suits, stream) else {
            return Err(Error::shape(
                "product of one token",
                format!(
                    "{}×{} by a {matrix} matrix of {} into {}×{}; use `linear`",
                    op.x.rows,
                    op.x.width,
                    op.weight.format(),
                    op.y.rows,
                    op.y.width
                ),
            ));
        };
        let mut constants = vec![
            op.function.constant(),
            ("HAS_RESIDUAL", f64::from(u8::from(op.residual.is_some()))),
            ("SLICES", stream.slices as f64),
            ("COUNTERS", PARTIAL_COUNTS as f64),
        ];
        constants.extend(&stream.constants);
        // x, and the row that is stored, as one range.
        let alignment = self.gpu().capabilities().limits.offset_alignment.max(16);
        let rows = [Some(op.x), op.stores.as_ref().map(|stores| stores.x)];
        let starts = rows.iter().flatten().map(|view| view.offset);
        let start = starts.min().unwrap_or(0) / alignment * alignment;
        let ends = rows
            .iter()
            .flatten()
            .map(|view| view.offset + View::bytes(1, view.width));
        let x = Binding {
            buffer: op.x.buffer,
            offset: start,
            size: Some(ends.max().unwrap_or(start) - start),
        };
        let words = |view: &View<'_>| {
            let bytes = view.offset - start;
            u32_of("x", usize::try_from(bytes / 4).unwrap_or(usize::MAX))
        };
        let partials = if stream.slices > 1 {
            self.partials(PARTIAL_SUMS)?
        } else {
            self.unused_output()
        };
        let stores = op.stores.as_ref();
        let mut dispatches = Vec::new();
        for chunk in op.weight.chunks() {
            let params = Params {
                page: stores.map_or(
                    Page {
                        first_slot: 0,
                        slots: 0,
                        padding: [0; 2],
                    },
                    |s| s.page,
                ),
                first_row: chunk.first_row,
                shifted: stores.map_or(Ok(0), |s| words(&s.x))?,
                which: stores.map_or(0, |s| s.which),
                width: u32_of("rows", matrix.rows.0)?,
            };
            let mut constants = constants.clone();
            constants.extend([
                ("MATRIX_ROWS", f64::from(chunk.rows)),
                ("BASE", f64::from(chunk.base)),
                ("X_FIRST", f64::from(words(&op.x)? / 4)),
            ]);
            let pipeline =
                self.stream_pipeline("stream_matvec", op.weight, op.epilogue(), &constants)?;
            let mut bindings = vec![
                x,
                op.residual.as_ref().map_or(self.unused(), View::binding),
                op.y.binding(),
                partials,
            ];
            if let Some(stores) = stores {
                bindings.extend([stores.batch.spans, Binding::from(stores.state)]);
            }
            let workgroups = stream.workgroups(chunk.rows as usize) * stream.slices;
            let mut dispatch = self.dispatch(pipeline.clone(), &params, &bindings, workgroups)?;
            dispatch.groups.push(chunk.group(self.gpu(), &pipeline)?);
            dispatches.push(dispatch);
        }
        Ok(dispatches)
    }
}
