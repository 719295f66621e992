//! Matrix products with inputs of which many are zero: `y = W x + residual`, where W lies by columns.
//!
//! For up to 8 tokens, the columns of W whose input is zero for all tokens are not read: for the channel mixing of
//! trained models, whose relu² leaves 5 to 15 % of the inputs, the product takes that share of the time. Its twin is
//! [`matmul`](crate::ops::matmul), with two differences: a result that is zero may have the other sign, and what W
//! holds in columns that are skipped does not matter, be it infinite or not a number.
//!
//! For more tokens the product is an ordinary one.
//!
//! The order in which a sum's terms are added depends on which inputs are not zero, for all tokens of the dispatch
//! together, and on nothing else. With [`SparseLinear::dense`] and the same [`SparseTuning`] it is always the same.

use crate::{
    Error, GpuColumns, Kernels, Page, Result, View,
    gpu_weights::Chunk,
    kernels::u32_of,
    ops::{StoreShift, linear::LinearParams},
};
use bytemuck::NoUninit;
use rwkv_gpu::{Binding, Dispatch};

/// A product with a matrix by columns on the GPU: `y = W x + residual`.
pub struct SparseLinear<'a> {
    /// Tokens × columns of the matrix.
    pub x: View<'a>,
    /// The matrix.
    pub weight: &'a GpuColumns,
    /// Tokens × rows of the matrix; not the buffer of `y`.
    pub residual: Option<View<'a>>,
    /// Tokens × rows of the matrix.
    pub y: View<'a>,
    /// A token shift to be stored by the same dispatch, for spans of one token each: its `x` has the matrix's rows as
    /// channels and is not in the buffer of `y`.
    pub store: Option<StoreShift<'a>>,
    /// Whether few inputs are zero, so that looking for them costs more than it saves.
    pub dense: bool,
    /// How workgroups share the work, up to 8 tokens.
    pub tuning: SparseTuning,
}

/// How workgroups share a product. `None` chooses by shape.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SparseTuning {
    /// Threads of a workgroup: 256, or 1,024 for one or two tokens where the adapter has as many.
    pub threads: Option<u32>,
    /// Outputs that a workgroup makes: 8, 16, 32 or 64. Cut to what a subgroup's lanes can share.
    pub outputs: Option<u32>,
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct Params {
    page: Page,
    outputs: u32,
    inputs: u32,
    units: u32,
    tokens: u32,
    x_stride: u32,
    y_stride: u32,
    residual_stride: u32,
    spans: u32,
    shift_stride: u32,
    which: u32,
    has_residual: u32,
    adds: u32,
}

/// Up to this many tokens, columns are skipped.
const MOST_TOKENS: usize = 8;
/// The side of a matmul tile, as in the WGSL.
const TILE: usize = 64;
/// Words of the list that the sums of all subgroups must fit in the end, as in the WGSL.
const LISTED: u32 = 3840;
/// Workgroups that fill the largest GPUs, of about as many cores.
const WORKGROUPS: usize = 128;
/// The least work, in inputs times 16-byte units a workgroup, that 1,024 threads are for.
const LARGE: usize = 16_384;

/// What [`SparseTuning`] came to.
struct Shape {
    threads: u32,
    /// 16-byte units of a column, of eight outputs each.
    columns: u32,
}

impl Kernels {
    /// The dispatches of `op`: one a part of the matrix, and for more than 8 tokens one more that stores the shift.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes do not fit, spans are more than tokens, or the adapter has not what the tuning
    /// asks for, [`Error::Gpu`] when a kernel does not compile.
    pub fn sparse_linear(&self, op: &SparseLinear<'_>) -> Result<Vec<Dispatch>> {
        let shape = op.weight.shape();
        let tokens = op.x.rows;
        let rows = shape.rows.0;
        let fits = tokens > 0
            && shape.cols.0 > 0
            && op.x.width == shape.cols.0
            && op.y.width == rows
            && op.y.rows == tokens
            && op
                .residual
                .is_none_or(|r| r.width == rows && r.rows == tokens)
            && op
                .store
                .as_ref()
                .is_none_or(|s| s.x.width == rows && s.batch.span_count <= tokens);
        if !fits {
            return Err(Error::shape(
                "sparse linear",
                format!(
                    "{tokens}×{} by a {shape} matrix into {}×{}, storing {} channels of {} spans",
                    op.x.width,
                    op.y.rows,
                    op.y.width,
                    op.store.as_ref().map_or(0, |s| s.x.width),
                    op.store.as_ref().map_or(0, |s| s.batch.span_count),
                ),
            ));
        }
        if tokens <= MOST_TOKENS {
            return self.sparse_matvec(op);
        }
        let mut dispatches = self.tiled(op)?;
        if let Some(store) = &op.store {
            dispatches.push(self.store_shift(store)?);
        }
        Ok(dispatches)
    }

