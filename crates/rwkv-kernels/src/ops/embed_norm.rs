//! Embedding and layer norm in one kernel: what `embed` and `norm` do one after the other. Those are its twin.

use crate::{BatchTables, Error, GpuMatrix, GpuVector, Kernels, Result, View, kernels::u32_of};
use bytemuck::NoUninit;
use rwkv_gpu::Dispatch;

/// A normed embedding on the GPU. Ids past the table leave their row undefined: check them before.
pub struct EmbedNorm<'a> {
    /// The batch.
    pub batch: BatchTables<'a>,
    /// Vocabulary × channels.
    pub table: &'a GpuMatrix,
    /// The norm's, one element a channel.
    pub weight: &'a GpuVector,
    /// The norm's, one element a channel.
    pub bias: &'a GpuVector,
    /// Added to the variance.
    pub epsilon: f32,
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
    epsilon: f32,
    base: u32,
}

/// Threads of a workgroup.
const SIZE: usize = 256;
/// Units that a thread holds at most, as in the WGSL, and elements: three registers each.
const MOST_OWN: usize = 4;
const MOST_ELEMENTS: usize = 32;

impl Kernels {
    /// The dispatches of `op`: one a part of the table.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes do not fit, [`Error::Gpu`] when the kernel does not compile.
    pub fn embed_norm(&self, op: &EmbedNorm<'_>) -> Result<Vec<Dispatch>> {
        let shape = op.table.shape();
        let width = op.y.width;
        if [shape.cols.0, op.weight.len(), op.bias.len()] != [width; 3] {
            return Err(Error::shape(
                "embedding and norm",
                format!(
                    "a {shape} table and norms of {} and {} into rows of {width}",
                    op.weight.len(),
                    op.bias.len()
                ),
            ));
        }
        let layout = op.table.layout();
        let own = op.table.units().div_ceil(SIZE);
        let holds = own <= MOST_OWN && own * layout.unit() <= MOST_ELEMENTS;
        let mut constants: Vec<_> = layout.constants().collect();
        constants.push(("OWN", if holds { own as f64 } else { 0.0 }));
        let name = format!("embed_norm/{}/{SIZE}/{}", layout.shader(), self.lanes());
        let pipeline = self.pipeline(&name, &constants)?;
        op.table
            .chunks()
            .iter()
            .map(|chunk| {
                let params = Params {
                    rows: chunk.rows,
                    first_row: chunk.first_row,
                    cols: u32_of("columns", width)?,
                    units: u32_of("units", op.table.units())?,
                    tokens: u32_of("tokens", op.y.rows)?,
                    y_stride: u32_of("stride", View::stride(width) / 4)?,
                    epsilon: op.epsilon,
                    base: chunk.base,
                };
                let bindings = [
                    op.batch.tokens,
                    op.weight.binding(),
                    op.bias.binding(),
                    op.y.binding(),
                ];
                let mut dispatch =
                    self.dispatch(pipeline.clone(), &params, &bindings, op.y.rows)?;
                dispatch.groups.push(chunk.group(self.gpu(), &pipeline)?);
                Ok(dispatch)
            })
            .collect()
    }
}
