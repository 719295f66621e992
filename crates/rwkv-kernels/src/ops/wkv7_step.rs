//! RWKV-7's time mix between its projections in one kernel, for steps in which every span is one token: what
//! `linear` of the low-rank pairs' second matrices, `lerp`, `keys7`, `wkv7`, `norm`, `bonus` and `multiply` do one after
//! the other. Those are its twin.

use super::{
    heads::compiled_head,
    lora_ups::LoraUps,
    step::{StepKernel, StepTile, Ups, check_hidden, head_suits, one_buffer, quads_of, row_lanes},
};
use crate::{
    BatchTables, Error, GpuVector, Kernels, LoraUp, Page, Result, View,
    kernels::u32_of,
    shaders,
    tuning::{Problem, Tunable},
};
use bytemuck::NoUninit;
use rwkv_gpu::{Binding, Buffer, Dispatch, Shader};

/// A step of the time mix on the GPU; activations are tokens × channels unless said otherwise. `y` and the states must not
/// share a buffer with anything else here.
pub struct Wkv7Step<'a> {
    /// The batch: span i has one token, row i.
    pub batch: BatchTables<'a>,
    /// Receptance; in one buffer with key, value, the hidden vectors and what is stored.
    pub r: View<'a>,
    /// Key, as projected.
    pub k: View<'a>,
    /// Value, as projected.
    pub v: View<'a>,
    /// What the pairs' second matrices multiply, tokens × rank, each at a multiple of 16 bytes: of
    /// decay (after tanh), rate, gate (after the sigmoid), and past the first layer value.
    pub hidden: &'a [View<'a>],
    /// The second matrices, in the same order.
    pub up: &'a LoraUp,
    /// Rows of channels, one after the other: decay bias, rate bias, removal key `k_k`, replacement key `k_a`, bonus
    /// `r_k`, weight and bias of the norm, and past the first layer value bias.
    pub vectors: &'a GpuVector,
    /// The first layer's value, past the first layer.
    pub v_first: Option<View<'a>>,
    /// Channels a head, a multiple of 4 and at most 128.
    pub head_size: usize,
    /// What the norm of a head adds to the variance.
    pub epsilon: f32,
    /// WKV states `[slot, head, value, key]`.
    pub state: &'a Buffer,
    /// The slots in `state`.
    pub page: Page,
    /// What else the state keeps of this step.
    pub stores: Option<ShiftStore<'a>>,
    /// What the output projection multiplies.
    pub y: View<'a>,
}

/// A row that becomes the shift vector of its span's state, as [`StoreShift`](super::StoreShift) does.
#[derive(Clone, Copy)]
pub struct ShiftStore<'a> {
    /// Tokens × channels.
    pub shifted: View<'a>,
    /// Shift states `[slot, 2, channels]`, of the same page as the WKV states.
    pub state: &'a Buffer,
    /// Which of the two.
    pub which: u32,
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
pub(super) struct Params {
    page: Page,
    hidden: [u32; 4],
    r: u32,
    k: u32,
    v: u32,
    shifted: u32,
    spans: u32,
    which: u32,
    epsilon: f32,
    /// Elements between what two pairs made, where that is ready.
    pub(super) ups_block: u32,
}

/// What the kernels of `wgsl/step/wkv7.wgsl` share.
pub(super) struct Bound<'a> {
    pub(super) params: Params,
    /// Of group 0, in their order, after the parameters.
    pub(super) bindings: Vec<Binding<'a>>,
    pub(super) constants: Vec<(&'static str, f64)>,
}

impl Wkv7Step<'_> {
    /// Whether the kernel takes heads of this size; if not, the operations it is made of serve.
    pub fn suits(head_size: usize) -> bool {
        head_suits(head_size)
    }

    /// Rows of [`Self::vectors`].
    pub fn vector_rows(first_layer: bool) -> usize {
        if first_layer { 7 } else { 8 }
    }
}

/// Workgroups that keep a large GPU busy: below, each has more threads, and spans do not wait for each other.
const FEW: usize = 256;

/// Up to so many spans, each reads the low-rank pairs' second matrices for itself.
const FEW_SPANS: usize = 4;

