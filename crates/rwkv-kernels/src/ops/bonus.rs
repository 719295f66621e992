//! What the current token adds past the state, head by head: `y = x + (Σ r ⊙ k ⊙ r_k) v`.

use crate::{Error, GpuVector, Kernels, Result, View, kernels::u32_of};
use bytemuck::NoUninit;
use rwkv_gpu::Dispatch;

/// The twin, for rows of `r_k.len()` channels in heads of `head_size`.
///
/// # Errors
/// [`Error::Shape`] when the sizes do not fit.
pub fn bonus(
    x: &[f32],
    r: &[f32],
    k: &[f32],
    v: &[f32],
    r_k: &[f32],
    head_size: usize,
    y: &mut [f32],
) -> Result<()> {
    let width = r_k.len();
    let fit = [r.len(), k.len(), v.len(), y.len()]
        .iter()
        .all(|n| *n == x.len());
    let whole = width > 0
        && head_size > 0
        && width.is_multiple_of(head_size)
        && x.len().is_multiple_of(width);
    if !fit || !whole {
        return Err(Error::shape(
            "bonus",
            format!("rows of {width} channels, heads of {head_size}"),
        ));
    }
    for start in (0..x.len()).step_by(head_size) {
        let head = start..start + head_size;
        let sum: f32 = head.clone().map(|i| r[i] * k[i] * r_k[i % width]).sum();
        for i in head {
            y[i] = x[i] + sum * v[i];
        }
    }
    Ok(())
}

/// The bonus on the GPU; all activations are tokens × channels.
pub struct Bonus<'a> {
    /// What it is added to.
    pub x: View<'a>,
    /// Receptance.
    pub r: View<'a>,
    /// Key.
    pub k: View<'a>,
    /// Value.
    pub v: View<'a>,
    /// One element a channel.
    pub r_k: &'a GpuVector,
    /// Channels a head.
    pub head_size: usize,
    /// The result.
    pub y: View<'a>,
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct Params {
    count: u32,
    heads: u32,
    head_size: u32,
    stride: u32,
}

impl Kernels {
    /// The dispatch of `op`.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes do not fit, [`Error::Gpu`] when the kernel does not compile.
    pub fn bonus(&self, op: &Bonus<'_>) -> Result<Dispatch> {
        let View { rows, width, .. } = op.x;
        let whole = op.head_size > 0 && width.is_multiple_of(op.head_size) && op.r_k.len() == width;
        if !whole
            || [op.r, op.k, op.v, op.y]
                .iter()
                .any(|v| v.rows != rows || v.width != width)
        {
            return Err(Error::shape(
                "bonus",
                format!("rows of {width} channels, heads of {}", op.head_size),
            ));
        }
        let heads = width / op.head_size;
        let params = Params {
            count: u32_of("heads", rows * heads)?,
            heads: u32_of("heads", heads)?,
            head_size: u32_of("head size", op.head_size)?,
            stride: u32_of("stride", View::stride(width))?,
        };
        let bindings = [
            op.x.binding(),
            op.r.binding(),
            op.k.binding(),
            op.v.binding(),
            op.r_k.binding(),
            op.y.binding(),
        ];
        let pipeline = self.pipeline(&format!("bonus/{}", self.lanes()), &[])?;
        self.dispatch(
            pipeline,
            &params,
            &bindings,
            (rows * heads).div_ceil(self.rows_per_workgroup(128)),
        )
    }
}
