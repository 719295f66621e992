//! Matrix products of many tokens with a W that lies by columns, with cooperative matrices (`wgsl/matmul_coop.wgsl`):
//! `y = W x + residual`. Their errors are those of [`Kernels::coop_linear`] with F16 weights. Where W is in several parts
//! along the inputs, each but the first adds to y.

use crate::{
    Error, Format, Kernels, Result, View,
    gpu_weights::Chunk,
    kernels::u32_of,
    ops::{
        CoopShape, HalfRows, SparseLinear,
        coop_product::{COLUMNS, CoopOperands, CoopProduct},
        linear::LinearParams,
        sparse_linear::check_sparse,
    },
    tuning::{Problem, Tunable},
};
use rwkv_gpu::Dispatch;

/// Up to this many, skipping inputs that are zero for all of them is faster than cooperative matrices: of 8 tokens of a
/// trained model less than half of the inputs are (H200, 2026-11).
const FEW_TOKENS: usize = 4;

impl Kernels {
    /// The shapes that the adapter can run for `op` with cooperative matrices; none where it has none.
    pub fn coop_column_shapes(&self, op: &SparseLinear<'_>) -> Vec<CoopShape> {
        self.shapes_of(&operands(op))
    }

    /// The shape that [`sparse_linear`](Self::sparse_linear) gives `op`, if it is for cooperative matrices at all: not
    /// for few tokens, of which zeros are skipped, nor with [`SparseLinear::dense`].
    pub fn coop_column_shape(&self, op: &SparseLinear<'_>) -> Option<CoopShape> {
        if op.dense || op.x.rows <= FEW_TOKENS {
            return None;
        }
        let shapes = self.coop_column_shapes(op);
        if shapes.is_empty() {
            return None;
        }
        let shape = op.weight.shape();
        let tuned = self.coop_choice(Problem {
            kernel: Tunable::MatmulColumns,
            format: Format::F16.to_string(),
            rows: shape.rows.0,
            cols: shape.cols.0,
            tokens: op.x.rows.next_power_of_two(),
        });
        let tuned = tuned.filter(|tuned| shapes.contains(tuned));
        tuned.or_else(|| self.default_shape(&operands(op), &shapes))
    }

    /// The dispatches of `op` with x rounded in `halves` already: one or two a part of the matrix, and one that stores
    /// the shift. Its twin is [`matmul`](super::matmul()).
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes do not fit or the adapter cannot run the shape, [`Error::Gpu`] when a kernel does
    /// not compile.
    pub fn coop_columns(
        &self,
        op: &SparseLinear<'_>,
        halves: &HalfRows,
        shape: CoopShape,
    ) -> Result<Vec<Dispatch>> {
        check_sparse(op)?;
        let fits = (halves.rows(), halves.width()) == (op.x.rows, op.x.width);
        if !fits || !self.coop_column_shapes(op).contains(&shape) {
            return Err(Error::shape(
                "product with cooperative matrices",
                format!(
                    "{}×{} by a {} matrix in columns in {} slices of tiles {}; use `sparse_linear`",
                    halves.rows(),
                    halves.width(),
                    op.weight.shape(),
                    shape.slices,
                    shape.tile.name(),
                ),
            ));
        }
        let mut dispatches = Vec::new();
        for chunk in op.weight.chunks() {
            let first = chunk.first_row == 0;
            let residual = op.residual.filter(|_| first);
            let product = CoopProduct {
                source: COLUMNS,
                halves,
                chunk,
                params: params_of(op, chunk)?,
                constants: vec![("UNITS", op.weight.units() as f64)],
                epilogue: vec![
                    ("HAS_RESIDUAL", f64::from(u8::from(residual.is_some()))),
                    ("ADDS", f64::from(u8::from(!first))),
                ],
                bias: None,
                residual,
                y: op.y,
            };
            dispatches.extend(self.coop_part(&product, shape)?);
        }
        if let Some(store) = &op.store {
            dispatches.push(self.store_shift(store)?);
        }
        Ok(dispatches)
    }

    /// As [`coop_columns`](Self::coop_columns), rounding x first, into memory that all such products share.
    ///
    /// # Errors
    /// Those of [`coop_columns`](Self::coop_columns).
    pub fn coop_columns_rounding(
        &self,
        op: &SparseLinear<'_>,
        shape: CoopShape,
    ) -> Result<Vec<Dispatch>> {
        let buffer = self.shared_inputs(HalfRows::bytes(op.x.rows, op.x.width))?;
        let halves = HalfRows::within(buffer, op.x.rows, op.x.width);
        let mut dispatches = vec![self.half_rows(&op.x, &halves)?];
        dispatches.extend(self.coop_columns(op, &halves, shape)?);
        Ok(dispatches)
    }
}

fn operands(op: &SparseLinear<'_>) -> CoopOperands {
    let shape = op.weight.shape();
    // The last part may end anywhere: x is zero from there to the end of a step.
    let parts = op
        .weight
        .chunks()
        .split_last()
        .map_or(&[][..], |(_, all)| all);
    let multiple = |of: usize| parts.iter().all(|p| (p.rows as usize).is_multiple_of(of));
    let part = [0, 128, 64].into_iter().find(|of| multiple(*of));
    CoopOperands {
        source: COLUMNS,
        tokens: op.x.rows,
        rows: shape.rows.0,
        cols: shape.cols.0,
        part: part.unwrap_or(1),
    }
}

fn params_of(op: &SparseLinear<'_>, chunk: &Chunk) -> Result<LinearParams> {
    let stride = u32_of("stride", View::stride(op.y.width))?;
    Ok(LinearParams {
        rows: u32_of("rows", op.y.width)?,
        first_row: 0,
        cols: chunk.rows,
        units: u32_of("units", op.weight.units())?,
        tokens: u32_of("tokens", op.x.rows)?,
        x_stride: u32_of("stride", HalfRows::stride(op.x.width) / 4)?,
        y_stride: stride,
        residual_stride: stride,
        base: chunk.first_row,
        chunk: 0,
    })
}
