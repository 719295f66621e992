//! A layer norm, a token shift and the products of its mixes in one dispatch, for one token:
//! `y_i = f_i(W_i mix_i(norm(x), previous))`.

use super::stream::{ONE_A_CORE, Stream, StreamShape};
use crate::{
    BatchTables, Error, Format, GpuMatrix, GpuVector, Kernels, Page, Result, View,
    kernels::u32_of,
    ops::{Function, MAX_SEGMENTS, Stack, Weighs},
    tuning::{Problem, Tunable},
};
use bytemuck::NoUninit;
use rwkv_gpu::{Binding, Buffer, Dispatch};
use std::ops::Range;

/// One product: `y = function(W mix(norm(x), previous))`.
#[derive(Clone, Debug)]
pub struct MixedProduct {
    /// Where the rows of W are.
    pub stack: Stack,
    /// Which they are.
    pub rows: Range<usize>,
    /// The number of its mix.
    pub mix: usize,
    /// Applied to each element.
    pub function: Function,
    /// Where its results go: the first byte in [`NormProject::y`], a multiple of 4.
    pub y_offset: u64,
}

/// Norm, shift and products of one token on the GPU. Codes of up to 8 bits multiply the mixes rounded to 16 bits
/// ([`round_to_16_bits`](super::round_to_16_bits)).
pub struct NormProject<'a> {
    /// The batch: one span of one token.
    pub batch: BatchTables<'a>,
    /// The residual stream: 1 × columns of the matrices.
    pub x: View<'a>,
    /// The norm's weight, its bias, and the mixes, one after the other.
    pub vectors: &'a GpuVector,
    /// Added to the variance.
    pub epsilon: f32,
    /// What the mixes weigh.
    pub weighs: Weighs,
    /// Shift states `[slot, 2, channels]`.
    pub state: &'a Buffer,
    /// The slots in `state`; a token of another slot is left alone.
    pub page: Page,
    /// Which of the two.
    pub which: u32,
    /// Matrices of one format below each other, in one part.
    pub weights: &'a GpuMatrix,
    /// F16 matrices of the same columns below each other, in one part: the first halves of low-rank pairs.
    pub pairs: Option<&'a GpuMatrix>,
    /// Up to [`MAX_SEGMENTS`].
    pub products: &'a [MixedProduct],
    /// Where in `y` the normed x goes, which is the next shift vector: the first byte, a multiple of 4. Other workgroups
    /// still read the state here, so a later dispatch stores it.
    pub shifted_offset: u64,
    /// Where as many zeros go, if anywhere: what a later dispatch adds to; not in the buffer of `y`.
    pub zeros: Option<View<'a>>,
    /// Where the results go: not the buffer of x.
    pub y: &'a Buffer,
}

/// What the kernel must know of a product before anything else, and so as constants of the pipeline.
#[derive(Clone, Copy, Default)]
struct SegmentConstants {
    first: u32,
    base: u32,
    rows: u32,
    y: u32,
    /// The stack, the function and the mix, as in the WGSL.
    what: u32,
}

