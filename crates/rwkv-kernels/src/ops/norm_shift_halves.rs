//! Layer norm and token shift of any batch in one kernel, for mixes that only products with cooperative matrices read:
//! what `norm`, `token_shift`, `store_shift` and `half_rows` of each mix do one after the other. Those are its twin.

use crate::{
    BatchTables, Error, GpuVector, Kernels, Page, Result, View,
    kernels::u32_of,
    ops::{
        HalfRows, Sliced, Weighs,
        row_parts::{ROW_THREADS, parts},
    },
};
use bytemuck::NoUninit;
use rwkv_gpu::{Buffer, Dispatch};

/// A layer norm, its token shift with the mixes rounded to f16, and each span's last normed row kept in the state, on the
/// GPU.
pub struct NormShiftHalves<'a> {
    /// The batch, of spans of any length but 0: as many spans as tokens have one each.
    pub batch: BatchTables<'a>,
    /// Tokens × channels, before the norm; channels are a multiple of 4. With `added` what a product is to be added to.
    pub x: View<'a>,
    /// A product that is still in slices, for batches in which every span is one token.
    pub added: Option<Sliced<'a>>,
    /// The norm's, one element a channel.
    pub weight: &'a GpuVector,
    /// The norm's, one element a channel.
    pub bias: &'a GpuVector,
    /// Added to the variance.
    pub epsilon: f32,
    /// `mixes` rows of channels, one after the other.
    pub mix: &'a GpuVector,
    /// How many mixes, 1 to 6.
    pub mixes: usize,
    /// What they weigh.
    pub weighs: Weighs,
    /// Shift states `[slot, 2, channels]`.
    pub state: &'a Buffer,
    /// The slots in `state`.
    pub page: Page,
    /// Which of the two.
    pub which: u32,
    /// The first mix, tokens × channels; the others follow, [`HalfRows::bytes`] apart.
    pub y: &'a HalfRows,
}

/// Threads of larger workgroups, as in the manifest.
const WIDE: [usize; 2] = [512, 1024];

/// Storage buffers that are bound where slices are added up.
const STORAGE_BUFFERS: u32 = 11;

/// The most mixes, as in the WGSL.
const MOST_MIXES: usize = 6;

impl NormShiftHalves<'_> {
    /// Whether the kernel takes rows of this width, and so many mixes of them; if not, the operations it is made of serve.
    pub fn suits(width: usize, mixes: usize) -> bool {
        width > 0
            && width.is_multiple_of(4)
            && parts(width).is_some()
            && (1..=MOST_MIXES).contains(&mixes)
    }
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct Params {
    page: Page,
    tokens: u32,
    width: u32,
    stride: u32,
    half_stride: u32,
    block: u32,
    which: u32,
    epsilon: f32,
    slices: u32,
    pitch: u32,
    slice: u32,
    product_stride: u32,
    // Uniform structs are as long as a multiple of their alignment.
    padding: u32,
}

impl Kernels {
    /// Whether [`norm_shift_halves`](Self::norm_shift_halves) can add up a product's slices for rows of `width` channels.
    pub fn norm_adds_slices(&self, width: usize) -> bool {
        let limits = &self.gpu().capabilities().limits;
        let most = limits.workgroup_invocations as usize;
        let held = |threads: usize| threads <= most && width / 4 <= threads;
        (parts(width) == Some(1) || WIDE.into_iter().any(held))
            && limits.storage_buffers >= STORAGE_BUFFERS
    }

    /// The dispatch of `op`.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes do not fit or [`NormShiftHalves::suits`] says no, [`Error::Gpu`] when the adapter
    /// has no 16-bit floats or the kernel does not compile.
    pub fn norm_shift_halves(&self, op: &NormShiftHalves<'_>) -> Result<Dispatch> {
        let View { rows, width, .. } = op.x;
        let fit = op.weight.len() == width
            && op.bias.len() == width
            && op.mix.len() == op.mixes * width
            && (op.y.rows(), op.y.width()) == (rows, width)
            && op.added.as_ref().is_none_or(|added| {
                (added.y.rows, added.y.width) == (rows, width)
                    && added.sum.halves.rows() == rows
                    && op.batch.span_count == rows
                    && self.norm_adds_slices(width)
            })
            && op.which < 2;
        let parts = parts(width).filter(|_| fit && NormShiftHalves::suits(width, op.mixes));
        let Some(parts) = parts else {
            return Err(Error::shape(
                "norm and token shift in f16",
                format!(
                    "{rows} rows of {width} channels, {} mixes of {} elements, norms of {} and {}, into {}×{}; use norm, \
                     token_shift and half_rows",
                    op.mixes,
                    op.mix.len(),
                    op.weight.len(),
                    op.bias.len(),
                    op.y.rows(),
                    op.y.width()
                ),
            ));
        };
        let sum = op.added.as_ref().map(|added| added.sum);
        let product_stride = sum.map_or(0, |sum| HalfRows::stride(sum.halves.width()) / 4);
        let product_stride = u32_of("stride", product_stride)?;
        let block = HalfRows::bytes(rows, width);
        let params = Params {
            page: op.page,
            tokens: u32_of("tokens", rows)?,
            width: u32_of("channels", width / 4)?,
            stride: u32_of("stride", View::stride(width) / 4)?,
            half_stride: u32_of("stride", HalfRows::stride(width) / 4)?,
            block: u32_of("stride", usize::try_from(block / 8).unwrap_or(usize::MAX))?,
            which: op.which,
            epsilon: op.epsilon,
            slices: sum.map_or(0, |sum| sum.slices),
            pitch: sum.map_or(0, |sum| sum.pitch),
            slice: sum.map_or(0, |sum| sum.slice),
            product_stride,
            padding: 0,
        };
        let mut bindings = vec![
            op.batch.tokens,
            op.batch.bound_spans("norm and token shift in f16")?,
            op.x.binding(),
            op.weight.binding(),
            op.bias.binding(),
            op.mix.binding(),
            op.page
                .binding("norm and token shift in f16", op.state, 2 * width)?,
            op.y.blocks_binding(op.mixes),
        ];
        let single = op.batch.span_count == rows;
        let constants = [
            op.weighs.constant(),
            ("MIXES", op.mixes as f64),
            ("SINGLE", f64::from(u8::from(single))),
        ];
        // A few tokens leave most of a GPU idle: what counts is how often a thread waits.
        let most = self.gpu().capabilities().limits.workgroup_invocations as usize;
        let wide = WIDE
            .into_iter()
            .find(|threads| width / 4 <= *threads && *threads <= most);
        if let Some(added) = &op.added {
            bindings.extend([
                added.sum.binding(self)?,
                added.sum.halves.binding(),
                added.y.binding(),
            ]);
        }
        let (parts, threads) = match wide {
            Some(threads) if single && parts > 1 => (1, threads),
            _ => (parts, ROW_THREADS),
        };
        let from = if op.added.is_some() { "slices" } else { "row" };
        let name = format!(
            "norm_shift_halves/{parts}/{threads}/{}/{from}",
            self.lanes()
        );
        let pipeline = self.pipeline(&name, &constants)?;
        self.dispatch(pipeline, &params, &bindings, rows)
    }
}
