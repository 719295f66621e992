//! Several products of one stack of F16 matrices in one dispatch with cooperative matrices, each with its own input,
//! function and place: `y_i = f_i(W_i x_i)`, of inputs that were rounded to f16 (`wgsl/coop/stack.wgsl`). Each is
//! [`matmul`](super::matmul()) and a function, within what [`Kernels::coop_linear`] says of errors.

use super::{
    coop_product::{CoopOperands, SUM_THREADS, WORKGROUPS, kernel_name, slice_of},
    coop_tile::{EIGHTS, LARGE, LARGE_OF_FOUR, MEDIUM, SMALL, TINY, Tile},
};
use crate::{
    Error, Format, GpuMatrix, Kernels, Result, View,
    kernels::{MOST_PARTIAL_SUMS, u32_of},
    ops::{CoopShape, HalfRows, MAX_SEGMENTS, Segment, Stack, linear::few_tokens},
    tuning::{Problem, Tunable},
};
use bytemuck::{NoUninit, Pod, Zeroable};
use rwkv_gpu::{Binding, Buffer, Dispatch};
use rwkv_mem::Shape;

/// Products of inputs in f16 on the GPU.
pub struct HalfProjections<'a> {
    /// Tokens × columns: the first of `blocks` inputs, [`HalfRows::bytes`] apart.
    pub x: &'a HalfRows,
    /// How many.
    pub blocks: usize,
    /// F16 matrices of the same columns below each other, in one part.
    pub weights: &'a GpuMatrix,
    /// Up to [`MAX_SEGMENTS`], all of `weights`; results begin at multiples of 16 bytes.
    pub segments: &'a [Segment],
    /// Where the results go: not the buffer of x.
    pub y: &'a Buffer,
}

/// For up to so many tokens a tile, and how many workgroups of it keep a core busy.
const DEFAULTS: [(usize, &Tile, usize); 5] = [
    (16, &TINY, 4),
    (32, &SMALL, 2),
    (64, &MEDIUM, 4),
    (1023, &LARGE, 1),
    (usize::MAX, &LARGE_OF_FOUR, 1),
];

/// Columns that a slice has at least.
const SLICE: usize = 256;

/// Columns from which on half of a tile's time is more than a further dispatch costs, and adding up slices.
const WORTH_A_DISPATCH: usize = 2048;

/// As in `wgsl/coop/segments.wgsl`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct SegmentParams {
    first_tile: u32,
    first_row: u32,
    rows: u32,
    x: u32,
    y: u32,
    y_stride: u32,
    function_code: u32,
    padding: u32,
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct Params {
    tokens: u32,
    cols: u32,
    chunk: u32,
    x_stride: u32,
    count: u32,
    tile_rows: u32,
    pitch: u32,
    slice_tokens: u32,
    slices: u32,
    stack_rows: u32,
    padding: [u32; 2],
    segments: [SegmentParams; MAX_SEGMENTS],
}

impl HalfProjections<'_> {
    /// Tiles of rows.
    fn tiles(&self, tile: &Tile) -> usize {
        let rows = self.segments.iter().map(|s| s.rows.len());
        rows.map(|rows| rows.div_ceil(tile.rows)).sum()
    }

    fn operands(&self) -> CoopOperands {
        CoopOperands {
            source: "f16",
            tokens: self.x.rows(),
            rows: self.segments.iter().map(|s| s.rows.len()).sum(),
            cols: self.x.width(),
            part: 0,
        }
    }
}

/// As [`Kernels::half_projections_apart`].
fn are_apart(stack: Shape, tokens: usize, few: usize) -> bool {
    let Some((_, tile, busy)) = DEFAULTS.iter().find(|(most, ..)| tokens <= *most) else {
        return false;
    };
    let tiles = |rows: usize| rows.div_ceil(tile.rows) * tokens.div_ceil(tile.tokens);
    let turns = |rows: usize| tiles(rows).div_ceil(busy * WORKGROUPS);
    stack.cols.0 >= WORTH_A_DISPATCH
        && 2 * tiles(few) <= busy * WORKGROUPS
        && turns(stack.rows.0.saturating_sub(few)) < turns(stack.rows.0)
}

impl Kernels {
    /// Whether rounding the inputs of `tokens` tokens to f16 for [`half_projections`](Self::half_projections) by segments of
    /// `weights` is faster than other kernels, and possible.
    pub fn half_projections_round(&self, weights: &GpuMatrix, tokens: usize) -> bool {
        let of = CoopOperands {
            source: "f16",
            tokens,
            rows: weights.shape().rows.0,
            cols: weights.shape().cols.0,
            part: 0,
        };
        tokens > few_tokens(weights)
            && weights.format() == Format::F16
            && weights.is_whole()
            && !self.shapes_of(&of).is_empty()
    }

