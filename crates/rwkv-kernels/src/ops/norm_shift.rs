//! Layer norm and token shift in one kernel, for steps in which every span is one token: what `norm`, `previous_rows`,
//! `mix` and keeping the last row do one after the other. Those are its twin.

use super::token_shift::block_elements;
use crate::{
    BatchTables, Error, GpuVector, Kernels, Page, Result, View, kernels::u32_of, ops::Weighs,
};
use bytemuck::NoUninit;
use rwkv_gpu::{Buffer, Dispatch};

/// A layer norm, its token shift, and the normed row kept in the state, on the GPU.
pub struct NormShift<'a> {
    /// The batch; every span has one token.
    pub batch: BatchTables<'a>,
    /// Tokens × channels, before the norm; channels are a multiple of 4.
    pub x: View<'a>,
    /// The norm's, one element a channel.
    pub weight: &'a GpuVector,
    /// The norm's, one element a channel.
    pub bias: &'a GpuVector,
    /// Added to the variance.
    pub epsilon: f32,
    /// `mixes` rows of channels, one after the other; None without mixes.
    pub mix: Option<&'a GpuVector>,
    /// How many mixes, at most 6.
    pub mixes: usize,
    /// What they weigh.
    pub weighs: Weighs,
    /// What `y` has past the mixes.
    pub rows: ShiftRows,
    /// Shift states `[slot, 2, channels]`.
    pub state: &'a Buffer,
    /// The slots in `state`.
    pub page: Page,
    /// Which of the two.
    pub which: u32,
    /// [`NormShift::blocks`] × tokens × channels, [`View::block_bytes`] apart: the mixes, then `rows`.
    pub y: View<'a>,
}

/// What is written besides the mixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ShiftRows {
    /// Nothing.
    None,
    /// The normed row.
    Normed,
    /// The normed row, then the one before it.
    NormedAndPrevious,
}

impl ShiftRows {
    /// Blocks of the result.
    pub fn count(self) -> usize {
        match self {
            Self::None => 0,
            Self::Normed => 1,
            Self::NormedAndPrevious => 2,
        }
    }
}

impl NormShift<'_> {
    /// Whether the kernel takes rows of this width; if not, the operations it is made of serve.
    pub fn suits(width: usize) -> bool {
        width > 0 && width.is_multiple_of(4)
    }

    /// Blocks of the result.
    pub fn blocks(&self) -> usize {
        self.mixes + self.rows.count()
    }
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct Params {
    page: Page,
    spans: u32,
    width: u32,
    stride: u32,
    block: u32,
    mixes: u32,
    which: u32,
    slice: u32,
    slices: u32,
    epsilon: f32,
    // Uniform structs are as long as a multiple of their alignment.
    padding: [u32; 3],
}

/// Threads of a workgroup, as in the WGSL.
const THREADS: usize = 256;

/// The most mixes, as in the WGSL.
const MOST_MIXES: usize = 6;

/// Vec4s that a workgroup mixes of a row: few when there are few rows, which are then spread over the whole GPU; more
/// when there are workgroups enough, since each reads the whole row.
fn slice(spans: usize) -> usize {
    (spans * 8).next_power_of_two().clamp(32, THREADS)
}

impl Kernels {
    /// The dispatch of `op`.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes do not fit or [`NormShift::suits`] says no, [`Error::Gpu`] when the kernel does not
    /// compile.
    pub fn norm_shift(&self, op: &NormShift<'_>) -> Result<Dispatch> {
        let View { rows, width, .. } = op.x;
        let blocks = op.blocks();
        let fit = op.weight.len() == width
            && op.bias.len() == width
            && op.mix.map_or(0, GpuVector::len) == op.mixes * width
            && op.mixes <= MOST_MIXES
            && blocks > 0
            && op.y.width == width
            && op.y.rows == rows
            && op.batch.span_count <= rows
            && op.which < 2;
        if !fit || !NormShift::suits(width) {
            return Err(Error::shape(
                "norm and token shift",
                format!(
                    "{} spans in {rows} rows of {width} channels, {} mixes of {} elements, norms of {} and {}, into \
                     {blocks} of {}×{}",
                    op.batch.span_count,
                    op.mixes,
                    op.mix.map_or(0, GpuVector::len),
                    op.weight.len(),
                    op.bias.len(),
                    op.y.rows,
                    op.y.width
                ),
            ));
        }
        let spans = op.batch.span_count;
        let slice = slice(spans);
        let slices = (width / 4).div_ceil(slice);
        let params = Params {
            page: op.page,
            spans: u32_of("spans", spans)?,
            width: u32_of("channels", width / 4)?,
            stride: u32_of("stride", View::stride(width) / 4)?,
            block: block_elements(rows, width)? / 4,
            mixes: u32_of("mixes", op.mixes)?,
            which: op.which,
            slice: u32_of("slice", slice)?,
            slices: u32_of("slices", slices)?,
            epsilon: op.epsilon,
            padding: [0; 3],
        };
        let bindings = [
            op.batch.bound_spans("norm and token shift")?,
            op.x.binding(),
            op.weight.binding(),
            op.bias.binding(),
            op.mix.map_or(self.unused(), GpuVector::binding),
            op.page
                .binding("norm and token shift", op.state, 2 * width)?,
            op.y.blocks_binding(blocks),
        ];
        let constants = [op.weighs.constant(), ("ROWS", op.rows.count() as f64)];
        let name = format!("norm_shift/{THREADS}/{}", self.lanes());
        let pipeline = self.pipeline(&name, &constants)?;
        self.dispatch(pipeline, &params, &bindings, spans * slices)
    }
}