/// Workgroups that leave most of its cores idle.
const FEWER: usize = 48;

/// Workgroups from which on it is worth more that a core has room for several than that each is done early.
const MANY: usize = 1024;

/// The kernel for many spans (`wgsl/wkv7_spans.wgsl`).
fn spans_shader(kernels: &Kernels, head_size: usize) -> Result<&'static Shader> {
    let head = compiled_head("wkv7 step", head_size)?;
    // As in the WGSL.
    let row = (head / 16).max(4);
    let lanes = row_lanes(kernels, row, head / 4 * row);
    shaders::find(&format!("wkv7_spans/{head}/4/{lanes}"))
}

impl StepTile {
    /// The tile for `spans` spans of `heads` heads.
    pub fn for_wkv7(kernels: &Kernels, spans: usize, heads: usize, head_size: usize) -> Self {
        let (widest, wide) = (Self::new(16, 1), Self::new(8, 1));
        if spans * heads <= FEWER && widest.fits(kernels, head_size) {
            widest
        } else if spans * heads <= FEW && wide.fits(kernels, head_size) {
            wide
        } else if spans.div_ceil(4) * heads >= FEW {
            Self::new(4, 4)
        } else {
            Self::new(4, 1)
        }
    }
}

impl Kernels {
    /// The dispatch of `op`.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes do not fit or [`Wkv7Step::suits`] says no, [`Error::Gpu`] when the kernel does not
    /// compile.
    pub fn wkv7_step(&self, op: &Wkv7Step<'_>) -> Result<Dispatch> {
        let heads = op.r.width.checked_div(op.head_size).unwrap_or(0);
        let tuned = self.step_choice(Problem {
            kernel: Tunable::Wkv7Step,
            format: op.up.format().to_string(),
            rows: heads,
            cols: op.head_size,
            tokens: op.batch.span_count.next_power_of_two(),
        });
        let fits = |tile: &StepTile| {
            tile.spans <= op.batch.span_count.max(1) && tile.fits(self, op.head_size)
        };
        let usual = || StepTile::for_wkv7(self, op.batch.span_count, heads, op.head_size);
        self.wkv7_step_tiled(op, tuned.filter(fits).unwrap_or_else(usual))
    }

    /// As [`Self::wkv7_step`], cut in a given way.
    ///
    /// # Errors
    /// Those of [`Self::wkv7_step`]; [`Error::Shape`] for a tile that [`StepTile::fits`] says no to.
    pub fn wkv7_step_tiled(&self, op: &Wkv7Step<'_>, tile: StepTile) -> Result<Dispatch> {
        if !tile.fits(self, op.head_size) {
            let problem = format!("there is no {tile:?} for heads of {}", op.head_size);
            return Err(Error::shape("wkv7 step", problem));
        }
        let Bound {
            params,
            bindings,
            constants,
        } = self.wkv7_bound(op)?;
        let kernel = StepKernel {
            kernel: "wkv7_step",
            tile,
            heads: op.r.width / op.head_size,
            head_size: op.head_size,
            spans: op.batch.span_count,
            parts: 1,
            ups: Ups::Weights(op.up),
            output: None,
        };
        kernel.dispatch(self, &constants, &params, &bindings)
    }

    /// As [`Self::wkv7_step`], with the second matrices multiplied by a dispatch before, of all spans together, where there
    /// are so many that this is faster.
    ///
    /// # Errors
    /// Those of [`Self::wkv7_step`].
    pub fn wkv7_steps(&self, op: &Wkv7Step<'_>) -> Result<Vec<Dispatch>> {
        if op.batch.span_count > FEW_SPANS && self.lora_ups_suit(op.up) {
            let heads = op.r.width.checked_div(op.head_size).unwrap_or(0);
            return self.wkv7_steps_apart(op, heads * op.batch.span_count >= MANY);
        }
        Ok(vec![self.wkv7_step(op)?])
    }