    /// Whether the last `few` rows of `weights` are better multiplied in a dispatch of their own, which slices of columns share:
    /// where the GPU would be busy with little but their tiles at the end, in the default shapes. For 512 tokens the 7.2B's receptance, key and
    /// value are 2.9 times as many tiles as an H200 runs at once, and with the pairs' first halves 3.1 times.
    pub fn half_projections_apart(&self, weights: &GpuMatrix, tokens: usize, few: usize) -> bool {
        are_apart(weights.shape(), tokens, few)
    }

    /// The shapes that the adapter can run for `op`.
    pub fn half_projection_shapes(&self, op: &HalfProjections<'_>) -> Vec<CoopShape> {
        let fits = |shape: &CoopShape| {
            let tile = shape.tile.spec();
            let tokens = op.x.rows().next_multiple_of(tile.tokens);
            let sums = shape.slices * tokens * op.tiles(tile) * tile.rows;
            shape.slices == 1 || sums <= MOST_PARTIAL_SUMS
        };
        let shapes = self.shapes_of(&op.operands()).into_iter();
        shapes.filter(fits).collect()
    }

    /// The dispatches of `op`, in a chosen shape or the default one: one, or two where slices are added up apart.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes do not fit or the adapter cannot run the shape, [`Error::Gpu`] when a kernel does
    /// not compile.
    pub fn half_projections(
        &self,
        op: &HalfProjections<'_>,
        shape: Option<CoopShape>,
    ) -> Result<Vec<Dispatch>> {
        let refused = |problem: String| Error::shape("projections in f16", problem);
        let shapes = self.half_projection_shapes(op);
        let shape = shape.or_else(|| self.projection_shape(op, &shapes));
        let (Some(shape), [weights]) = (
            shape.filter(|shape| shapes.contains(shape)),
            op.weights.chunks(),
        ) else {
            return Err(refused(format!(
                "{} tokens by a {} stack of {} in {} parts, {} products; use one product a dispatch",
                op.x.rows(),
                op.weights.shape(),
                op.weights.format(),
                op.weights.chunks().len(),
                op.segments.len()
            )));
        };
        let tile = shape.tile.spec();
        let (segments, y) = self.place_half_segments(op, tile, weights.base)?;
        let (tokens, cols) = (op.x.rows(), op.x.width());
        let tiles = op.tiles(tile);
        let base = weights.base;
        let stack_rows = u32_of("rows", op.weights.shape().rows.0)?;
        // Otherwise tiles are moved up where the stack ends: to clip them is slower, since each row then has an address of
        // its own.
        let clipped = !cols.is_multiple_of(tile.depth)
            || op.weights.shape().rows.0 < tile.rows
            || !stack_rows.is_multiple_of(4)
            || op.segments.iter().any(|s| !s.rows.start.is_multiple_of(4));
        let (slice, slices) = slice_of(cols, tile, shape.slices);
        let stride = HalfRows::stride(cols) / 4;
        let rounded = tokens.next_multiple_of(tile.tokens);
        let params = Params {
            tokens: u32_of("tokens", tokens)?,
            cols: u32_of("columns", cols)?,
            chunk: u32_of("columns", slice)?,
            x_stride: u32_of("stride", stride)?,
            count: u32_of("products", op.segments.len())?,
            tile_rows: u32_of("rows", tile.rows)?,
            pitch: u32_of("rows", tiles * tile.rows)?,
            slice_tokens: u32_of("tokens", rounded)?,
            slices: u32_of("slices", slices)?,
            stack_rows: if clipped {
                u32::MAX
            } else {
                base.saturating_add(stack_rows)
            },
            padding: [0; 2],
            segments,
        };
        let mut constants = vec![
            ("CLIPPED", f64::from(u8::from(clipped))),
            ("X_STRIDE", stride as f64),
            ("UNITS", op.weights.units() as f64),
        ];
        constants.extend(tile.turns(cols, slice));
        let end = if slices == 1 { "finish" } else { "sums" };
        let pipeline = self.pipeline(&kernel_name("f16", tile, end, "stack"), &constants)?;
        let x = op.x.blocks_binding(op.blocks);
        let sums = match slices {
            1 => None,
            _ => Some(self.partials(slices * rounded * tiles * tile.rows)?),
        };
        let bindings = [x, sums.unwrap_or(y)];
        let mut product = self.dispatch(pipeline.clone(), &params, &bindings, 1)?;
        product.grid = self.coop_grid(tokens, tiles, tile, slices)?;
        product.groups.push(weights.group(self.gpu(), &pipeline)?);
        let mut dispatches = vec![product];
        if let Some(sums) = sums {
            let pipeline = self.pipeline("segment_sum", &[])?;
            let workgroups = (tokens * tiles * tile.rows / 4).div_ceil(SUM_THREADS);
            dispatches.push(self.dispatch(pipeline, &params, &[x, y, sums], workgroups)?);
        }
        Ok(dispatches)
    }

