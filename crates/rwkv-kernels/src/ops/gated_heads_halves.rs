//! The end of RWKV-7's time mix in one kernel, where only products with cooperative matrices read it: what `norm` of each
//! head, `bonus`, `multiply` by the gate and `half_rows` do one after the other. Those are its twin.

use crate::{
    Error, GpuVector, Kernels, Result, View,
    kernels::u32_of,
    ops::{
        HalfRows,
        row_parts::{ROW_THREADS, parts},
    },
};
use bytemuck::NoUninit;
use rwkv_gpu::Dispatch;

/// `y = (norm(x) + (Σ r ⊙ k ⊙ r_k) v) ⊙ gate`, norm and sum head by head, rounded to f16, on the GPU. All activations are
/// tokens × channels.
pub struct GatedHeadsHalves<'a> {
    /// What the recurrence made.
    pub x: View<'a>,
    /// Receptance.
    pub r: View<'a>,
    /// The key that went into the state.
    pub k: View<'a>,
    /// Value.
    pub v: View<'a>,
    /// The gate.
    pub gate: View<'a>,
    /// Rows of channels.
    pub vectors: &'a GpuVector,
    /// Which of them are the bonus `r_k`, the norm's weight and its bias.
    pub rows: [usize; 3],
    /// Channels a head, a multiple of 4.
    pub head_size: usize,
    /// Added to the variance.
    pub epsilon: f32,
    /// The result.
    pub y: &'a HalfRows,
}

impl GatedHeadsHalves<'_> {
    /// Whether the kernel takes rows of this width in heads of this size; if not, the operations it is made of serve.
    pub fn suits(width: usize, head_size: usize) -> bool {
        head_size > 0
            && head_size.is_multiple_of(4)
            && width > 0
            && width.is_multiple_of(head_size)
            && parts(width).is_some()
    }
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct Params {
    tokens: u32,
    width: u32,
    stride: u32,
    half_stride: u32,
    rows: [u32; 3],
    epsilon: f32,
}

impl Kernels {
    /// The dispatch of `op`.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes do not fit or [`GatedHeadsHalves::suits`] says no, [`Error::Gpu`] when the adapter
    /// has no 16-bit floats or the kernel does not compile.
    pub fn gated_heads_halves(&self, op: &GatedHeadsHalves<'_>) -> Result<Dispatch> {
        let View { rows, width, .. } = op.x;
        let same = |view: &View<'_>| (view.rows, view.width) == (rows, width);
        let have = op.vectors.len().checked_div(width).unwrap_or(0);
        let fit = [op.r, op.k, op.v, op.gate].iter().all(same)
            && (op.y.rows(), op.y.width()) == (rows, width)
            && op.rows.iter().all(|row| *row < have)
            && GatedHeadsHalves::suits(width, op.head_size);
        let Some(parts) = parts(width).filter(|_| fit) else {
            return Err(Error::shape(
                "end of the time mix in f16",
                format!(
                    "{rows} rows of {width} channels, heads of {}, rows {:?} of {have}, into {}×{}; use norm, bonus, multiply \
                     and half_rows",
                    op.head_size,
                    op.rows,
                    op.y.rows(),
                    op.y.width()
                ),
            ));
        };
        let [bonus, weight, bias] = op.rows.map(|row| u32_of("row", row * width / 4));
        let params = Params {
            tokens: u32_of("tokens", rows)?,
            width: u32_of("channels", width / 4)?,
            stride: u32_of("stride", View::stride(width) / 4)?,
            half_stride: u32_of("stride", HalfRows::stride(width) / 4)?,
            rows: [bonus?, weight?, bias?],
            epsilon: op.epsilon,
        };
        let bindings = [
            op.x.binding(),
            op.r.binding(),
            op.k.binding(),
            op.v.binding(),
            op.gate.binding(),
            op.vectors.binding(),
            op.y.binding(),
        ];
        let name = format!("gated_heads_halves/{parts}/{ROW_THREADS}/{}", self.lanes());
        let constants = [("HEAD", (op.head_size / 4) as f64)];
        let pipeline = self.pipeline(&name, &constants)?;
        self.dispatch(pipeline, &params, &bindings, rows)
    }
}
