//! Turning F16 rows into columns: `y[input, output] = x[output, input]`, bit by bit.

use crate::{
    Error, Format, GpuColumns, GpuMatrix, Kernels, Result, gpu_weights::Chunk, kernels::u32_of,
};
use bytemuck::NoUninit;
use rwkv_gpu::Dispatch;

/// Some rows of a matrix on the GPU, on their way into the whole matrix by columns.
pub struct Transpose<'a> {
    /// The rows: F16, with the columns of `y`.
    pub x: &'a GpuMatrix,
    /// The number of the first of them in the whole matrix.
    pub first_output: usize,
    /// The whole matrix.
    pub y: &'a GpuColumns,
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct Params {
    rows: u32,
    first_output: u32,
    row_units: u32,
    column_units: u32,
    inputs: u32,
    first_input: u32,
    base: u32,
}

/// The side of a tile, as in the WGSL.
const TILE: usize = 64;

impl Kernels {
    /// The dispatches of `op`: one for each part of `x` and part of `y`.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes do not fit, [`Error::Gpu`] when the kernel does not compile.
    pub fn transpose(&self, op: &Transpose<'_>) -> Result<Vec<Dispatch>> {
        let (x, y) = (op.x.shape(), op.y.shape());
        let end = op.first_output.checked_add(x.rows.0);
        if op.x.format() != Format::F16 || x.cols != y.cols || end.is_none_or(|end| end > y.rows.0)
        {
            return Err(Error::shape(
                "transpose",
                format!(
                    "{x} of {} at row {} of {y} of f16",
                    op.x.format(),
                    op.first_output
                ),
            ));
        }
        let pipeline = self.pipeline("transpose", &[])?;
        let mut dispatches = Vec::new();
        for rows in op.x.chunks() {
            for columns in op.y.chunks() {
                let (Some(x), Some(y)) = (rows.bindings().next(), columns.bindings().next()) else {
                    continue;
                };
                let first = op.first_output + rows.first();
                let params = Params {
                    rows: rows.rows,
                    first_output: u32_of("outputs", first)?,
                    row_units: u32_of("units", op.x.units())?,
                    column_units: u32_of("units", op.y.units())?,
                    inputs: columns.rows,
                    first_input: columns.first_row,
                    base: rows.base,
                };
                let mut dispatch = self.dispatch(pipeline.clone(), &params, &[x, y], 1)?;
                dispatch.grid = self.tiles(columns, first, rows.rows as usize)?;
                dispatches.push(dispatch);
            }
        }
        Ok(dispatches)
    }

    /// The grid of the tiles of these inputs and outputs.
    fn tiles(&self, columns: &Chunk, first: usize, rows: usize) -> Result<[u32; 3]> {
        let x = (columns.rows as usize).div_ceil(TILE);
        let y = (first + rows).div_ceil(TILE) - first / TILE;
        let limit = self.gpu().capabilities().limits.workgroups as usize;
        if x.max(y) > limit {
            return Err(Error::shape(
                "transpose",
                format!("{x}×{y} tiles pass the grid's limit of {limit}"),
            ));
        }
        Ok([u32_of("tiles", x)?, u32_of("tiles", y)?, 1])
    }
}
