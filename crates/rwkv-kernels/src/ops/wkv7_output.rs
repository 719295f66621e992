//! RWKV-7's time mix of one token and the output projection in one dispatch: `x += W y`, where y is what
//! [`Wkv7Step`] makes.

use super::{
    step::{StepKernel, StepTile},
    wkv7_step::{Bound, Wkv7Step},
};
use crate::{Error, Format, GpuMatrix, Kernels, LoraUp, Result, kernels::PARTIAL_COUNTS};
use rwkv_gpu::{Dispatch, Kind};

/// A time mix of one token on the GPU, from its projections to the residual stream.
///
/// Workgroups add their sums to x as they finish, so its last bits may differ from one run to the next.
pub struct Wkv7Output<'a> {
    /// The time mix of one span; its `y` is the residual stream, 1 × channels, to which the product is added.
    pub time_mix: Wkv7Step<'a>,
    /// The output projection: channels × channels, in F16.
    pub output: &'a GpuMatrix,
}

/// Storage buffers that the kernel binds.
const STORAGE_BUFFERS: u32 = 10;

/// Workgroups for the largest GPUs.
const ONE_A_CORE: usize = 132;

/// Rows of the output that a workgroup has at least: it does a head's whole recurrence for them.
const LEAST_ROWS: usize = 64;

impl Kernels {
    /// Whether [`wkv7_output`](Self::wkv7_output) can do both: an output and pairs in F16, heads of whole eights, and an
    /// adapter that adds floats atomically.
    pub fn wkv7_output_suits(&self, output: &GpuMatrix, up: &LoraUp, head_size: usize) -> bool {
        let (rows, cols) = (output.shape().rows.0, output.shape().cols.0);
        let have = self.gpu().capabilities();
        let f16 = output.format() == Format::F16 && up.format() == Format::F16;
        have.float_atomics
            && have.limits.storage_buffers >= STORAGE_BUFFERS
            && self.orders_partials()
            && f16
            && output.is_whole()
            && (rows, cols) == (up.channels(), up.channels())
            && head_size.is_multiple_of(8)
            && cols.is_multiple_of(head_size.max(1))
            && cols / head_size.max(1) <= PARTIAL_COUNTS
            && self.wkv7_output_tile(head_size).is_some()
    }

    /// The most threads a row of the state.
    fn wkv7_output_tile(&self, head_size: usize) -> Option<StepTile> {
        let shares: &[usize] = match self.gpu().kind() {
            // Smaller ones compile sooner.
            Kind::Software => &[8, 4],
            _ => &[16, 8, 4],
        };
        let tiles = shares.iter().map(|share| StepTile::new(*share, 1));
        let there = |tile: &StepTile| {
            let shader = tile.shader(self, "wkv7_output", Format::F16, head_size);
            tile.fits(self, head_size) && shader.is_ok_and(|s| s.name.ends_with("subgroup"))
        };
        // Threads of a row of the output are of one subgroup too: an eight of the head each.
        let lanes = self.gpu().capabilities().subgroups.map_or(0, |s| s.min);
        tiles
            .filter(|_| head_size.next_power_of_two() <= 8 * lanes as usize)
            .find(there)
    }

    /// Workgroups of a head.
    fn wkv7_output_parts(&self, heads: usize, rows: usize) -> usize {
        let most = rows.div_ceil(LEAST_ROWS).max(1);
        match self.gpu().kind() {
            Kind::Software => most.min(2),
            _ => (ONE_A_CORE / heads.max(1)).clamp(1, most),
        }
    }

    /// The dispatch of `op`, with `parts` workgroups a head or the default number.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes do not fit or [`wkv7_output_suits`](Self::wkv7_output_suits) says no, [`Error::Gpu`]
    /// when the kernel does not compile.
    pub fn wkv7_output(&self, op: &Wkv7Output<'_>, parts: Option<usize>) -> Result<Dispatch> {
        let Wkv7Step {
            r, head_size, up, ..
        } = op.time_mix;
        let suits = self.wkv7_output_suits(op.output, up, head_size);
        let tile = self.wkv7_output_tile(head_size);
        let one = r.rows == 1 && op.time_mix.batch.span_count == 1;
        let (true, true, Some(tile), [chunk]) = (suits, one, tile, op.output.chunks()) else {
            return Err(Error::shape(
                "wkv7 output",
                format!(
                    "{} spans in {} rows of {} channels, heads of {head_size}, an output of {}; use one operation a \
                     dispatch",
                    op.time_mix.batch.span_count,
                    r.rows,
                    r.width,
                    op.output.shape(),
                ),
            ));
        };
        let Bound {
            params,
            mut bindings,
            mut constants,
        } = self.wkv7_bound(&op.time_mix)?;
        bindings.push(self.partials(1)?);
        let heads = r.width / head_size;
        let rows = chunk.rows as usize;
        let asked = parts.unwrap_or_else(|| self.wkv7_output_parts(heads, rows));
        let part_rows = rows.div_ceil(asked.max(1)).max(1);
        let parts = rows.div_ceil(part_rows).max(1);
        constants.extend([
            ("OUTPUT_PARTS", parts as f64),
            ("PART_ROWS", part_rows as f64),
            ("OUTPUT_UNITS", op.output.units() as f64),
            ("OUTPUT_BASE", f64::from(chunk.base)),
        ]);
        let kernel = StepKernel {
            kernel: "wkv7_output",
            tile,
            heads,
            head_size,
            spans: 1,
            parts,
            up: Some(up),
        };
        let mut dispatch = kernel.dispatch(self, &constants, &params, &bindings)?;
        let pipeline = dispatch.pipeline.clone();
        dispatch
            .groups
            .push(chunk.group_at(self.gpu(), &pipeline, 2)?);
        Ok(dispatch)
    }
}