impl SegmentConstants {
    fn named(&self, index: usize) -> impl Iterator<Item = (&'static str, f64)> {
        let names: [[&'static str; 5]; MAX_SEGMENTS] = [
            ["FIRST_0", "BASE_0", "ROWS_0", "Y_0", "WHAT_0"],
            ["FIRST_1", "BASE_1", "ROWS_1", "Y_1", "WHAT_1"],
            ["FIRST_2", "BASE_2", "ROWS_2", "Y_2", "WHAT_2"],
            ["FIRST_3", "BASE_3", "ROWS_3", "Y_3", "WHAT_3"],
            ["FIRST_4", "BASE_4", "ROWS_4", "Y_4", "WHAT_4"],
            ["FIRST_5", "BASE_5", "ROWS_5", "Y_5", "WHAT_5"],
            ["FIRST_6", "BASE_6", "ROWS_6", "Y_6", "WHAT_6"],
            ["FIRST_7", "BASE_7", "ROWS_7", "Y_7", "WHAT_7"],
        ];
        let values = [self.first, self.base, self.rows, self.y, self.what];
        let names = names.get(index).copied().into_iter().flatten();
        names.zip(values.map(f64::from))
    }
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct Params {
    page: Page,
    epsilon: f32,
    shifted: u32,
    padding: [u32; 2],
}

/// Eights of x that a thread has at most, as in the WGSL.
const MOST_OWN: usize = 4;

const KERNEL: &str = "norm_project";

impl Kernels {
    /// Whether [`norm_project`](Self::norm_project) can do products with `weights` and `pairs`, and write zeros besides
    /// if it `clears`: both in one part, the pairs in F16, no more buffers than the adapter binds, and x fitting a
    /// workgroup.
    pub fn norm_project_suits(
        &self,
        weights: &GpuMatrix,
        pairs: Option<&GpuMatrix>,
        clears: bool,
    ) -> bool {
        weights.is_whole()
            && pairs.is_none_or(|p| {
                p.is_whole()
                    && p.format() == Format::F16
                    && p.shape().cols == weights.shape().cols
                    && !p.ragged()
            })
            && self.has_stream_kernel(KERNEL, weights, axes(pairs, clears))
            && self
                .norm_project_resolved(weights, pairs.is_some(), None)
                .is_some()
    }

    /// Beside pairs there are several products, whose rows are to be shared out: where codes are integers, in blocks of
    /// fewer rows. Of small codes a row has few units, of which none is to be asked for twice.
    fn norm_project_shape(&self, weights: &GpuMatrix, pairs: bool) -> StreamShape {
        let shape = self.stream_shape(weights, true);
        let integers = weights.layout().codes_are_integers();
        if !pairs || !integers || shape.rows * shape.unroll <= 2 {
            return shape;
        }
        if weights.layout().unit() <= 16 {
            return StreamShape {
                rows: 1,
                unroll: 4,
                ..shape
            };
        }
        StreamShape {
            threads: 512,
            rows: 1,
            unroll: 2,
            workgroups: ONE_A_CORE,
            ..shape
        }
    }

    /// `shape`, or the one that was tuned or else the default one.
    fn norm_project_resolved(
        &self,
        weights: &GpuMatrix,
        pairs: bool,
        shape: Option<StreamShape>,
    ) -> Option<Stream> {
        let kernel = if pairs {
            Tunable::NormProjectPairs
        } else {
            Tunable::NormProject
        };
        let problem = || Problem::of_matrix(kernel, weights, 1);
        let tuned = shape.or_else(|| self.stream_choice(problem()));
        let usual =
            || self.norm_project_fitted(weights, pairs, self.norm_project_shape(weights, pairs));
        tuned
            .and_then(|shape| self.norm_project_fitted(weights, pairs, shape))
            .or_else(usual)
    }

    /// `shape` with all of x in workgroup memory, if it fits.
    fn norm_project_fitted(
        &self,
        weights: &GpuMatrix,
        pairs: bool,
        shape: StreamShape,
    ) -> Option<Stream> {
        let cols = weights.shape().cols.0;
        let shape = StreamShape { slices: 1, ..shape };
        let slots = if pairs { cols / 4 } else { 0 };
        let stream = self.stream(weights, shape, slots)?;
        (stream.slices == 1 && cols / 8 <= stream.threads as usize * MOST_OWN).then_some(stream)
    }

    /// The dispatch of `op`, of a chosen shape or the default one.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes do not fit or the kernel does not suit, [`Error::Gpu`] when it does not compile.
    pub fn norm_project(
        &self,
        op: &NormProject<'_>,
        shape: Option<StreamShape>,
    ) -> Result<Dispatch> {
        let refused = |problem: String| Error::shape("norm, shift and products", problem);
        let cols = op.weights.shape().cols.0;
        let mixes = (op.vectors.len() / cols.max(1)).saturating_sub(2);
        let clears = op.zeros.is_some();
        let fits = op.x.rows == 1
            && op.x.width == cols
            && op.batch.span_count == 1
            && op.vectors.len() == (2 + mixes) * cols
            && (1..=MAX_SEGMENTS).contains(&op.products.len())
            && op.shifted_offset.is_multiple_of(4)
            && op
                .zeros
                .is_none_or(|z| z.rows == 1 && z.width == cols && z.buffer != op.y);
        let suits = self.norm_project_suits(op.weights, op.pairs, clears);
        let stream = self.norm_project_resolved(op.weights, op.pairs.is_some(), shape);
        let (true, true, Some(stream), [weights]) = (fits, suits, stream, op.weights.chunks())
        else {
            return Err(refused(format!(
                "{}×{} in {} spans, {} vector elements, {} products of a {} stack; use one operation a dispatch",
                op.x.rows,
                op.x.width,
                op.batch.span_count,
                op.vectors.len(),
                op.products.len(),
                op.weights.shape(),
            )));
        };
        let pairs = op.pairs.and_then(|p| p.chunks().first());
        let alignment = self.gpu().capabilities().limits.offset_alignment.max(4);
        let offsets = op.products.iter().map(|p| p.y_offset);
        let first = offsets.chain([op.shifted_offset]).min().unwrap_or(0);
        let start = first / alignment * alignment;
        let words = |offset: u64| {
            u32_of(
                "results",
                usize::try_from((offset - start) / 4).unwrap_or(usize::MAX),
            )
        };
        let mut end = op.shifted_offset.saturating_add(View::bytes(1, cols));
        let mut segments = [SegmentConstants::default(); MAX_SEGMENTS];
        for (params, product) in segments.iter_mut().zip(op.products) {
            let (code, stack, chunk) = match product.stack {
                Stack::Weights => (0, Some(op.weights), Some(weights)),
                Stack::Pairs => (1, op.pairs, pairs),
            };
            let (rows, have) = (&product.rows, stack.map_or(0, |s| s.shape().rows.0));
            let count = rows.end.saturating_sub(rows.start);
            let last = product.y_offset.saturating_add(View::bytes(1, count));
            if count == 0
                || rows.end > have
                || product.mix >= mixes
                || !product.y_offset.is_multiple_of(4)
                || last > op.y.size()
            {
                return Err(refused(format!(
                    "rows {} to {} of {have} by mix {} of {mixes} to byte {} of {}",
                    rows.start,
                    rows.end,
                    product.mix,
                    product.y_offset,
                    op.y.size()
                )));
            }
            end = end.max(last);
            *params = SegmentConstants {
                first: 0,
                base: chunk.map_or(0, |c| c.base) + u32_of("rows", rows.start)?,
                rows: u32_of("rows", count)?,
                y: words(product.y_offset)?,
                what: code | product.function.code() << 1 | u32_of("mixes", product.mix)? << 5,
            };
        }
        if end > op.y.size() {
            return Err(refused(format!(
                "its rows end at byte {end} of {}",
                op.y.size()
            )));
        }
        let workgroups = self.share_out(&stream, op, &mut segments)?;
        let mut constants = vec![
            op.weighs.constant(),
            ("EIGHTS_OF_X", (cols / 8) as f64),
            (
                "SUBGROUPS",
                f64::from(stream.threads / self.lane_counts().0),
            ),
            ("OWN", (cols / 8).div_ceil(stream.threads as usize) as f64),
            ("WHICH", f64::from(op.which)),
            ("ONE_SLOT", f64::from(u8::from(op.page.slots == 1))),
            ("COUNT", op.products.len() as f64),
            ("WORKGROUPS", workgroups as f64),
        ];
        let used = segments.iter().take(op.products.len());
        constants.extend(used.enumerate().flat_map(|(i, s)| s.named(i)));
        if op.pairs.is_some() {
            constants.push(("PAIR_UNITS", (cols / 8) as f64));
        }
        constants.extend(&stream.constants);
        let pipeline =
            self.stream_pipeline(KERNEL, op.weights, axes(op.pairs, clears), &constants)?;
        let params = Params {
            page: op.page,
            epsilon: op.epsilon,
            shifted: words(op.shifted_offset)?,
            padding: [0; 2],
        };
        let mut bindings = vec![
            op.batch.bound_spans("norm, shift and products")?,
            op.x.binding(),
            op.vectors.binding(),
            op.page
                .binding("norm, shift and products", op.state, 2 * cols)?,
            Binding {
                buffer: op.y,
                offset: start,
                size: Some(end - start),
            },
        ];
        bindings.extend(op.zeros.as_ref().map(View::binding));
        let mut dispatch = self.dispatch(pipeline.clone(), &params, &bindings, workgroups)?;
        dispatch.groups.push(weights.group(self.gpu(), &pipeline)?);
        if let Some(pairs) = pairs {
            dispatch
                .groups
                .push(pairs.group_at(self.gpu(), &pipeline, 2)?);
        }
        Ok(dispatch)
    }

    /// Gives each product its workgroups, so that each of them reads about the same and none waits for a place; the
    /// number of all.
    fn share_out(
        &self,
        stream: &Stream,
        op: &NormProject<'_>,
        segments: &mut [SegmentConstants; MAX_SEGMENTS],
    ) -> Result<usize> {
        let row_bytes =
            |matrix: &GpuMatrix| -> usize { matrix.layout().row_bytes(op.x.width).iter().sum() };
        let weight_row = row_bytes(op.weights);
        let pair_row = op.pairs.map_or(weight_row, row_bytes);
        let block = stream.block_rows();
        // A subgroup makes one row of a pair at a time.
        let pair_block = self.rows_per_workgroup(stream.threads);
        let rows = |stack: Stack| {
            let all = op.products.iter().filter(|p| p.stack == stack);
            all.map(|p| p.rows.len()).sum::<usize>()
        };
        let bytes = rows(Stack::Weights) * weight_row + rows(Stack::Pairs) * pair_row;
        // Blocks that each workgroup makes: as few as need no more workgroups than there are places.
        let shares = |turns: usize| {
            let share = turns * block;
            let pairs = (share * weight_row / pair_row.max(1)).next_multiple_of(pair_block);
            (share, pairs.max(pair_block))
        };
        let count = |(share, pair_share): (usize, usize), product: &MixedProduct| {
            product.rows.len().div_ceil(match product.stack {
                Stack::Weights => share,
                Stack::Pairs => pair_share,
            })
        };
        let fits = |turns: &usize| {
            let all = op.products.iter().map(|p| count(shares(*turns), p));
            all.sum::<usize>() <= stream.most_workgroups()
        };
        let least = bytes / (block * weight_row * stream.most_workgroups()).max(1);
        // Products of a row or two never fit, and then wait for each other.
        let turns = (least.max(1)..2 * least + 8)
            .find(fits)
            .unwrap_or(least + 1);
        let mut first = 0;
        for (segment, product) in segments.iter_mut().zip(op.products) {
            let count = count(shares(turns), product);
            segment.first = u32_of("workgroups", first)?;
            first += count;
        }
        Ok(first)
    }
}

/// The values of the last two axes.
fn axes(pairs: Option<&GpuMatrix>, clears: bool) -> &'static str {
    match (pairs.is_some(), clears) {
        (false, false) => "none/none",
        (false, true) => "none/row",
        (true, false) => "f16/none",
        (true, true) => "f16/row",
    }
}
