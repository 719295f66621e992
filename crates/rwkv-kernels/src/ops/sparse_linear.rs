//! Matrix products with inputs of which many are zero: `y = W x + residual`, where W lies by columns.
//!
//! For up to 8 tokens, the columns of W whose input is zero for all tokens are not read: for the channel mixing of
//! trained models, whose relu² leaves 5 to 15 % of the inputs, the product takes that share of the time. Its twin is
//! [`matmul`](crate::ops::matmul()), with two differences: a result that is zero may have the other sign, and what W
//! holds in columns that are skipped does not matter, be it infinite or not a number.
//!
//! For more tokens, and with cooperative matrices for more than 4, the product is an ordinary one: with cooperative matrices where the adapter has them
//! ([`Kernels::coop_columns`]), otherwise in f32.
//!
//! The order in which a sum's terms are added depends on the adapter, the [`SparseTuning`], the matrix, and which inputs
//! are not zero for all tokens of the dispatch together; on nothing else, so that the same product has the same bits
//! each time. With [`SparseLinear::dense`] the inputs' values do not matter either, nor how many tokens there are up to 8,
//! nor how many above, where it is never with cooperative matrices.

use crate::{
    Error, Format, GpuColumns, Kernels, Page, Result, View,
    gpu_weights::Chunk,
    kernels::{PARTIAL_SUMS, u32_of},
    ops::{
        SparseTuning, StoreShift,
        linear::LinearParams,
        sparse_tuning::{Able, MOST_TOKENS, cut},
    },
    tuning::{Problem, Tunable},
};
use bytemuck::NoUninit;
use rwkv_gpu::{Binding, Dispatch, Kind};

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

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct Params {
    inputs: u32,
    range: u32,
    x_stride: u32,
    tokens: u32,
    units: u32,
    outputs: u32,
    y_stride: u32,
    residual_stride: u32,
    has_residual: u32,
    adds: u32,
    spans: u32,
    shift_stride: u32,
    page: Page,
    which: u32,
}

impl SparseLinear<'_> {
    /// Tokens up to which inputs that are zero are skipped.
    pub const MOST_TOKENS: usize = MOST_TOKENS;
}

impl Kernels {
    /// The dispatches of `op`: one a part of the matrix, and for more than 8 tokens one more that stores the shift. With
    /// cooperative matrices one rounds x before, and a part may take two.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes do not fit, spans are more than tokens, or the adapter has not what the tuning
    /// asks for, [`Error::Gpu`] when a kernel does not compile.
    pub fn sparse_linear(&self, op: &SparseLinear<'_>) -> Result<Vec<Dispatch>> {
        check_sparse(op)?;
        if let Some(shape) = self.coop_column_shape(op) {
            return self.coop_columns_rounding(op, shape);
        }
        if op.x.rows <= MOST_TOKENS {
            return self.sparse_matvec(op);
        }
        let mut dispatches = self.tiled(op)?;
        if let Some(store) = &op.store {
            dispatches.push(self.store_shift(store)?);
        }
        Ok(dispatches)
    }