    fn sparse_matvec(&self, op: &SparseLinear<'_>) -> Result<Vec<Dispatch>> {
        let shape = self.sparse_shape(op)?;
        let units = op.weight.units();
        let mut dispatches = Vec::new();
        for chunk in op.weight.chunks() {
            let first = chunk.first_row == 0;
            let store = op.store.as_ref().filter(|_| first);
            let epilogue = if store.is_some() { "shift" } else { "sums" };
            let name = format!(
                "sparse_matvec/{}/{}/{}/{epilogue}",
                self.lanes(),
                shape.threads,
                op.x.rows.next_power_of_two()
            );
            let constants = [
                ("COLUMNS", f64::from(shape.columns)),
                ("DENSE", f64::from(u8::from(op.dense))),
            ];
            let pipeline = self.pipeline(&name, &constants)?;
            let params = Params {
                page: store.map_or(bytemuck::Zeroable::zeroed(), |s| s.page),
                outputs: u32_of("rows", op.y.width)?,
                inputs: chunk.rows,
                units: u32_of("units", units)?,
                tokens: u32_of("tokens", op.x.rows)?,
                x_stride: u32_of("stride", View::stride(op.x.width) / 4)?,
                y_stride: u32_of("stride", View::stride(op.y.width))?,
                residual_stride: u32_of("stride", View::stride(op.y.width))?,
                spans: u32_of("spans", store.map_or(0, |s| s.batch.span_count))?,
                shift_stride: u32_of("stride", View::stride(op.y.width))?,
                which: store.map_or(0, |s| s.which),
                has_residual: u32::from(first && op.residual.is_some()),
                adds: u32::from(!first),
            };
            let mut bindings = vec![
                inputs_of(&op.x, chunk),
                op.residual.as_ref().map_or(self.unused(), View::binding),
                op.y.binding(),
            ];
            if let Some(store) = store {
                bindings.extend([
                    store.batch.spans,
                    store.x.binding(),
                    Binding::from(store.state),
                ]);
            }
            let workgroups = units.div_ceil(shape.columns as usize);
            let mut dispatch = self.dispatch(pipeline.clone(), &params, &bindings, workgroups)?;
            dispatch.groups.push(chunk.group(self.gpu(), &pipeline)?);
            dispatches.push(dispatch);
        }
        Ok(dispatches)
    }

    /// Threads and outputs of a workgroup.
    fn sparse_shape(&self, op: &SparseLinear<'_>) -> Result<Shape> {
        let have = self.gpu().capabilities();
        let (units, inputs) = (op.weight.units(), op.x.width);
        let wanted = match op.tuning.outputs {
            Some(outputs @ (8 | 16 | 32 | 64)) => outputs / 8,
            Some(other) => {
                let problem = format!("a workgroup makes 8, 16, 32 or 64 outputs, not {other}");
                return Err(Error::shape("sparse linear", problem));
            }
            // As wide as still fills the GPU: each workgroup looks through all inputs, and 64 bytes of a column are
            // what memory delivers at once.
            None => [8, 4, 2, 1]
                .into_iter()
                .find(|columns| units / *columns as usize >= WORKGROUPS)
                .unwrap_or(1),
        };
        // Without subgroups, sums meet in workgroup memory and there is no such limit.
        let columns = have.subgroups.map_or(wanted, |s| wanted.min(s.min.max(1)));
        let sums_fit = |s: rwkv_gpu::SubgroupSizes| 1024 / s.min.max(1) * columns * 8 <= LISTED;
        let many = op.x.rows <= 2
            && have.limits.workgroup_invocations >= 1024
            && have.subgroups.is_some_and(sums_fit);
        let threads = match op.tuning.threads {
            None if many && inputs.saturating_mul(columns as usize) >= LARGE => 1024,
            None | Some(256) => 256,
            Some(1024) if many => 1024,
            Some(other) => {
                let problem = format!(
                    "{other} threads a workgroup are not possible with {} tokens and {} outputs on this adapter; \
                     take 256",
                    op.x.rows,
                    columns * 8
                );
                return Err(Error::shape("sparse linear", problem));
            }
        };
        Ok(Shape { threads, columns })
    }

    fn tiled(&self, op: &SparseLinear<'_>) -> Result<Vec<Dispatch>> {
        let (tokens, rows) = (op.x.rows, op.y.width);
        let grid = [
            u32_of("rows", rows.div_ceil(TILE))?,
            u32_of("tokens", tokens.div_ceil(TILE))?,
            1,
        ];
        let limit = self.gpu().capabilities().limits.workgroups;
        if grid.iter().any(|n| *n > limit) {
            return Err(Error::shape(
                "sparse linear",
                format!("{tokens} tokens by {rows} rows pass the grid's limit"),
            ));
        }
        let mut dispatches = Vec::new();
        for chunk in op.weight.chunks() {
            let first = chunk.first_row == 0;
            let constants = [
                (
                    "HAS_RESIDUAL",
                    f64::from(u8::from(first && op.residual.is_some())),
                ),
                ("ADDS", f64::from(u8::from(!first))),
            ];
            let pipeline = self.pipeline("matmul_columns", &constants)?;
            let params = LinearParams {
                rows: u32_of("rows", rows)?,
                first_row: 0,
                cols: chunk.rows,
                units: u32_of("units", op.weight.units())?,
                tokens: u32_of("tokens", tokens)?,
                x_stride: u32_of("stride", View::stride(op.x.width) / 4)?,
                y_stride: u32_of("stride", View::stride(rows))?,
                residual_stride: u32_of("stride", View::stride(rows))?,
                base: 0,
                chunk: 0,
            };
            let bindings = [
                inputs_of(&op.x, chunk),
                self.unused(),
                op.residual.as_ref().map_or(self.unused(), View::binding),
                op.y.binding(),
            ];
            let mut dispatch = self.dispatch(pipeline.clone(), &params, &bindings, 1)?;
            dispatch.grid = grid;
            dispatch.groups.push(chunk.group(self.gpu(), &pipeline)?);
            dispatches.push(dispatch);
        }
        Ok(dispatches)
    }
}

/// The elements of `x` from the first input of `chunk` on. Parts begin at multiples of 64 inputs, so 256 bytes, which
/// every adapter can bind.
fn inputs_of<'a>(x: &View<'a>, chunk: &Chunk) -> Binding<'a> {
    let skipped = u64::from(chunk.first_row) * 4;
    Binding {
        buffer: x.buffer,
        offset: x.offset + skipped,
        size: Some(View::bytes(x.rows, x.width) - skipped),
    }
}