    /// As [`Self::wkv7_steps`], however many spans there are; `crowded` if a core is to have room for more workgroups rather
    /// than to be done with each early.
    ///
    /// # Errors
    /// Those of [`Self::wkv7_step`]; [`Error::Shape`] when [`Self::lora_ups_suit`] says no.
    pub fn wkv7_steps_apart(&self, op: &Wkv7Step<'_>, crowded: bool) -> Result<Vec<Dispatch>> {
        let bound = self.wkv7_bound(op)?;
        let (ups, place) = self.lora_ups(&LoraUps {
            up: op.up,
            hidden: op.hidden,
        })?;
        let params = Params {
            ups_block: place.block()?,
            ..bound.params
        };
        let kernel = StepKernel {
            kernel: "wkv7_step",
            tile: StepTile::new(4, 1),
            heads: op.r.width / op.head_size,
            head_size: op.head_size,
            spans: op.batch.span_count,
            parts: 1,
            ups: Ups::Ready(place.buffer()),
            output: None,
        };
        let shader = if crowded {
            spans_shader(self, op.head_size)?
        } else {
            kernel.shader(self)?
        };
        let step = kernel.run(self, shader, &bound.constants, &params, &bound.bindings)?;
        Ok(vec![ups, step])
    }

    /// What `op` binds, if its sizes fit.
    pub(super) fn wkv7_bound<'a>(&'a self, op: &'a Wkv7Step<'a>) -> Result<Bound<'a>> {
        let View { rows, width, .. } = op.r;
        let whole = head_suits(op.head_size) && width.is_multiple_of(op.head_size);
        let same = |v: &View<'_>| v.rows == rows && v.width == width;
        let pairs = if op.v_first.is_some() { 4 } else { 3 };
        let stored = op.stores.as_ref().map(|store| store.shifted);
        let fit = [op.k, op.v, op.y]
            .iter()
            .chain(&op.v_first)
            .chain(&stored)
            .all(same)
            && op.hidden.len() == pairs
            && op.up.channels() == width
            && op.vectors.len() == Wkv7Step::vector_rows(op.v_first.is_none()) * width
            && op.batch.span_count <= rows
            && op.stores.is_none_or(|store| store.which < 2);
        if !whole || !fit {
            return Err(Error::shape(
                "wkv7 step",
                format!(
                    "{} spans in {rows} rows of {width} channels, heads of {}, {} pairs for {} channels, {} elements of \
                     vectors",
                    op.batch.span_count,
                    op.head_size,
                    op.hidden.len(),
                    op.up.channels(),
                    op.vectors.len()
                ),
            ));
        }
        check_hidden("wkv7 step", op.up, op.hidden, rows)?;
        // Hidden vectors first, then the others in the order of the parameters.
        let mut views = op.hidden.to_vec();
        views.extend([op.r, op.k, op.v]);
        views.extend(stored);
        let (projected, places) = one_buffer("wkv7 step", &views)?;
        let (hidden, rest) = places.split_at_checked(pairs).unwrap_or_default();
        let place = |i: usize| rest.get(i).copied().unwrap_or(0);
        let params = Params {
            page: op.page,
            hidden: quads_of("wkv7 step", hidden)?,
            r: place(0),
            k: place(1),
            v: place(2),
            shifted: place(3),
            spans: u32_of("spans", op.batch.span_count)?,
            which: op.stores.map_or(0, |store| store.which),
            epsilon: op.epsilon,
            ups_block: 0,
        };
        let bindings = vec![
            op.batch.bound_spans("wkv7 step")?,
            projected,
            op.vectors.binding(),
            op.v_first.as_ref().map_or(self.unused(), View::binding),
            op.page
                .binding("wkv7 step", op.state, width * op.head_size)?,
            // A slot that is not used must not be one that is read elsewhere in the dispatch, nor order dispatches.
            match op.stores {
                Some(store) => op.page.binding("wkv7 step", store.state, 2 * width)?,
                None => Binding::from(op.state),
            },
            op.y.binding(),
        ];
        let constants = vec![
            ("HAS_FIRST", f64::from(u8::from(op.v_first.is_some()))),
            ("STORES_SHIFT", f64::from(u8::from(op.stores.is_some()))),
            ("ONE_SLOT", f64::from(u8::from(op.page.slots == 1))),
        ];
        Ok(Bound {
            params,
            bindings,
            constants,
        })
    }
}
