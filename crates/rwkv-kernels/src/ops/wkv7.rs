//! The RWKV-7 recurrence (Peng et al. 2025, "RWKV-7 Goose", eq. 17), head by head and token by token:
//! `S ← S diag(w) − (S κ)(κ ⊙ a)ᵀ + v kᵀ`, `y = S r`, with S of [value, key], k the replacement and κ the removal key.

use super::{
    heads::{by_head, width_of},
    recurrence::{Recurrence, RecurrenceTile},
};
use crate::{
    BatchTables, Error, Kernels, Page, Result, View, kernels::u32_of,
    ops::token_shift::block_elements,
};
use bytemuck::NoUninit;
use rwkv_gpu::{Buffer, Dispatch};

/// The operands of the twin; activations of the tokens of one span, rows of `heads · head_size`.
#[derive(Clone, Copy)]
pub struct Wkv7Operands<'a> {
    /// Receptance.
    pub r: &'a [f32],
    /// Decay, in (0, 1).
    pub w: &'a [f32],
    /// Replacement key.
    pub k: &'a [f32],
    /// Removal key.
    pub kappa: &'a [f32],
    /// Value.
    pub v: &'a [f32],
    /// In-context learning rate.
    pub a: &'a [f32],
}

/// The twin for one span: advances `state` (`[head, value, key]` of one slot) and fills `y`.
///
/// # Errors
/// [`Error::Shape`] when the sizes do not fit.
pub fn wkv7(x: Wkv7Operands<'_>, head_size: usize, state: &mut [f32], y: &mut [f32]) -> Result<()> {
    let n = head_size;
    let width = width_of(state, n);
    let fit = [x.r, x.w, x.k, x.kappa, x.v, x.a]
        .iter()
        .all(|o| o.len() == y.len());
    if !fit || width == 0 || !y.len().is_multiple_of(width) {
        return Err(Error::shape(
            "wkv7",
            format!(
                "{} elements, a state of {}, heads of {n}",
                y.len(),
                state.len()
            ),
        ));
    }
    by_head(state, n, y, |head, s, out| {
        let mut rate = vec![0.0; n];
        for (t, out) in out.chunks_exact_mut(n).enumerate() {
            let at = t * width + head * n..t * width + (head + 1) * n;
            let (r, w, k, kappa) = (
                &x.r[at.clone()],
                &x.w[at.clone()],
                &x.k[at.clone()],
                &x.kappa[at.clone()],
            );
            for ((rate, kappa), a) in rate.iter_mut().zip(kappa).zip(&x.a[at.clone()]) {
                *rate = kappa * a;
            }
            for ((s, v), y) in s.chunks_exact_mut(n).zip(&x.v[at]).zip(out) {
                let removed: f32 = s.iter().zip(kappa).map(|(s, kappa)| -s * kappa).sum();
                let mut sum = 0.0;
                for j in 0..n {
                    s[j] = s[j] * w[j] + removed * rate[j] + v * k[j];
                    sum += s[j] * r[j];
                }
                *y = sum;
            }
        }
    });
    Ok(())
}

/// The recurrence on the GPU; activations are tokens × channels.
pub struct Wkv7<'a> {
    /// The batch.
    pub batch: BatchTables<'a>,
    /// Receptance.
    pub r: View<'a>,
    /// Decay.
    pub w: View<'a>,
    /// The replacement key, then the removal key, [`View::block_bytes`] apart.
    pub keys: View<'a>,
    /// Value.
    pub v: View<'a>,
    /// In-context learning rate.
    pub a: View<'a>,
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
    block: u32,
    // Uniform structs are as long as a multiple of their alignment.
    padding: [u32; 3],
}

impl Kernels {
    /// The dispatch of `op`, cut as suits its shape: the order of the sums depends on where spans begin.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes do not fit or the head is larger than 128, [`Error::Gpu`] when the kernel does
    /// not compile.
    pub fn wkv7(&self, op: &Wkv7<'_>) -> Result<Dispatch> {
        let heads = op.r.width.checked_div(op.head_size).unwrap_or(0);
        let states = op.batch.span_count.saturating_mul(heads);
        let tile = RecurrenceTile::usual(Recurrence::Wkv7, self, states, op.head_size);
        self.wkv7_tiled(op, tile)
    }

    /// The dispatch of `op` with one order of the sums, however a sequence is cut into spans and whatever else is in the
    /// batch.
    ///
    /// # Errors
    /// Those of [`Self::wkv7`].
    pub fn wkv7_in_one_order(&self, op: &Wkv7<'_>) -> Result<Dispatch> {
        let tile = RecurrenceTile::in_one_order(Recurrence::Wkv7, self, op.head_size);
        self.wkv7_tiled(op, tile)
    }

    /// As [`Self::wkv7`], cut in a given way.
    ///
    /// # Errors
    /// Those of [`Self::wkv7`]; [`Error::Shape`] for a tile that [`RecurrenceTile::fits`] says no to.
    pub fn wkv7_tiled(&self, op: &Wkv7<'_>, tile: RecurrenceTile) -> Result<Dispatch> {
        let View { rows, width, .. } = op.r;
        let whole = op.head_size > 0 && width.is_multiple_of(op.head_size);
        if !whole
            || [op.w, op.keys, op.v, op.a, op.y]
                .iter()
                .any(|v| v.rows != rows || v.width != width)
        {
            return Err(Error::shape(
                "wkv7",
                format!("rows of {width} channels, heads of {}", op.head_size),
            ));
        }
        let shader = tile.shader(Recurrence::Wkv7, self, op.head_size)?;
        let heads = width / op.head_size;
        let params = Params {
            page: op.page,
            spans: u32_of("spans", op.batch.span_count)?,
            heads: u32_of("heads", heads)?,
            head_size: u32_of("head size", op.head_size)?,
            stride: u32_of("stride", View::stride(width))?,
            block: block_elements(rows, width)?,
            padding: [0; 3],
        };
        let bindings = [
            op.batch.bound_spans("wkv7")?,
            op.r.binding(),
            op.w.binding(),
            op.keys.blocks_binding(2),
            op.v.binding(),
            op.a.binding(),
            op.page.binding("wkv7", op.state, width * op.head_size)?,
            op.y.binding(),
        ];
        let pipeline = self.pipeline(shader.name, &[])?;
        let each = tile.workgroups_a_head(op.head_size)?;
        let states = op.batch.span_count.saturating_mul(heads);
        let workgroups = states.saturating_mul(each);
        self.dispatch(pipeline, &params, &bindings, workgroups)
    }
}
