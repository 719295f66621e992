//! Layer norm and group norm: `y = (x − mean) / √(variance + ε) ⊙ weight + bias`, over groups of a row's channels.

use crate::{Error, GpuVector, Kernels, Result, View, kernels::u32_of};
use bytemuck::NoUninit;
use rwkv_gpu::Dispatch;

/// The twin: rows of `weight.len()` channels, normalised in groups of `group` channels (a layer norm has one group).
///
/// # Errors
/// [`Error::Shape`] when the sizes do not fit.
pub fn norm(
    x: &[f32],
    group: usize,
    weight: &[f32],
    bias: &[f32],
    epsilon: f32,
    y: &mut [f32],
) -> Result<()> {
    let width = weight.len();
    let whole =
        width > 0 && group > 0 && width.is_multiple_of(group) && x.len().is_multiple_of(width);
    if !whole || bias.len() != width || y.len() != x.len() {
        return Err(Error::shape(
            "norm",
            format!("{} elements, rows of {width}, groups of {group}", x.len()),
        ));
    }
    for (row, out) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
        let channels = weight.chunks_exact(group).zip(bias.chunks_exact(group));
        for ((x, y), (weight, bias)) in row
            .chunks_exact(group)
            .zip(out.chunks_exact_mut(group))
            .zip(channels)
        {
            let n = group as f32;
            let mean = x.iter().sum::<f32>() / n;
            let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / n;
            let scale = 1.0 / (variance + epsilon).sqrt();
            for (((x, y), w), b) in x.iter().zip(y).zip(weight).zip(bias) {
                *y = (x - mean) * scale * w + b;
            }
        }
    }
    Ok(())
}

/// A norm on the GPU.
pub struct Norm<'a> {
    /// Rows × channels.
    pub x: View<'a>,
    /// Channels that are normalised together: all of them for a layer norm.
    pub group: usize,
    /// One element a channel.
    pub weight: &'a GpuVector,
    /// One element a channel.
    pub bias: &'a GpuVector,
    /// Added to the variance.
    pub epsilon: f32,
    /// Rows × channels.
    pub y: View<'a>,
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct Params {
    count: u32,
    groups: u32,
    width: u32,
    stride: u32,
    epsilon: f32,
}

/// Fours of elements that a thread holds at most, as in the WGSL.
const MOST_OWN: usize = 4;

impl Kernels {
    /// The dispatch of `op`.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes do not fit, [`Error::Gpu`] when the kernel does not compile.
    pub fn norm(&self, op: &Norm<'_>) -> Result<Dispatch> {
        let width = op.x.width;
        let whole = op.group > 0 && width.is_multiple_of(op.group);
        if !whole
            || op.weight.len() != width
            || op.bias.len() != width
            || op.y.width != width
            || op.y.rows != op.x.rows
        {
            return Err(Error::shape(
                "norm",
                format!("rows of {width}, groups of {}", op.group),
            ));
        }
        let groups = width / op.group;
        let params = Params {
            count: u32_of("groups", op.x.rows * groups)?,
            groups: u32_of("groups", groups)?,
            width: u32_of("group", op.group)?,
            stride: u32_of("stride", View::stride(width))?,
            epsilon: op.epsilon,
        };
        let size = if op.group <= 128 { 64 } else { 256 };
        let own = op.group.div_ceil(4 * size);
        let own = if own <= MOST_OWN { own } else { 0 };
        let pipeline = self.pipeline(
            &format!("norm/{size}/{}", self.lanes()),
            &[("OWN", own as f64)],
        )?;
        let bindings = [
            op.x.binding(),
            op.weight.binding(),
            op.bias.binding(),
            op.y.binding(),
        ];
        self.dispatch(pipeline, &params, &bindings, op.x.rows * groups)
    }
}
