//! The rows whose logits are wanted.

use crate::{BatchTables, Error, Kernels, Result, View, kernels::u32_of};
use bytemuck::NoUninit;
use rwkv_gpu::Dispatch;

/// The twin: `y[i] = x[rows[i]]`, for rows of `width`.
pub fn select(x: &[f32], width: usize, rows: &[u32], y: &mut [f32]) {
    for (row, y) in rows.iter().zip(y.chunks_exact_mut(width.max(1))) {
        y.copy_from_slice(&x[*row as usize * width..][..width]);
    }
}

/// The selection on the GPU.
pub struct Select<'a> {
    /// The batch, which names the rows.
    pub batch: BatchTables<'a>,
    /// Tokens × channels.
    pub x: View<'a>,
    /// Wanted rows × channels.
    pub y: View<'a>,
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct Params {
    count: u32,
    width: u32,
    stride: u32,
}

/// Threads of a workgroup, as in the WGSL.
const THREADS: usize = 128;

impl Kernels {
    /// The dispatch of `op`.
    ///
    /// # Errors
    /// [`Error::Shape`] when the widths differ, [`Error::Gpu`] when the kernel does not compile.
    pub fn select(&self, op: &Select<'_>) -> Result<Dispatch> {
        let View { rows, width, .. } = op.y;
        if op.x.width != width {
            return Err(Error::shape(
                "select",
                format!("rows of {} into rows of {width}", op.x.width),
            ));
        }
        let params = Params {
            count: u32_of("rows", rows)?,
            width: u32_of("channels", width)?,
            stride: u32_of("stride", View::stride(width))?,
        };
        let bindings = [op.batch.outputs, op.x.binding(), op.y.binding()];
        let pipeline = self.pipeline("select", &[])?;
        self.dispatch(pipeline, &params, &bindings, rows * width.div_ceil(THREADS))
    }
}
