//! RWKV-7's two keys, head by head (Peng et al. 2025, eq. 8 and 14):
//! `replacement = k ⊙ (1 + (a − 1) ⊙ k_a)` goes into the state, and `removal = normalize(k ⊙ k_k)` says what leaves it.

use crate::{
    Error, GpuVector, Kernels, Result, View, kernels::u32_of, ops::token_shift::block_elements,
};
use bytemuck::NoUninit;
use rwkv_gpu::Dispatch;

/// The twin, for rows of `k_k.len()` channels in heads of `head_size`; the norm is at least 1e-12.
///
/// # Errors
/// [`Error::Shape`] when the sizes do not fit.
pub fn keys7(
    k: &[f32],
    a: &[f32],
    k_k: &[f32],
    k_a: &[f32],
    head_size: usize,
    replacement: &mut [f32],
    removal: &mut [f32],
) -> Result<()> {
    let width = k_k.len();
    let fit = [a.len(), replacement.len(), removal.len()]
        .iter()
        .all(|n| *n == k.len());
    let whole = width > 0
        && head_size > 0
        && width.is_multiple_of(head_size)
        && k.len().is_multiple_of(width);
    if !fit || !whole || k_a.len() != width {
        return Err(Error::shape(
            "keys",
            format!("rows of {width} channels, heads of {head_size}"),
        ));
    }
    for (i, (k, a)) in k.iter().zip(a).enumerate() {
        replacement[i] = k * (1.0 + (a - 1.0) * k_a[i % width]);
        removal[i] = k * k_k[i % width];
    }
    for head in removal.chunks_exact_mut(head_size) {
        let scale = 1.0 / head.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-12);
        for x in head {
            *x *= scale;
        }
    }
    Ok(())
}

/// The keys on the GPU.
pub struct Keys7<'a> {
    /// Tokens × channels.
    pub k: View<'a>,
    /// The in-context learning rate, tokens × channels.
    pub a: View<'a>,
    /// One element a channel.
    pub k_k: &'a GpuVector,
    /// One element a channel.
    pub k_a: &'a GpuVector,
    /// Channels a head.
    pub head_size: usize,
    /// The replacement key, then the removal key, [`View::block_bytes`] apart.
    pub y: View<'a>,
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct Params {
    count: u32,
    heads: u32,
    head_size: u32,
    stride: u32,
    block: u32,
}

impl Kernels {
    /// The dispatch of `op`.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes do not fit, [`Error::Gpu`] when the kernel does not compile.
    pub fn keys7(&self, op: &Keys7<'_>) -> Result<Dispatch> {
        let View { rows, width, .. } = op.k;
        let whole = op.head_size > 0 && width.is_multiple_of(op.head_size);
        let fit = [op.a.width, op.y.width, op.k_k.len(), op.k_a.len()]
            .iter()
            .all(|n| *n == width);
        if !whole || !fit || op.a.rows != rows || op.y.rows != rows {
            return Err(Error::shape(
                "keys",
                format!("rows of {width} channels, heads of {}", op.head_size),
            ));
        }
        let heads = width / op.head_size;
        let params = Params {
            count: u32_of("heads", rows * heads)?,
            heads: u32_of("heads", heads)?,
            head_size: u32_of("head size", op.head_size)?,
            stride: u32_of("stride", View::stride(width))?,
            block: block_elements(rows, width)?,
        };
        let bindings = [
            op.k.binding(),
            op.a.binding(),
            op.k_k.binding(),
            op.k_a.binding(),
            op.y.blocks_binding(2),
        ];
        let pipeline = self.pipeline(&format!("keys7/{}", self.lanes()), &[])?;
        self.dispatch(
            pipeline,
            &params,
            &bindings,
            (rows * heads).div_ceil(self.rows_per_workgroup(128)),
        )
    }
}
