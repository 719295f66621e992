//! Matrix products of many tokens with cooperative matrices: f16 inputs, f32 sums (`wgsl/matmul_coop.wgsl`).
//!
//! x is rounded to f16 row by row ([`Kernels::half_rows`]), and weights are rounded to f16 from their values in f32, which
//! F16 weights pass as they are. So a sum is off by at most about 2^-11 `Σ |w x|` for F16 weights and 2^-10 for others,
//! where no weight is below f16's normal numbers (2^-14), from where on the error is at most 2^-25 a weight. A packed
//! weight above 65,504 becomes infinite.

use crate::{
    Error, Kernels, Result, View,
    gpu_weights::Chunk,
    kernels::u32_of,
    ops::{
        CoopShape, HalfRows, Linear,
        coop_product::{CoopOperands, CoopProduct},
        linear::{LinearParams, check_linear, epilogue},
    },
    tuning::{Problem, Tunable},
};
use rwkv_gpu::Dispatch;

impl Kernels {
    /// The shapes that the adapter can run for `op`; none where it has no cooperative matrices, or for weights in F32.
    pub fn coop_shapes(&self, op: &Linear<'_>) -> Vec<CoopShape> {
        match op.weight.layout().shader() {
            "f32" => Vec::new(),
            _ => self.shapes_of(&operands(op)),
        }
    }

    /// The shape that [`linear`](Self::linear) gives `op`, if it is for cooperative matrices at all.
    pub fn coop_shape(&self, op: &Linear<'_>) -> Option<CoopShape> {
        let shapes = self.coop_shapes(op);
        if shapes.is_empty() {
            return None;
        }
        let problem = Problem::of_matrix(Tunable::Matmul, op.weight, op.x.rows);
        let tuned = self.coop_choice(problem);
        let tuned = tuned.filter(|tuned| shapes.contains(tuned));
        tuned.or_else(|| self.default_shape(&operands(op), &shapes))
    }

    /// The dispatches of `op` with x rounded in `halves` already: one or two a part of the matrix. Its twin is
    /// [`matmul`](super::matmul()), within what this file says of errors.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes do not fit or the adapter cannot run the shape, [`Error::Gpu`] when a kernel does
    /// not compile.
    pub fn coop_linear(
        &self,
        op: &Linear<'_>,
        halves: &HalfRows,
        shape: CoopShape,
    ) -> Result<Vec<Dispatch>> {
        check_linear(op)?;
        let fits = (halves.rows(), halves.width()) == (op.x.rows, op.x.width);
        if !fits || !self.coop_shapes(op).contains(&shape) {
            return Err(Error::shape(
                "product with cooperative matrices",
                format!(
                    "{}×{} by a {} matrix of {} in {} slices of tiles {}; use `linear`",
                    halves.rows(),
                    halves.width(),
                    op.weight.shape(),
                    op.weight.format(),
                    shape.slices,
                    shape.tile.name(),
                ),
            ));
        }
        let mut dispatches = Vec::new();
        for chunk in op.weight.chunks() {
            let mut constants = vec![("UNITS", op.weight.units() as f64)];
            constants.extend(op.weight.layout().constants());
            let product = CoopProduct {
                source: op.weight.layout().shader(),
                halves,
                chunk,
                params: params_of(op, chunk)?,
                constants,
                epilogue: epilogue(op).collect(),
                bias: op.bias,
                residual: op.residual,
                y: op.y,
            };
            dispatches.extend(self.coop_part(&product, shape)?);
        }
        Ok(dispatches)
    }

    /// As [`coop_linear`](Self::coop_linear), rounding x first, into memory that all such products share.
    ///
    /// # Errors
    /// Those of [`coop_linear`](Self::coop_linear).
    pub fn coop_linear_rounding(&self, op: &Linear<'_>, shape: CoopShape) -> Result<Vec<Dispatch>> {
        let buffer = self.shared_inputs(HalfRows::bytes(op.x.rows, op.x.width))?;
        let halves = HalfRows::within(buffer, op.x.rows, op.x.width);
        let mut dispatches = vec![self.half_rows(&op.x, &halves)?];
        dispatches.extend(self.coop_linear(op, &halves, shape)?);
        Ok(dispatches)
    }
}

fn operands(op: &Linear<'_>) -> CoopOperands {
    CoopOperands {
        source: op.weight.layout().shader(),
        tokens: op.x.rows,
        rows: op.weight.shape().rows.0,
        cols: op.x.width,
        // Parts have all columns.
        part: 0,
    }
}

fn params_of(op: &Linear<'_>, chunk: &Chunk) -> Result<LinearParams> {
    let shape = op.weight.shape();
    Ok(LinearParams {
        rows: chunk.rows,
        first_row: chunk.first_row,
        cols: u32_of("columns", shape.cols.0)?,
        units: u32_of("units", op.weight.units())?,
        tokens: u32_of("tokens", op.x.rows)?,
        x_stride: u32_of("stride", HalfRows::stride(op.x.width) / 4)?,
        y_stride: u32_of("stride", View::stride(op.y.width))?,
        residual_stride: u32_of("stride", View::stride(shape.rows.0))?,
        base: chunk.base,
        chunk: 0,
    })
}
