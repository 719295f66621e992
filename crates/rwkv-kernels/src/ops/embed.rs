//! Embedding: row `id` of a table for each token.

use crate::{BatchTables, Error, GpuMatrix, Kernels, Matrix, Result, View, kernels::u32_of};
use bytemuck::NoUninit;
use rwkv_gpu::Dispatch;

/// The twin: `y[t] = table[ids[t]]` for `y` of `ids · cols`.
///
/// # Errors
/// [`Error::Shape`] for an id past the table or a `y` of another size.
pub fn embed(
    ids: impl ExactSizeIterator<Item = u32>,
    table: &Matrix<'_>,
    y: &mut [f32],
) -> Result<()> {
    let (rows, cols) = (table.shape().rows.0, table.shape().cols.0);
    if y.len() != ids.len() * cols {
        return Err(Error::shape(
            "embed",
            format!("{} ids of {cols} channels into {}", ids.len(), y.len()),
        ));
    }
    for (id, row) in ids.zip(y.chunks_exact_mut(cols.max(1))) {
        if id as usize >= rows {
            return Err(Error::shape(
                "embed",
                format!("id {id} in a table of {rows}"),
            ));
        }
        table.expand_row(id as usize, row);
    }
    Ok(())
}

/// An embedding on the GPU. Ids past the table leave their row undefined: check them before.
pub struct Embed<'a> {
    /// The batch.
    pub batch: BatchTables<'a>,
    /// Vocabulary × channels.
    pub table: &'a GpuMatrix,
    /// Tokens × channels.
    pub y: View<'a>,
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct Params {
    rows: u32,
    first_row: u32,
    cols: u32,
    units: u32,
    tokens: u32,
    y_stride: u32,
    base: u32,
}

impl Kernels {
    /// The dispatches of `op`: one a part of the table.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes do not fit, [`Error::Gpu`] when the kernel does not compile.
    pub fn embed(&self, op: &Embed<'_>) -> Result<Vec<Dispatch>> {
        let shape = op.table.shape();
        if op.y.width != shape.cols.0 {
            return Err(Error::shape(
                "embed",
                format!("a {shape} table into rows of {}", op.y.width),
            ));
        }
        let layout = op.table.layout();
        let constants: Vec<_> = layout.constants().collect();
        let pipeline = self.pipeline(&format!("embed/{}", layout.shader()), &constants)?;
        op.table
            .chunks()
            .iter()
            .map(|chunk| {
                let params = Params {
                    rows: chunk.rows,
                    first_row: chunk.first_row,
                    cols: u32_of("columns", shape.cols.0)?,
                    units: u32_of("units", op.table.units())?,
                    tokens: u32_of("tokens", op.y.rows)?,
                    y_stride: u32_of("stride", View::stride(op.y.width))?,
                    base: chunk.base,
                };
                let bindings = [op.batch.tokens, op.y.binding()];
                let mut dispatch =
                    self.dispatch(pipeline.clone(), &params, &bindings, op.y.rows)?;
                dispatch.groups.push(chunk.group(self.gpu(), &pipeline)?);
                Ok(dispatch)
            })
            .collect()
    }
}
