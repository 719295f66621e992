//! RWKV-6's token shift between the halves of its low-rank pairs in one kernel (ddlerp; Peng et al. 2024, "Eagle and
//! Finch", section 4.2): `y = x + (previous − x) ⊙ (base + W h)` for five mixes. What `linear` of the pairs' second
//! matrices and `lerp` do one after the other; those are its twin.

use super::{step::one_buffer, token_shift::block_elements};
use crate::{Error, Format, GpuMatrix, GpuVector, Kernels, Result, View, kernels::u32_of};
use bytemuck::{NoUninit, Pod, Zeroable};
use rwkv_gpu::Dispatch;

/// How many mixes depend on the data: those of decay, key, value, receptance and gate.
pub const MIXES6: usize = 5;

/// The mixes on the GPU, for any number of tokens.
pub struct Mix6<'a> {
    /// Tokens × channels: the current rows.
    pub x: View<'a>,
    /// The rows before them; in the buffer of `x`.
    pub previous: View<'a>,
    /// What the pairs' second matrices multiply (after tanh), tokens × rank, in one buffer.
    pub hidden: [View<'a>; MIXES6],
    /// Those matrices, `[channels, rank]`, in one stack.
    pub up: &'a GpuMatrix,
    /// The first row of each in `up`.
    pub rows: [usize; MIXES6],
    /// What the products are added to: a row of channels a mix.
    pub base: &'a GpuVector,
    /// The mixes × tokens × channels, [`View::block_bytes`] apart; not the buffer of anything else here.
    pub y: View<'a>,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct MixParams {
    row: u32,
    hidden: u32,
    padding: [u32; 2],
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct Params {
    mixes: [MixParams; MIXES6],
    tokens: u32,
    width: u32,
    rank: u32,
    units: u32,
    x: u32,
    previous: u32,
    stride: u32,
    hidden_stride: u32,
    block: u32,
    padding: [u32; 3],
}

/// Channels that a workgroup makes, as in the WGSL.
const CHANNELS: usize = 64;

impl Mix6<'_> {
    /// Whether the kernel reads a stack: one part, F16 or F32. If not, the operations it is made of serve.
    pub fn suits(up: &GpuMatrix) -> bool {
        up.is_whole() && matches!(up.format(), Format::F16 | Format::F32)
    }
}

impl Kernels {
    /// The dispatch of `op`.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes do not fit or [`Mix6::suits`] says no, [`Error::Gpu`] when the kernel does not
    /// compile.
    pub fn mix6(&self, op: &Mix6<'_>) -> Result<Dispatch> {
        const WHAT: &str = "mixes that depend on the data";
        let View {
            rows: tokens,
            width,
            ..
        } = op.x;
        let (have, rank) = (op.up.shape().rows.0, op.up.shape().cols.0);
        let same = |v: &View<'_>| v.rows == tokens && v.width == width;
        let hidden_fits = |v: &View<'_>| v.rows == tokens && v.width == rank;
        let fit = [op.previous, op.y].iter().all(same)
            && op.hidden.iter().all(hidden_fits)
            && op
                .rows
                .iter()
                .all(|row| row.checked_add(width).is_some_and(|end| end <= have))
            && op.base.len() == MIXES6 * width
            && rank > 0;
        let (true, true, [chunk]) = (fit, Mix6::suits(op.up), op.up.chunks()) else {
            return Err(Error::shape(
                WHAT,
                format!(
                    "{tokens}×{width} with the one before of {}×{}, hidden vectors of {:?}, a {} stack of {} in {} \
                     parts, {} elements of bases",
                    op.previous.rows,
                    op.previous.width,
                    op.hidden.map(|h| (h.rows, h.width)),
                    op.up.shape(),
                    op.up.format(),
                    op.up.chunks().len(),
                    op.base.len()
                ),
            ));
        };
        let (x, x_places) = one_buffer(WHAT, &[op.x, op.previous])?;
        let (hidden, hidden_places) = one_buffer(WHAT, &op.hidden)?;
        let place = |i: usize| x_places.get(i).copied().unwrap_or(0);
        let mut mixes = [MixParams::zeroed(); MIXES6];
        for ((mix, row), hidden) in mixes.iter_mut().zip(op.rows).zip(hidden_places) {
            if !hidden.is_multiple_of(4) {
                let problem = "hidden vectors that do not begin at a multiple of 16 bytes";
                return Err(Error::shape(WHAT, problem));
            }
            mix.row = u32_of("row", chunk.base as usize + row)?;
            mix.hidden = hidden / 4;
        }
        let params = Params {
            mixes,
            tokens: u32_of("tokens", tokens)?,
            width: u32_of("channels", width)?,
            rank: u32_of("rank", rank)?,
            units: u32_of("units", op.up.units())?,
            x: place(0),
            previous: place(1),
            stride: u32_of("stride", View::stride(width))?,
            hidden_stride: u32_of("stride", View::stride(rank) / 4)?,
            block: block_elements(tokens, width)?,
            padding: [0; 3],
        };
        let bindings = [x, hidden, op.base.binding(), op.y.blocks_binding(MIXES6)];
        let ragged = f64::from(u8::from(op.up.ragged()));
        let name = format!("mix6/{}", op.up.layout().shader());
        let pipeline = self.pipeline(&name, &[("RAGGED", ragged)])?;
        let workgroups = tokens * MIXES6 * width.div_ceil(CHANNELS);
        let mut dispatch = self.dispatch(pipeline.clone(), &params, &bindings, workgroups)?;
        dispatch.groups.push(chunk.group(self.gpu(), &pipeline)?);
        Ok(dispatch)
    }
}