    fn projection_shape(
        &self,
        op: &HalfProjections<'_>,
        shapes: &[CoopShape],
    ) -> Option<CoopShape> {
        let of = op.operands();
        let tuned = self.coop_choice(Problem {
            kernel: Tunable::HalfProjections,
            format: Format::F16.to_string(),
            rows: of.rows,
            cols: of.cols,
            tokens: of.tokens.next_power_of_two(),
        });
        if let Some(tuned) = tuned.filter(|tuned| shapes.contains(tuned)) {
            return Some(tuned);
        }
        let usual = DEFAULTS.iter().find(|(most, ..)| of.tokens <= *most)?;
        // With 32 KiB of workgroup memory there are no larger tiles, with matrices of 8 only one.
        let tried = [(usual.1, usual.2), (&MEDIUM, 4), (&EIGHTS, 1)];
        let (tile, busy) = tried
            .into_iter()
            .find(|(tile, _)| shapes.iter().any(|shape| shape.tile.spec() == *tile))?;
        let workgroups = op.tiles(tile) * of.tokens.div_ceil(tile.tokens);
        let fit = |shape: &&CoopShape| {
            let n = shape.slices;
            shape.tile.spec() == tile
                && (n == 1 || n * workgroups <= busy * WORKGROUPS && n * SLICE <= of.cols)
        };
        let fitting = shapes.iter().filter(fit);
        fitting.max_by_key(|shape| shape.slices).copied()
    }

    /// Where all segments lie, the unused ones empty, and the range of the results.
    fn place_half_segments<'a>(
        &self,
        op: &HalfProjections<'a>,
        tile: &Tile,
        base: u32,
    ) -> Result<([SegmentParams; MAX_SEGMENTS], Binding<'a>)> {
        let refused = |problem: String| Error::shape("projections in f16", problem);
        let (tokens, cols, have) = (op.x.rows(), op.x.width(), op.weights.shape());
        let block = HalfRows::bytes(tokens, cols);
        let fits = (op
            .x
            .offset()
            .saturating_add(block.saturating_mul(op.blocks as u64)))
            <= op.x.buffer().size()
            && cols == have.cols.0
            && op.weights.format() == Format::F16
            && (1..=MAX_SEGMENTS).contains(&op.segments.len());
        if !fits {
            return Err(refused(format!(
                "{} products of {} blocks of {tokens}×{cols} by a {have} stack of {}",
                op.segments.len(),
                op.blocks,
                op.weights.format()
            )));
        }
        let alignment = self.gpu().capabilities().limits.offset_alignment.max(16);
        let starts = op.segments.iter().map(|s| s.y_offset);
        let start = starts.min().unwrap_or(0) / alignment * alignment;
        let (mut end, mut tiles) = (start, 0);
        let mut all = [SegmentParams::zeroed(); MAX_SEGMENTS];
        for (place, segment) in all.iter_mut().zip(op.segments) {
            let rows = &segment.rows;
            let count = rows.end.saturating_sub(rows.start);
            let last = segment.y_offset.saturating_add(View::bytes(tokens, count));
            if count == 0
                || segment.stack != Stack::Weights
                || rows.end > have.rows.0
                || segment.x >= op.blocks
                || !segment.y_offset.is_multiple_of(16)
                || last > op.y.size()
            {
                return Err(refused(format!(
                    "rows {} to {} of {} by input {} of {} to byte {} of {}",
                    rows.start,
                    rows.end,
                    have.rows.0,
                    segment.x,
                    op.blocks,
                    segment.y_offset,
                    op.y.size()
                )));
            }
            end = end.max(last);
            let words = |bytes: u64, each: u64| usize::try_from(bytes / each).unwrap_or(usize::MAX);
            *place = SegmentParams {
                first_tile: u32_of("tiles", tiles)?,
                first_row: base.saturating_add(u32_of("rows", rows.start)?),
                rows: u32_of("rows", count)?,
                x: u32_of("inputs", words(block * segment.x as u64, 8))?,
                y: u32_of("results", words(segment.y_offset - start, 4))?,
                y_stride: u32_of("stride", View::stride(count))?,
                function_code: segment.function.code(),
                padding: 0,
            };
            tiles += count.div_ceil(tile.rows);
        }
        let y = Binding {
            buffer: op.y,
            offset: start,
            size: Some(end - start),
        };
        Ok((all, y))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rwkv_mem::{Cols, Rows};

    /// Only where a turn of all cores is saved, few tiles are alone, and a turn takes longer than another dispatch.
    #[test]
    fn apart() {
        for (tokens, rows, cols, few, want) in [
            (512, 13120, 4096, 832, true),
            (1024, 13120, 4096, 832, true),
            (256, 13120, 4096, 832, false),
            (2048, 13120, 4096, 832, false),
            (512, 13120, 1024, 832, false),
            (512, 6656, 2048, 512, false),
            (512, 13120, 4096, 4096, false),
        ] {
            let stack = Shape {
                rows: Rows(rows),
                cols: Cols(cols),
            };
            assert_eq!(
                are_apart(stack, tokens, few),
                want,
                "{tokens}, {stack}, {few}"
            );
        }
    }
}
