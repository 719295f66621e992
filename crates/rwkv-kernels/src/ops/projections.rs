//! Several products of matrices with the same columns in one dispatch, each with its own input and function:
//! `y_i = f_i(W_i x_i)`.

use crate::{
    Error, Format, GpuMatrix, Kernels, Result, View,
    kernels::u32_of,
    ops::{Function, MatvecShape, matvec::MATVEC_TOKENS, token_shift::block_elements},
};
use bytemuck::{NoUninit, Pod, Zeroable};
use rwkv_gpu::{Binding, Buffer, Dispatch};
use std::ops::Range;

/// The most products of one dispatch.
pub const MAX_SEGMENTS: usize = 8;

/// Which of the two stacks a product's rows are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stack {
    /// [`Projections::weights`].
    Weights,
    /// [`Projections::pairs`].
    Pairs,
}

/// One product: `y = function(W x)`.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Where its rows are.
    pub stack: Stack,
    /// Which they are.
    pub rows: Range<usize>,
    /// The number of its x among the blocks.
    pub x: usize,
    /// Applied to each element.
    pub function: Function,
    /// Where tokens × its rows go: the first byte in [`Projections::y`], a multiple of 4. Rows are [`View::stride`]
    /// apart, as in every activation.
    pub y_offset: u64,
}

/// Products of up to 8 tokens on the GPU, or 16 without pairs where the adapter has subgroups, each weight read once.
pub struct Projections<'a> {
    /// Tokens × columns: the first of `blocks` activations, [`View::block_bytes`] apart.
    pub x: View<'a>,
    /// How many.
    pub blocks: usize,
    /// Matrices of one format below each other, in one part.
    pub weights: &'a GpuMatrix,
    /// F16 matrices of the same columns below each other, in one part: the first halves of low-rank pairs.
    pub pairs: Option<&'a GpuMatrix>,
    /// Up to [`MAX_SEGMENTS`].
    pub segments: &'a [Segment],
    /// Where the results go: not the buffer of x.
    pub y: &'a Buffer,
}

/// Where a segment's operands and results lie, as the kernels read it (`wgsl/projections.wgsl`).
#[derive(Clone, Copy, Default, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Placed {
    pub(crate) stack: u32,
    pub(crate) first_row: u32,
    pub(crate) rows: u32,
    pub(crate) x: u32,
    pub(crate) y: u32,
    pub(crate) y_stride: u32,
    pub(crate) function_code: u32,
    padding: u32,
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct Params {
    cols: u32,
    units: u32,
    pair_units: u32,
    tokens: u32,
    x_stride: u32,
    chunk: u32,
    count: u32,
    padding: u32,
    segments: [Placed; MAX_SEGMENTS],
}

impl Kernels {
    /// Whether [`projections`](Self::projections) can do `op`: both stacks in one part, and up to 8 tokens, or as many as
    /// [`token_projections_suit`](Self::token_projections_suit) says.
    pub fn projections_suit(&self, op: &Projections<'_>) -> bool {
        stacks_suit(op)
            && ((1..=MATVEC_TOKENS).contains(&op.x.rows) || self.token_projections_suit(op))
    }

    /// The dispatch of `op`: of a chosen shape of the matrix-vector kernel, or without one of whichever kernel is fastest.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes do not fit or the kernel does not suit, [`Error::Gpu`] when it does not compile.
    pub fn projections(
        &self,
        op: &Projections<'_>,
        shape: Option<MatvecShape>,
    ) -> Result<Dispatch> {
        if shape.is_none() && self.token_projections_suit(op) {
            return self.token_projections(op, None);
        }
        if op.x.rows > MATVEC_TOKENS {
            let problem = format!("{} tokens; use one product a dispatch", op.x.rows);
            return Err(Error::shape("projections", problem));
        }
        let (placed, y) = self.place_segments(op)?;
        let (tokens, cols) = (op.x.rows, op.weights.shape().cols.0);
        let pairs = op.pairs.and_then(|p| p.chunks().first());
        let mut segments = [Placed::default(); MAX_SEGMENTS];
        for (place, segment) in segments.iter_mut().zip(&placed) {
            *place = *segment;
        }
        let total = op.segments.iter().map(|s| s.rows.len()).sum();
        let layout = op.weights.layout();
        let units = op.weights.units();
        let shape = shape.unwrap_or_else(|| self.shape_for(op.weights, total, tokens));
        let resolved = self.resolve(shape, layout.unit(), units, tokens);
        let pair_units = op.pairs.map_or(0, GpuMatrix::units);
        let ragged = op.weights.ragged() || op.pairs.is_some_and(GpuMatrix::ragged);
        let mut constants = vec![("RAGGED", f64::from(u8::from(ragged)))];
        constants.extend(layout.constants());
        constants.extend(&resolved.constants);
        let name = format!("projections/{}/{}", layout.shader(), self.lanes());
        let pipeline = self.pipeline(&name, &constants)?;
        let parts = layout.unit() / 4;
        // All of x at a time includes the last unit of F16, which may reach past that of F32.
        let chunk = if resolved.chunk == units {
            (units * parts).next_multiple_of(2)
        } else {
            resolved.chunk * parts
        };
        let params = Params {
            cols: u32_of("columns", cols)?,
            units: u32_of("units", units)?,
            pair_units: u32_of("units", pair_units)?,
            tokens: u32_of("tokens", tokens)?,
            x_stride: u32_of("stride", View::stride(cols) / 4)?,
            chunk: u32_of("units", chunk)?,
            count: u32_of("products", op.segments.len())?,
            padding: 0,
            segments,
        };
        let bindings = [op.x.blocks_binding(op.blocks), y];
        let workgroups = op.segments.iter().map(|s| s.rows.len());
        let workgroups = workgroups
            .map(|rows| rows.div_ceil(resolved.block_rows))
            .sum();
        let mut dispatch = self.dispatch(pipeline.clone(), &params, &bindings, workgroups)?;
        for weights in op.weights.chunks() {
            dispatch.groups.push(weights.group(self.gpu(), &pipeline)?);
        }
        dispatch.groups.push(match pairs {
            Some(pairs) => pairs.group_at(self.gpu(), &pipeline, 2)?,
            None => self.gpu().bind(&pipeline, 2, &[self.unused()])?,
        });
        Ok(dispatch)
    }

