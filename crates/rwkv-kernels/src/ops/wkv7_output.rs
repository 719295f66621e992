//! RWKV-7's time mix of one token and the output projection in one dispatch: `x += W y`, where y is what
//! [`Wkv7Step`] makes.

use super::{
    column_slice::Slice,
    step::{StepKernel, StepTile, Ups},
    wkv7_step::{Bound, Wkv7Step},
};
use crate::{
    Error, Format, GpuMatrix, Kernels, LoraUp, Result,
    kernels::PARTIAL_COUNTS,
    tuning::{Problem, Tunable},
};
use rwkv_gpu::{Dispatch, Kind};
use serde::{Deserialize, Serialize};

/// A time mix of one token on the GPU, from its projections to the residual stream.
///
/// Workgroups add their sums to x as they finish, so its last bits may differ from one run to the next.
pub struct Wkv7Output<'a> {
    /// The time mix of one span; its `y` is the residual stream, 1 × channels, to which the product is added.
    pub time_mix: Wkv7Step<'a>,
    /// The output projection: channels × channels, in F16 or codes of up to 8 bits, which multiply what the time mix makes
    /// rounded to 16 bits ([`round_to_16_bits`](super::round_to_16_bits)).
    pub output: &'a GpuMatrix,
}

/// How workgroups share the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct OutputShape {
    /// Threads that share a row of the state in heads of up to 64: 4, 8 or 16; half of them in larger heads.
    pub share: usize,
    /// Workgroups of a head.
    pub parts: usize,
}

impl OutputShape {
    /// What is worth timing: few, since they take long to compile.
    pub(crate) fn candidates() -> impl Iterator<Item = Self> {
        let all = [(16, 2), (16, 4), (8, 2), (8, 4), (16, 8)];
        all.into_iter().map(|(share, parts)| Self { share, parts })
    }
}

/// Workgroups for the largest GPUs.
const ONE_A_CORE: usize = 132;

/// Rows of the output that a workgroup has at least: it does a head's whole recurrence for them.
const LEAST_ROWS: usize = 64;

const KERNEL: &str = "wkv7_output";

/// How workgroups share the work.
struct Cut {
    tile: StepTile,
    slice: Slice,
    /// Rows of the output that a workgroup has, and workgroups of a head.
    part_rows: usize,
    parts: usize,
}

/// Weights of the recurrence that a thread has under way at most where those of the output are too, four registers each:
/// with packed outputs, whose units are larger, none.
fn most_ahead(output: &GpuMatrix) -> f64 {
    if output.format() == Format::F16 {
        5.0
    } else {
        0.0
    }
}

impl Kernels {
    /// Whether [`wkv7_output`](Self::wkv7_output) can do both: pairs in F16, an output in F16 or codes of up to 8 bits, of
    /// which a head has whole blocks, and an adapter that adds floats atomically and binds enough buffers.
    pub fn wkv7_output_suits(&self, output: &GpuMatrix, up: &LoraUp, head_size: usize) -> bool {
        let (rows, cols) = (output.shape().rows.0, output.shape().cols.0);
        let have = self.gpu().capabilities();
        have.float_atomics
            && self.orders_partials()
            && up.format() == Format::F16
            && output.is_whole()
            && (rows, cols) == (up.channels(), up.channels())
            && cols.is_multiple_of(head_size.max(1))
            && cols / head_size.max(1) <= PARTIAL_COUNTS
            && self.wkv7_output_tile(output, head_size, None, 1).is_some()
    }

    /// One of so many threads a row of the state, or of the most, for `parts` workgroups of a head.
    fn wkv7_output_tile(
        &self,
        output: &GpuMatrix,
        head_size: usize,
        share: Option<usize>,
        parts: usize,
    ) -> Option<Cut> {
        let shares: &[usize] = match self.gpu().kind() {
            // Smaller ones compile sooner.
            Kind::Software => &[8, 4],
            _ => &[16, 8, 4],
        };
        let shares = share.as_ref().map_or(shares, std::slice::from_ref);
        let rows = output.shape().rows.0;
        let part_rows = rows.div_ceil(parts.max(1)).max(1);
        let cut = |share: &usize| {
            let tile = StepTile::new(*share, 1);
            let of = Some(output.layout().shader());
            let shader = tile.shader(self, KERNEL, "f16", head_size, of).ok()?;
            let threads = tile.threads(head_size).ok()?;
            let slice = self.slice(output, head_size, part_rows, threads, false)?;
            (tile.fits(self, head_size) && self.binds(shader)).then_some(Cut {
                tile,
                slice,
                part_rows,
                parts: rows.div_ceil(part_rows).max(1),
            })
        };
        shares.iter().find_map(cut)
    }

    /// What was asked for or tuned, if there is such a kernel, or else the default.
    fn wkv7_output_cut(&self, op: &Wkv7Output<'_>, asked: Option<OutputShape>) -> Option<Cut> {
        let (rows, head_size) = (op.output.shape().rows.0, op.time_mix.head_size);
        let heads = rows.checked_div(head_size)?;
        let tuned = || {
            self.output_choice(Problem {
                kernel: Tunable::Wkv7Output,
                format: op.output.format().to_string(),
                rows: heads,
                cols: head_size,
                tokens: 1,
            })
        };
        let most = rows.div_ceil(LEAST_ROWS).max(1);
        let cut = |shape: OutputShape| {
            let parts = shape.parts.clamp(1, most);
            self.wkv7_output_tile(op.output, head_size, Some(shape.share), parts)
        };
        let usual = || {
            let parts = match self.gpu().kind() {
                Kind::Software => most.min(2),
                _ => (ONE_A_CORE / heads.max(1)).clamp(1, most),
            };
            self.wkv7_output_tile(op.output, head_size, None, parts)
        };
        match asked {
            Some(shape) => cut(shape),
            None => tuned().and_then(cut).or_else(usual),
        }
    }

    /// The dispatch of `op`, of a chosen shape or the default one.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes do not fit or [`wkv7_output_suits`](Self::wkv7_output_suits) says no, [`Error::Gpu`]
    /// when the kernel does not compile.
    pub fn wkv7_output(&self, op: &Wkv7Output<'_>, shape: Option<OutputShape>) -> Result<Dispatch> {
        let Wkv7Step {
            r, head_size, up, ..
        } = op.time_mix;
        let suits = self.wkv7_output_suits(op.output, up, head_size);
        let cut = self.wkv7_output_cut(op, shape);
        let one = r.rows == 1 && op.time_mix.batch.span_count == 1;
        let (true, true, Some(cut), [chunk]) = (suits, one, cut, op.output.chunks()) else {
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
        constants.extend([
            ("OUTPUT_PARTS", cut.parts as f64),
            ("PART_ROWS", cut.part_rows as f64),
            ("MOST_AHEAD", most_ahead(op.output)),
        ]);
        constants.extend(cut.slice.constants);
        let kernel = StepKernel {
            kernel: KERNEL,
            tile: cut.tile,
            heads,
            head_size,
            spans: 1,
            parts: cut.parts,
            ups: Ups::Weights(up),
            output: Some(op.output.layout().shader()),
        };
        let mut dispatch = kernel.dispatch(self, &constants, &params, &bindings)?;
        let pipeline = dispatch.pipeline.clone();
        dispatch
            .groups
            .push(chunk.group_at(self.gpu(), &pipeline, 2)?);
        Ok(dispatch)
    }
}
