//! The time mix of RWKV-5 and RWKV-6 between its projections in one kernel, for steps in which every span is one token:
//! what `linear` of the decay's second matrix, `wkv6`, `norm` and `multiply` do one after the other. Those are its twin.

use super::step::{StepKernel, StepTile, Ups, check_hidden, head_suits, one_buffer};
use crate::{BatchTables, Error, GpuVector, Kernels, LoraUp, Page, Result, View, kernels::u32_of};
use bytemuck::NoUninit;
use rwkv_gpu::{Buffer, Dispatch};

/// A step of the time mix on the GPU; activations are tokens × channels unless said otherwise. `y` and the state must not
/// share a buffer with anything else here.
pub struct Wkv6Step<'a> {
    /// The batch: span i has one token, row i.
    pub batch: BatchTables<'a>,
    /// Receptance; in one buffer with key and value.
    pub r: View<'a>,
    /// Key.
    pub k: View<'a>,
    /// Value.
    pub v: View<'a>,
    /// RWKV-6: what the decay's second matrix multiplies (after tanh), tokens × rank, and that matrix. RWKV-5 has none.
    pub decay: Option<(View<'a>, &'a LoraUp)>,
    /// Rows of channels, one after the other: decay (RWKV-6: what is added to the pair's), the weight of the current
    /// token, weight and bias of the norm.
    pub vectors: &'a GpuVector,
    /// What the result is multiplied by, after its function. RWKV-5.0 has none.
    pub gate: Option<View<'a>>,
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
    hidden: [u32; 4],
    r: u32,
    k: u32,
    v: u32,
    spans: u32,
    epsilon: f32,
    // Uniform structs are as long as a multiple of their alignment.
    padding: [u32; 3],
}

/// Rows of the vectors.
const VECTORS: usize = 4;

impl Wkv6Step<'_> {
    /// Whether the kernel takes heads of this size; if not, the operations it is made of serve.
    pub fn suits(head_size: usize) -> bool {
        head_suits(head_size)
    }
}

impl Kernels {
    /// The dispatch of `op`.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes do not fit or [`Wkv6Step::suits`] says no, [`Error::Gpu`] when the kernel does not
    /// compile.
    pub fn wkv6_step(&self, op: &Wkv6Step<'_>) -> Result<Dispatch> {
        let View { rows, width, .. } = op.r;
        let whole = head_suits(op.head_size) && width.is_multiple_of(op.head_size);
        let same = |v: &View<'_>| v.rows == rows && v.width == width;
        let fit = [op.k, op.v, op.y].iter().chain(&op.gate).all(same)
            && op.decay.is_none_or(|(_, up)| up.channels() == width)
            && op.vectors.len() == VECTORS * width
            && op.batch.span_count <= rows;
        if !whole || !fit {
            return Err(Error::shape(
                "wkv6 step",
                format!(
                    "{} spans in {rows} rows of {width} channels, heads of {}, {} elements of vectors",
                    op.batch.span_count,
                    op.head_size,
                    op.vectors.len()
                ),
            ));
        }
        let (rkv, places) = one_buffer("wkv6 step", &[op.r, op.k, op.v])?;
        let place = |i: usize| places.get(i).copied().unwrap_or(0);
        let hidden = match &op.decay {
            Some((hidden, up)) => {
                check_hidden("wkv6 step", up, &[*hidden], rows)?;
                hidden.binding()
            }
            None => self.unused(),
        };
        let params = Params {
            page: op.page,
            // It has a binding of its own.
            hidden: [0; 4],
            r: place(0),
            k: place(1),
            v: place(2),
            spans: u32_of("spans", op.batch.span_count)?,
            epsilon: op.epsilon,
            padding: [0; 3],
        };
        let bindings = [
            op.batch.bound_spans("wkv6 step")?,
            rkv,
            hidden,
            op.vectors.binding(),
            op.gate.as_ref().map_or(self.unused(), View::binding),
            op.page
                .binding("wkv6 step", op.state, width * op.head_size)?,
            op.y.binding(),
        ];
        let constants = [("HAS_GATE", f64::from(u8::from(op.gate.is_some())))];
        let wide = StepTile::new(8, 1);
        let kernel = StepKernel {
            kernel: "wkv6_step",
            tile: if wide.fits(self, op.head_size) {
                wide
            } else {
                StepTile::new(4, 1)
            },
            heads: width / op.head_size,
            head_size: op.head_size,
            spans: op.batch.span_count,
            parts: 1,
            ups: op.decay.map_or(Ups::None, |(_, up)| Ups::Weights(up)),
            output: None,
        };
        kernel.dispatch(self, &constants, &params, &bindings)
    }
}