    /// Where all segments lie, and the range of the results.
    pub(crate) fn place_segments<'a>(
        &self,
        op: &Projections<'a>,
    ) -> Result<(Vec<Placed>, Binding<'a>)> {
        let refused = |problem: String| Error::shape("projections", problem);
        let (tokens, cols) = (op.x.rows, op.weights.shape().cols.0);
        let (true, [weights]) = (stacks_suit(op) && tokens > 0, op.weights.chunks()) else {
            return Err(refused(format!(
                "{tokens} tokens, {} products, stacks in {} and {} parts; use one product a dispatch",
                op.segments.len(),
                op.weights.chunks().len(),
                op.pairs.map_or(0, |p| p.chunks().len())
            )));
        };
        let pairs = op.pairs.and_then(|p| p.chunks().first());
        if op.x.width != cols || op.pairs.is_some_and(|p| p.shape().cols.0 != cols) {
            return Err(refused(format!(
                "{} inputs for a {} stack and one of {} columns",
                op.x.width,
                op.weights.shape(),
                op.pairs.map_or(cols, |p| p.shape().cols.0)
            )));
        }
        let alignment = self.gpu().capabilities().limits.offset_alignment.max(4);
        let starts = op.segments.iter().map(|s| s.y_offset);
        let start = starts.min().unwrap_or(0) / alignment * alignment;
        let mut end = start;
        let mut all = Vec::new();
        let block = block_elements(tokens, cols)? / 4;
        for segment in op.segments {
            let (code, stack, chunk) = match segment.stack {
                Stack::Weights => (0, Some(op.weights), Some(weights)),
                Stack::Pairs => (1, op.pairs, pairs),
            };
            let (rows, have) = (&segment.rows, stack.map_or(0, |s| s.shape().rows.0));
            let count = rows.end.saturating_sub(rows.start);
            let last = segment.y_offset.saturating_add(View::bytes(tokens, count));
            if count == 0
                || rows.end > have
                || segment.x >= op.blocks
                || !segment.y_offset.is_multiple_of(4)
                || last > op.y.size()
            {
                return Err(refused(format!(
                    "rows {} to {} of {have} by input {} of {} to byte {} of {}",
                    rows.start,
                    rows.end,
                    segment.x,
                    op.blocks,
                    segment.y_offset,
                    op.y.size()
                )));
            }
            end = end.max(last);
            all.push(Placed {
                stack: code,
                first_row: chunk.map_or(0, |c| c.base) + u32_of("rows", rows.start)?,
                rows: u32_of("rows", count)?,
                x: u32_of("inputs", segment.x)?
                    .checked_mul(block)
                    .ok_or_else(|| refused("the inputs pass 32 bits".to_owned()))?,
                y: u32_of(
                    "results",
                    usize::try_from((segment.y_offset - start) / 4).unwrap_or(usize::MAX),
                )?,
                y_stride: u32_of("stride", View::stride(count))?,
                function_code: segment.function.code(),
                padding: 0,
            });
        }
        let y = Binding {
            buffer: op.y,
            offset: start,
            size: Some(end - start),
        };
        Ok((all, y))
    }
}

/// Whether both stacks are in one part, and there is room for all products.
pub(crate) fn stacks_suit(op: &Projections<'_>) -> bool {
    op.weights.is_whole()
        && op
            .pairs
            .is_none_or(|p| p.is_whole() && p.format() == Format::F16)
        && (1..=MAX_SEGMENTS).contains(&op.segments.len())
}
