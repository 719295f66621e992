//! The recurrence of RWKV-5 and RWKV-6 (Peng et al. 2024, "Eagle and Finch", section 4), head by head and token by
//! token: `y = (S + v (u ⊙ k)ᵀ) r`, `S ← S diag(w) + v kᵀ`, with S of [value, key] and u what the current token weighs.
//! The decay w is one for all tokens in RWKV-5, and the token's own in RWKV-6.

use super::{
    heads::{by_head, width_of},
    recurrence::{Recurrence, RecurrenceTile},
};
use crate::{
    BatchTables, Error, GpuVector, Kernels, Page, Result, View, kernels::u32_of, ops::Function,
};
use bytemuck::NoUninit;
use rwkv_gpu::{Buffer, Dispatch};

/// Where the decay comes from: a vector `C`, or an activation `T`.
#[derive(Clone, Copy, Debug)]
pub enum Decay<C, T> {
    /// RWKV-5's, one element a channel as training left it: the operation makes it `exp(-exp(·))`.
    Channels(C),
    /// RWKV-6's, tokens × channels, in (0, 1).
    Tokens(T),
}

/// The operands of the twin; activations of the tokens of one span, rows of `heads · head_size`.
#[derive(Clone, Copy)]
pub struct Wkv6Operands<'a> {
    /// Receptance.
    pub r: &'a [f32],
    /// Decay.
    pub w: Decay<&'a [f32], &'a [f32]>,
    /// Key.
    pub k: &'a [f32],
    /// Value.
    pub v: &'a [f32],
    /// The weight of the current token, one element a channel.
    pub u: &'a [f32],
}

/// The twin for one span: advances `state` (`[head, value, key]` of one slot) and fills `y`.
///
/// # Errors
/// [`Error::Shape`] when the sizes do not fit.
pub fn wkv6(x: Wkv6Operands<'_>, head_size: usize, state: &mut [f32], y: &mut [f32]) -> Result<()> {
    let n = head_size;
    let width = width_of(state, n);
    let decay_fits = match x.w {
        Decay::Channels(w) => w.len() == width,
        Decay::Tokens(w) => w.len() == y.len(),
    };
    let fit = [x.r, x.k, x.v].iter().all(|o| o.len() == y.len()) && x.u.len() == width;
    if !fit || !decay_fits || width == 0 || !y.len().is_multiple_of(width) {
        return Err(Error::shape(
            "wkv6",
            format!(
                "{} elements, a state of {}, heads of {n}",
                y.len(),
                state.len()
            ),
        ));
    }
    let decays: Vec<f32>;
    // The decays of the first token, and how far it is to the next one's.
    let (w, step) = match x.w {
        Decay::Tokens(w) => (w, width),
        Decay::Channels(w) => {
            decays = w.iter().map(|w| Function::Decay6.apply(*w)).collect();
            (decays.as_slice(), 0)
        }
    };
    by_head(state, n, y, |head, s, out| {
        let u = &x.u[head * n..][..n];
        for (t, out) in out.chunks_exact_mut(n).enumerate() {
            let at = t * width + head * n..t * width + (head + 1) * n;
            let (r, k) = (&x.r[at.clone()], &x.k[at.clone()]);
            let w = &w[t * step + head * n..][..n];
            for ((s, v), y) in s.chunks_exact_mut(n).zip(&x.v[at]).zip(out) {
                let mut sum = 0.0;
                for j in 0..n {
                    let added = v * k[j];
                    sum += r[j] * (s[j] + u[j] * added);
                    s[j] = s[j] * w[j] + added;
                }
                *y = sum;
            }
        }
    });
    Ok(())
}

/// The recurrence on the GPU; activations are tokens × channels.
pub struct Wkv6<'a> {
    /// The batch.
    pub batch: BatchTables<'a>,
    /// Receptance.
    pub r: View<'a>,
    /// Decay.
    pub w: Decay<&'a GpuVector, View<'a>>,
    /// Key.
    pub k: View<'a>,
    /// Value.
    pub v: View<'a>,
    /// The weight of the current token, one element a channel.
    pub u: &'a GpuVector,
    /// Channels a head.
    pub head_size: usize,
    /// WKV states `[slot, head, value, key]`.
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
    heads: u32,
    head_size: u32,
    stride: u32,
}

impl Kernels {
    /// The dispatch of `op`, cut as suits its shape: the order of the sums depends on where spans begin.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes do not fit or the head is larger than 128, [`Error::Gpu`] when the kernel does
    /// not compile.
    pub fn wkv6(&self, op: &Wkv6<'_>) -> Result<Dispatch> {
        let heads = op.r.width.checked_div(op.head_size).unwrap_or(0);
        let states = op.batch.span_count.saturating_mul(heads);
        let tile = RecurrenceTile::usual(Recurrence::Wkv6, self, states, op.head_size);
        self.wkv6_tiled(op, tile)
    }

    /// The dispatch of `op` with one order of the sums, however a sequence is cut into spans and whatever else is in the
    /// batch.
    ///
    /// # Errors
    /// Those of [`Self::wkv6`].
    pub fn wkv6_in_one_order(&self, op: &Wkv6<'_>) -> Result<Dispatch> {
        let tile = RecurrenceTile::in_one_order(Recurrence::Wkv6, self, op.head_size);
        self.wkv6_tiled(op, tile)
    }

    /// As [`Self::wkv6`], cut in a given way.
    ///
    /// # Errors
    /// Those of [`Self::wkv6`]; [`Error::Shape`] for a tile that [`RecurrenceTile::fits`] says no to.
    pub fn wkv6_tiled(&self, op: &Wkv6<'_>, tile: RecurrenceTile) -> Result<Dispatch> {
        let View { rows, width, .. } = op.r;
        let same = |v: &View<'_>| v.rows == rows && v.width == width;
        let (decay_fits, decay, one_decay) = match &op.w {
            Decay::Channels(w) => (w.len() == width, w.binding(), 1.0),
            Decay::Tokens(w) => (same(w), w.binding(), 0.0),
        };
        let whole = op.head_size > 0 && width.is_multiple_of(op.head_size);
        if !whole || !decay_fits || op.u.len() != width || ![op.k, op.v, op.y].iter().all(same) {
            return Err(Error::shape(
                "wkv6",
                format!("rows of {width} channels, heads of {}", op.head_size),
            ));
        }
        let shader = tile.shader(Recurrence::Wkv6, self, op.head_size)?;
        let heads = width / op.head_size;
        let params = Params {
            page: op.page,
            spans: u32_of("spans", op.batch.span_count)?,
            heads: u32_of("heads", heads)?,
            head_size: u32_of("head size", op.head_size)?,
            stride: u32_of("stride", View::stride(width))?,
        };
        let bindings = [
            op.batch.bound_spans("wkv6")?,
            op.r.binding(),
            decay,
            op.k.binding(),
            op.v.binding(),
            op.u.binding(),
            op.page.binding("wkv6", op.state, width * op.head_size)?,
            op.y.binding(),
        ];
        let pipeline = self.pipeline(shader.name, &[("ONE_DECAY", one_decay)])?;
        let each = tile.workgroups_a_head(op.head_size)?;
        let states = op.batch.span_count.saturating_mul(heads);
        let workgroups = states.saturating_mul(each);
        self.dispatch(pipeline, &params, &bindings, workgroups)
    }
}
