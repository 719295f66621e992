//! The RWKV-4 recurrence (Peng et al. 2023, "RWKV: Reinventing RNNs for the Transformer Era"), channel by channel: an
//! average of the values so far, weighed by `exp(k)` that fades by `exp(−exp(decay))` a token, the current one by
//! `exp(bonus + k)`.
//!
//! The state of a channel is the numerator aa and the denominator bb of that average, both divided by `exp(pp)`, where
//! pp is the largest exponent so far: no exponential is above 1. From the first token on bb is at least 1, so a bb of 0
//! says that nothing was seen yet, and pp then counts as −1e30, whatever it is: a state of zeros is a new sequence.

use crate::{BatchTables, Error, GpuVector, Kernels, Page, Result, View, kernels::u32_of};
use bytemuck::NoUninit;
use rwkv_gpu::{Buffer, Dispatch};

/// The operands of the twin; activations of the tokens of one span.
#[derive(Clone, Copy)]
pub struct Wkv4Operands<'a> {
    /// Key, tokens × channels.
    pub k: &'a [f32],
    /// Value, tokens × channels.
    pub v: &'a [f32],
    /// One element a channel, as training left it.
    pub decay: &'a [f32],
    /// One element a channel.
    pub bonus: &'a [f32],
}

/// pp before the first token: below every exponent.
const NOTHING_SEEN: f32 = -1e30;

/// The twin for one span: advances `state` (`[3, channels]` of one slot: aa, bb, pp) and fills `y`.
///
/// # Errors
/// [`Error::Shape`] when the sizes do not fit.
pub fn wkv4(x: Wkv4Operands<'_>, state: &mut [f32], y: &mut [f32]) -> Result<()> {
    let width = x.decay.len();
    let fit = x.bonus.len() == width
        && width.checked_mul(3) == Some(state.len())
        && x.k.len() == y.len()
        && x.v.len() == y.len();
    if !fit || width == 0 || !y.len().is_multiple_of(width) {
        return Err(Error::shape(
            "wkv4",
            format!(
                "{} elements, a state of {}, {width} channels",
                y.len(),
                state.len()
            ),
        ));
    }
    let (aa, rest) = state.split_at_mut(width);
    let (bb, pp) = rest.split_at_mut(width);
    let rows = x.k.chunks_exact(width).zip(x.v.chunks_exact(width));
    for ((k, v), y) in rows.zip(y.chunks_exact_mut(width)) {
        for c in 0..width {
            let exponent = if bb[c] == 0.0 { NOTHING_SEEN } else { pp[c] };
            let current = x.bonus[c] + k[c];
            let most = exponent.max(current);
            let (past, now) = ((exponent - most).exp(), (current - most).exp());
            y[c] = (past * aa[c] + now * v[c]) / (past * bb[c] + now);
            let faded = exponent - x.decay[c].exp();
            let most = faded.max(k[c]);
            let (kept, added) = ((faded - most).exp(), (k[c] - most).exp());
            aa[c] = kept * aa[c] + added * v[c];
            bb[c] = kept * bb[c] + added;
            pp[c] = most;
        }
    }
    Ok(())
}

/// The recurrence on the GPU.
pub struct Wkv4<'a> {
    /// The batch.
    pub batch: BatchTables<'a>,
    /// Key, tokens × channels.
    pub k: View<'a>,
    /// Value, tokens × channels.
    pub v: View<'a>,
    /// One element a channel, as training left it.
    pub decay: &'a GpuVector,
    /// One element a channel.
    pub bonus: &'a GpuVector,
    /// WKV states `[slot, 3, channels]`.
    pub state: &'a Buffer,
    /// The slots in `state`.
    pub page: Page,
    /// The result.
    pub y: View<'a>,
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct Params {
    page: Page,
    spans: u32,
    width: u32,
    stride: u32,
    // Uniform structs are as long as a multiple of their alignment.
    padding: u32,
}

/// Threads of a workgroup, as in the WGSL.
const THREADS: usize = 64;

impl Kernels {
    /// The dispatch of `op`.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes do not fit, [`Error::Gpu`] when the kernel does not compile.
    pub fn wkv4(&self, op: &Wkv4<'_>) -> Result<Dispatch> {
        self.wkv4_by(op, None)
    }

    /// The dispatch of `op`, with its result multiplied by `gate`, tokens × channels: the receptance after its function.
    ///
    /// # Errors
    /// Those of [`Self::wkv4`].
    pub fn wkv4_gated(&self, op: &Wkv4<'_>, gate: View<'_>) -> Result<Dispatch> {
        self.wkv4_by(op, Some(gate))
    }

    fn wkv4_by(&self, op: &Wkv4<'_>, gate: Option<View<'_>>) -> Result<Dispatch> {
        let View { rows, width, .. } = op.k;
        let vectors = op.decay.len() == width && op.bonus.len() == width;
        let fits = |v: &View<'_>| v.rows == rows && v.width == width;
        if !vectors || ![op.v, op.y].iter().chain(&gate).all(fits) {
            return Err(Error::shape("wkv4", format!("rows of {width} channels")));
        }
        let params = Params {
            page: op.page,
            spans: u32_of("spans", op.batch.span_count)?,
            width: u32_of("channels", width)?,
            stride: u32_of("stride", View::stride(width))?,
            padding: 0,
        };
        let bindings = [
            op.batch.bound_spans("wkv4")?,
            op.k.binding(),
            op.v.binding(),
            op.decay.binding(),
            op.bonus.binding(),
            gate.as_ref().map_or(self.unused(), View::binding),
            op.page.binding("wkv4", op.state, 3 * width)?,
            op.y.binding(),
        ];
        let has_gate = f64::from(u8::from(gate.is_some()));
        let pipeline = self.pipeline("wkv4", &[("HAS_GATE", has_gate)])?;
        self.dispatch(
            pipeline,
            &params,
            &bindings,
            op.batch.span_count * width.div_ceil(THREADS),
        )
    }
}