    fn sparse_matvec(&self, op: &SparseLinear<'_>) -> Result<Vec<Dispatch>> {
        let able = self.able();
        let units = op.weight.units();
        let tuning = self.sparse_tuning(op, able);
        let stride = u32_of("stride", View::stride(op.y.width))?;
        let mut dispatches = Vec::new();
        for chunk in op.weight.chunks() {
            let first = chunk.first_row == 0;
            let cut = cut(tuning, able, units, chunk.rows as usize, op.x.rows)?;
            let grid = [
                u32_of("slices of outputs", cut.slices)?,
                u32_of("ranges of inputs", cut.ranges)?,
                1,
            ];
            let limit = self.gpu().capabilities().limits.workgroups;
            if grid.iter().any(|n| *n > limit) {
                let problem = format!(
                    "{} slices of {} outputs pass the grid's limit; take wider ones",
                    cut.slices,
                    cut.slice * 8
                );
                return Err(Error::shape("sparse linear", problem));
            }
            let store = op.store.as_ref().filter(|_| first);
            let pipeline = self.pipeline(
                &format!(
                    "sparse_matvec/{}/{}/{}/{}",
                    cut.threads,
                    cut.depth,
                    op.x.rows.next_power_of_two(),
                    if store.is_some() { "shift" } else { "sums" }
                ),
                &[
                    ("SLICE", cut.slice as f64),
                    ("DENSE", f64::from(u8::from(op.dense))),
                    ("SPLIT", f64::from(u8::from(cut.ranges > 1))),
                ],
            )?;
            let params = Params {
                inputs: chunk.rows,
                range: u32_of("range", cut.range)?,
                x_stride: u32_of("stride", View::stride(op.x.width) / 4)?,
                tokens: u32_of("tokens", op.x.rows)?,
                units: u32_of("units", units)?,
                outputs: u32_of("rows", op.y.width)?,
                y_stride: stride,
                residual_stride: stride,
                has_residual: u32::from(first && op.residual.is_some()),
                adds: u32::from(!first),
                spans: u32_of("spans", store.map_or(0, |s| s.batch.span_count))?,
                shift_stride: stride,
                page: store.map_or(bytemuck::Zeroable::zeroed(), |s| s.page),
                which: store.map_or(0, |s| s.which),
            };
            let mut bindings = vec![
                inputs_of(&op.x, chunk),
                op.residual.as_ref().map_or(self.unused(), View::binding),
                op.y.binding(),
                match cut.ranges {
                    1 => self.unused_output(),
                    _ => self.partials(PARTIAL_SUMS)?,
                },
            ];
            if let Some(store) = store {
                bindings.extend([
                    store.batch.spans,
                    store.x.binding(),
                    Binding::from(store.state),
                ]);
            }
            let mut dispatch = self.dispatch(pipeline.clone(), &params, &bindings, 1)?;
            dispatch.grid = grid;
            dispatch.groups.push(chunk.group(self.gpu(), &pipeline)?);
            dispatches.push(dispatch);
        }
        Ok(dispatches)
    }

    /// What `op` asks for, or what was found for products like it, if every part of the matrix can be cut so.
    fn sparse_tuning(&self, op: &SparseLinear<'_>, able: Able) -> SparseTuning {
        if op.tuning != SparseTuning::default() {
            return op.tuning;
        }
        let shape = op.weight.shape();
        let tuned = self.sparse_choice(Problem {
            kernel: Tunable::SparseMatvec,
            format: Format::F16.to_string(),
            rows: shape.rows.0,
            cols: shape.cols.0,
            tokens: op.x.rows.next_power_of_two(),
        });
        let cuts = |tuning: &SparseTuning| {
            let units = op.weight.units();
            let mut rows = op.weight.chunks().iter().map(|chunk| chunk.rows as usize);
            rows.all(|rows| cut(*tuning, able, units, rows, op.x.rows).is_ok())
        };
        tuned.filter(cuts).unwrap_or_default()
    }

    /// How this adapter can share a product.
    fn able(&self) -> Able {
        let gpu = self.gpu();
        let limits = &gpu.capabilities().limits;
        Able {
            large: limits.workgroup_invocations >= 512 && limits.workgroup_bytes >= 24 << 10,
            ordered: self.orders_partials(),
            software: gpu.kind() == Kind::Software,
        }
    }

    fn tiled(&self, op: &SparseLinear<'_>) -> Result<Vec<Dispatch>> {
        let (tokens, rows) = (op.x.rows, op.y.width);
        let grid = self.tile_grid("sparse linear", rows, tokens)?;
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

/// Whether the sizes fit.
pub(super) fn check_sparse(op: &SparseLinear<'_>) -> Result<()> {
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
    Ok(())
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
