//! RWKV-7's time mix between its projections in one kernel, for steps in which every span is one token: what
//! `linear` of the low-rank pairs' second matrices, `lerp`, `keys7`, `wkv7`, `norm`, `bonus` and `multiply` do one after
//! the other. Those are its twin.

use super::{
    heads::compiled_head,
    step::{Pair, Pairs, StepTile, head_suits, one_buffer},
};
use crate::{BatchTables, Error, GpuVector, Kernels, LoraUp, Page, Result, View, kernels::u32_of};
use bytemuck::NoUninit;
use rwkv_gpu::{Binding, Buffer, Dispatch};

/// A step of the time mix on the GPU; activations are tokens × channels unless said otherwise. `y` and the state must not
/// share a buffer with anything else here.
pub struct Wkv7Step<'a> {
    /// The batch; every span has one token.
    pub batch: BatchTables<'a>,
    /// Receptance; in one buffer with key and value.
    pub r: View<'a>,
    /// Key, as projected.
    pub k: View<'a>,
    /// Value, as projected.
    pub v: View<'a>,
    /// What the pairs' second matrices multiply, tokens × rank, all in one buffer and each at a multiple of 16 bytes: of
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
    /// What the output projection multiplies.
    pub y: View<'a>,
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct Params {
    page: Page,
    pairs: [Pair; 4],
    units: u32,
    spans: u32,
    heads: u32,
    head_size: u32,
    stride: u32,
    r: u32,
    k: u32,
    v: u32,
    epsilon: f32,
    // Uniform structs are as long as a multiple of their alignment.
    padding: [u32; 3],
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

impl StepTile {
    /// The tile for `spans` spans of `heads` heads.
    pub fn for_wkv7(kernels: &Kernels, spans: usize, heads: usize, head_size: usize) -> Self {
        let wide = Self { share: 8, spans: 1 };
        if spans * heads <= FEW && wide.fits(kernels, head_size) {
            wide
        } else if spans.div_ceil(4) * heads >= FEW {
            Self { share: 4, spans: 4 }
        } else {
            Self { share: 4, spans: 1 }
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
        let mut tile = StepTile::for_wkv7(self, op.batch.span_count, heads, op.head_size);
        if op.up.ragged() {
            tile.spans = 1;
        }
        self.wkv7_step_tiled(op, tile)
    }

    /// As [`Self::wkv7_step`], cut in a given way.
    ///
    /// # Errors
    /// Those of [`Self::wkv7_step`]; [`Error::Shape`] for a tile that is none of [`StepTile::ALL`], larger than the
    /// adapter's workgroups, or of several spans where a rank is ragged.
    pub fn wkv7_step_tiled(&self, op: &Wkv7Step<'_>, tile: StepTile) -> Result<Dispatch> {
        let View { rows, width, .. } = op.r;
        let whole = head_suits(op.head_size) && width.is_multiple_of(op.head_size);
        let same = |v: &View<'_>| v.rows == rows && v.width == width;
        let pairs = if op.v_first.is_some() { 4 } else { 3 };
        let fit = [op.k, op.v, op.y].iter().chain(&op.v_first).all(same)
            && op.hidden.len() == pairs
            && op.up.channels() == width
            && op.vectors.len() == Wkv7Step::vector_rows(op.v_first.is_none()) * width
            && op.batch.span_count <= rows;
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
        // Together, both would be a large kernel that no published model needs.
        let mixed = tile.spans > 1 && op.up.ragged();
        if mixed || !StepTile::ALL.contains(&tile) || !tile.fits(self, op.head_size) {
            let ranks: Vec<_> = op.up.ranks().collect();
            let problem = format!(
                "there is no {tile:?} for heads of {} and ranks {ranks:?}",
                op.head_size
            );
            return Err(Error::shape("wkv7 step", problem));
        }
        let head = compiled_head("wkv7 step", op.head_size)?;
        let heads = width / op.head_size;
        let (rkv, places) = one_buffer("wkv7 step", &[op.r, op.k, op.v])?;
        let place = |i: usize| places.get(i).copied().unwrap_or(0);
        let pairs = Pairs::new("wkv7 step", op.up, op.hidden, rows)?;
        let params = Params {
            page: op.page,
            pairs: pairs.table,
            units: pairs.units,
            spans: u32_of("spans", op.batch.span_count)?,
            heads: u32_of("heads", heads)?,
            head_size: u32_of("head size", op.head_size)?,
            stride: u32_of("stride", View::stride(width))?,
            r: place(0),
            k: place(1),
            v: place(2),
            epsilon: op.epsilon,
            padding: [0; 3],
        };
        let bindings = [
            op.batch.spans,
            rkv,
            pairs.hidden,
            op.vectors.binding(),
            op.v_first.as_ref().map_or(self.unused(), View::binding),
            Binding::from(op.state),
            op.y.binding(),
        ];
        let constants = [
            ("HAS_FIRST", f64::from(u8::from(op.v_first.is_some()))),
            ("RAGGED", f64::from(u8::from(pairs.ragged))),
        ];
        let StepTile { share, spans } = tile;
        let name = format!("wkv7_step/{}/{head}/{share}/{spans}", op.up.format());
        let pipeline = self.pipeline(&name, &constants)?;
        let workgroups = op.batch.span_count.div_ceil(spans) * heads;
        let mut dispatch = self.dispatch(pipeline.clone(), &params, &bindings, workgroups)?;
        dispatch.groups.push(op.up.group(self.gpu(), &pipeline)?);
        Ok(dispatch)
    }
}
