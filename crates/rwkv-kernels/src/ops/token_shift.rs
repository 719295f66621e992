//! Token shift: each token's channels are mixed with those of the token before it in its sequence, and the last token
//! of a span is kept for the next one.

use crate::{
    BatchTables, Error, GpuVector, Kernels, Page, Result, Span, View, kernels::u32_of,
    ops::lerp_vector,
};
use bytemuck::NoUninit;
use rwkv_gpu::{Binding, Buffer, Dispatch};

/// The twin's first half: the row before each row of `x`, which for the first of a span is what `state` keeps for its
/// slot.
pub fn previous_rows<'s>(
    x: &[f32],
    width: usize,
    spans: &[Span],
    state: impl Fn(u32) -> &'s [f32],
    previous: &mut [f32],
) {
    for span in spans {
        let (start, length) = (span.start as usize * width, span.length as usize * width);
        let Some(rest) = length.checked_sub(width) else {
            continue;
        };
        previous[start..start + width].copy_from_slice(state(span.slot));
        previous[start + width..start + length].copy_from_slice(&x[start..start + rest]);
    }
}

/// Which token a mix weighs; the other one gets the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Weighs {
    /// `x + (previous − x) ⊙ mix`, as in RWKV-6 and RWKV-7.
    Previous,
    /// `previous + (x − previous) ⊙ mix`, as in RWKV-4 and RWKV-5.
    Current,
}

impl Weighs {
    /// The kernels' constant.
    pub(crate) fn constant(self) -> (&'static str, f64) {
        let code = match self {
            Self::Previous => 0.0,
            Self::Current => 1.0,
        };
        ("WEIGHS", code)
    }
}

/// The twin's second half: between `x` and `previous`, with `mix` one row.
pub fn mix(x: &[f32], previous: &[f32], weighs: Weighs, mix: &[f32], y: &mut [f32]) {
    match weighs {
        Weighs::Previous => lerp_vector(x, previous, mix, y),
        Weighs::Current => lerp_vector(previous, x, mix, y),
    }
}

/// A token shift on the GPU.
pub struct TokenShift<'a> {
    /// The batch.
    pub batch: BatchTables<'a>,
    /// Tokens × channels.
    pub x: View<'a>,
    /// `mixes` rows of channels, one after the other.
    pub mix: &'a GpuVector,
    /// How many.
    pub mixes: usize,
    /// What they weigh.
    pub weighs: Weighs,
    /// Shift states `[slot, 2, channels]`.
    pub state: &'a Buffer,
    /// The slots in `state`.
    pub page: Page,
    /// Which of the two.
    pub which: u32,
    /// `mixes` × tokens × channels, [`View::block_bytes`] apart.
    pub y: View<'a>,
}

/// The row before each row on the GPU: a token shift without mixes.
pub struct Previous<'a> {
    /// The batch.
    pub batch: BatchTables<'a>,
    /// Tokens × channels.
    pub x: View<'a>,
    /// Shift states `[slot, 2, channels]`.
    pub state: &'a Buffer,
    /// The slots in `state`.
    pub page: Page,
    /// Which of the two.
    pub which: u32,
    /// Tokens × channels.
    pub y: View<'a>,
}

/// Keeping the last row of each span on the GPU.
pub struct StoreShift<'a> {
    /// The batch.
    pub batch: BatchTables<'a>,
    /// Tokens × channels.
    pub x: View<'a>,
    /// Shift states `[slot, 2, channels]`.
    pub state: &'a Buffer,
    /// The slots in `state`.
    pub page: Page,
    /// Which of the two.
    pub which: u32,
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct ShiftParams {
    page: Page,
    tokens: u32,
    width: u32,
    stride: u32,
    block: u32,
    mixes: u32,
    which: u32,
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct StoreParams {
    page: Page,
    spans: u32,
    width: u32,
    stride: u32,
    which: u32,
}

/// Threads of a workgroup, as in the WGSL.
const THREADS: usize = 128;

impl Kernels {
    /// The dispatch of `op`.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes do not fit, [`Error::Gpu`] when the kernel does not compile.
    pub fn token_shift(&self, op: &TokenShift<'_>) -> Result<Dispatch> {
        let width = op.x.width;
        if op.mix.len() != op.mixes * width || op.mixes == 0 {
            return Err(Error::shape(
                "token shift",
                format!("{} mixes of {width} channels", op.mixes),
            ));
        }
        let (_, weighs) = op.weighs.constant();
        let previous = Previous {
            batch: op.batch,
            x: op.x,
            state: op.state,
            page: op.page,
            which: op.which,
            y: op.y,
        };
        self.shift(&previous, weighs, op.mix.binding(), op.mixes)
    }

    /// The dispatch of `op`.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes do not fit, [`Error::Gpu`] when the kernel does not compile.
    pub fn previous(&self, op: &Previous<'_>) -> Result<Dispatch> {
        self.shift(op, 2.0, self.unused(), 1)
    }

    /// `weighs` is the kernel's constant, `blocks` what it writes.
    fn shift(
        &self,
        op: &Previous<'_>,
        weighs: f64,
        mix: Binding<'_>,
        blocks: usize,
    ) -> Result<Dispatch> {
        let View { rows, width, .. } = op.x;
        if op.y.width != width || op.y.rows != rows || op.which > 1 {
            return Err(Error::shape(
                "token shift",
                format!(
                    "{rows}×{width} into {}×{} channels, shift vector {}",
                    op.y.rows, op.y.width, op.which
                ),
            ));
        }
        let params = ShiftParams {
            page: op.page,
            tokens: u32_of("tokens", rows)?,
            width: u32_of("channels", width)?,
            stride: u32_of("stride", View::stride(width))?,
            block: block_elements(rows, width)?,
            mixes: u32_of("mixes", blocks)?,
            which: op.which,
        };
        let bindings = [
            op.batch.tokens,
            op.batch.bound_spans("token shift")?,
            op.x.binding(),
            mix,
            op.page.binding("token shift", op.state, 2 * width)?,
            op.y.blocks_binding(blocks),
        ];
        let pipeline = self.pipeline("token_shift", &[("WEIGHS", weighs)])?;
        self.dispatch(pipeline, &params, &bindings, rows * width.div_ceil(THREADS))
    }

    /// The dispatch of `op`.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes do not fit or pass 32 bits, [`Error::Gpu`] when the kernel does not compile.
    pub fn store_shift(&self, op: &StoreShift<'_>) -> Result<Dispatch> {
        if op.which > 1 {
            let problem = format!("shift vector {}", op.which);
            return Err(Error::shape("token shift", problem));
        }
        let params = StoreParams {
            page: op.page,
            spans: u32_of("spans", op.batch.span_count)?,
            width: u32_of("channels", op.x.width)?,
            stride: u32_of("stride", View::stride(op.x.width))?,
            which: op.which,
        };
        let bindings = [
            op.batch.bound_spans("token shift")?,
            op.x.binding(),
            op.page.binding("token shift", op.state, 2 * op.x.width)?,
        ];
        let pipeline = self.pipeline("store_shift", &[])?;
        self.dispatch(
            pipeline,
            &params,
            &bindings,
            op.batch.span_count * op.x.width.div_ceil(THREADS),
        )
    }
}

/// Elements between activations of one shape that share a buffer.
pub(crate) fn block_elements(rows: usize, width: usize) -> Result<u32> {
    u32_of(
        "stride",
        usize::try_from(View::block_bytes(rows, width) / 4).unwrap_or(usize::MAX),
    )
}
