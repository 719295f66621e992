//! Products of 2 to 16 tokens with each weight read once (`wgsl/stream_tokens.wgsl`): [`Linear`] and [`Projections`] where
//! the kernel suits.

use super::{
    linear::check_linear,
    stream_tokens::{KERNEL, TokenProduct, TokenShape, TokenStream, pairs_axis},
};
use crate::{
    Error, GpuMatrix, GpuVector, Kernels, Result, View,
    gpu_weights::Chunk,
    kernels::u32_of,
    ops::{
        Linear, MAX_SEGMENTS, Projections, Stack,
        projections::{Placed, stacks_suit},
    },
};
use bytemuck::{NoUninit, Pod, Zeroable};
use rwkv_gpu::{Binding, Dispatch};

#[derive(Clone, Copy, Default, Pod, Zeroable)]
#[repr(C)]
struct SegmentParams {
    stack: u32,
    first_row: u32,
    rows: u32,
    x: u32,
    y: u32,
    y_stride: u32,
    function_code: u32,
    first_group: u32,
    groups: u32,
    before: u32,
    padding: [u32; 2],
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct Params {
    tokens: u32,
    x_stride: u32,
    count: u32,
    rows: u32,
    groups: u32,
    padding: [u32; 3],
    segments: [SegmentParams; MAX_SEGMENTS],
}

/// A dispatch: its segments lack only how workgroups share them.
struct Launch<'a> {
    product: TokenProduct<'a>,
    stream: TokenStream,
    weights: &'a Chunk,
    pairs: Option<(&'a GpuMatrix, &'a Chunk)>,
    x: Binding<'a>,
    y: Binding<'a>,
    /// Bias or residual, if it is no product with pairs.
    added: Option<Binding<'a>>,
    segments: Vec<SegmentParams>,
}

impl Kernels {
    /// Whether [`linear`](Self::linear) does `op` by [`token_linear`](Self::token_linear): not with a bias and a residual
    /// at once, and what [`stream_tokens_suit`](Self::stream_tokens_suit) says.
    pub fn token_linear_suits(&self, op: &Linear<'_>) -> bool {
        !adds_both(op) && self.stream_tokens_suit(op.weight, op.x.rows)
    }

    /// The dispatches of `op` for 2 to 16 tokens, of a chosen shape or the default one: one a part of the matrix. Its twin
    /// is [`matmul`](super::matmul()) of x as [`stream_tokens_suit`](Self::stream_tokens_suit) says.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes do not fit or the kernel does not suit, [`Error::Gpu`] when it does not compile.
    pub fn token_linear(
        &self,
        op: &Linear<'_>,
        shape: Option<TokenShape>,
    ) -> Result<Vec<Dispatch>> {
        check_linear(op)?;
        let (matrix, tokens) = (op.weight.shape(), op.x.rows);
        let product = TokenProduct {
            weight: op.weight,
            pairs: false,
            rows: matrix.rows.0,
            tokens,
        };
        let stream = self.token_stream(&product, shape);
        let (Some(stream), false) = (stream, adds_both(op)) else {
            return Err(Error::shape(
                "product of several tokens",
                format!(
                    "{tokens} tokens by a {matrix} matrix of {}; use `linear`",
                    op.weight.format()
                ),
            ));
        };
        let mut dispatches = Vec::new();
        for chunk in op.weight.chunks() {
            let added = op.bias.map(GpuVector::binding);
            dispatches.push(self.launch(
                &Launch {
                    product,
                    stream: stream.clone(),
                    weights: chunk,
                    pairs: None,
                    x: op.x.binding(),
                    y: op.y.binding(),
                    added: added.or(op.residual.as_ref().map(View::binding)),
                    segments: vec![SegmentParams {
                        first_row: chunk.base,
                        rows: chunk.rows,
                        y: chunk.first_row,
                        y_stride: u32_of("stride", View::stride(matrix.rows.0))?,
                        function_code: op.function.code(),
                        ..SegmentParams::default()
                    }],
                },
                op.x.width,
                [
                    ("HAS_BIAS", op.bias.is_some()),
                    ("HAS_RESIDUAL", op.residual.is_some()),
                ],
            )?);
        }
        Ok(dispatches)
    }

    /// Whether [`projections`](Self::projections) does `op` by [`token_projections`](Self::token_projections).
    pub fn token_projections_suit(&self, op: &Projections<'_>) -> bool {
        placeable(op) && stacks_suit(op) && self.tokens_suit(&projected(op))
    }

    /// The dispatch of `op` for 2 to 8 tokens, or 16 without pairs, of a chosen shape or the default one.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes do not fit or the kernel does not suit, [`Error::Gpu`] when it does not compile.
    pub fn token_projections(
        &self,
        op: &Projections<'_>,
        shape: Option<TokenShape>,
    ) -> Result<Dispatch> {
        let (placed, y) = self.place_segments(op)?;
        let product = projected(op);
        let stream = self.token_stream(&product, shape);
        let (Some(stream), true, [weights]) = (stream, placeable(op), op.weights.chunks()) else {
            return Err(Error::shape(
                "projections of several tokens",
                format!(
                    "{} tokens by a {} stack of {}; use `projections`",
                    op.x.rows,
                    op.weights.shape(),
                    op.weights.format()
                ),
            ));
        };
        let segment = |of: &Placed| SegmentParams {
            stack: of.stack,
            first_row: of.first_row,
            rows: of.rows,
            x: of.x,
            y: of.y,
            y_stride: of.y_stride,
            function_code: of.function_code,
            ..SegmentParams::default()
        };
        let pairs = op.pairs.filter(|_| product.pairs);
        let pairs = pairs.and_then(|p| Some((p, p.chunks().first()?)));
        self.launch(
            &Launch {
                product,
                stream,
                weights,
                pairs,
                x: op.x.blocks_binding(op.blocks),
                y,
                added: None,
                segments: placed.iter().map(segment).collect(),
            },
            op.x.width,
            [("HAS_BIAS", false), ("HAS_RESIDUAL", false)],
        )
    }

    fn launch(
        &self,
        launch: &Launch<'_>,
        cols: usize,
        adds: [(&'static str, bool); 2],
    ) -> Result<Dispatch> {
        let Launch {
            product, stream, ..
        } = launch;
        let mut segments = [SegmentParams::default(); MAX_SEGMENTS];
        for (place, segment) in segments.iter_mut().zip(&launch.segments) {
            *place = *segment;
        }
        let groups = share_out(launch, &mut segments)?;
        let mut constants = stream.constants.clone();
        if !product.pairs {
            constants.extend(adds.map(|(name, has)| (name, f64::from(u8::from(has)))));
        }
        let axis = pairs_axis(product.pairs);
        let pipeline = self.stream_pipeline(KERNEL, product.weight, axis, &constants)?;
        let params = Params {
            tokens: u32_of("tokens", product.tokens)?,
            x_stride: u32_of("stride", View::stride(cols) / 4)?,
            count: u32_of("products", launch.segments.len())?,
            rows: u32_of("rows", product.rows)?,
            groups: u32_of("workgroups", groups)?,
            padding: [0; 3],
            segments,
        };
        let partials = if stream.slices > 1 {
            self.partials(stream.slices * product.tokens * product.rows)?
        } else {
            self.unused_output()
        };
        let mut bindings = vec![launch.x, launch.y, partials];
        if !product.pairs {
            bindings.push(launch.added.unwrap_or(self.unused()));
        }
        let workgroups = groups * stream.slices;
        let mut dispatch = self.dispatch(pipeline.clone(), &params, &bindings, workgroups)?;
        let weights = launch.weights.group(self.gpu(), &pipeline)?;
        dispatch.groups.push(weights);
        if let Some((_, pairs)) = launch.pairs {
            let group = pairs.group_at(self.gpu(), &pipeline, 2)?;
            dispatch.groups.push(group);
        }
        Ok(dispatch)
    }
}

/// There is room for one of them (`wgsl/stream_tokens.wgsl`).
fn adds_both(op: &Linear<'_>) -> bool {
    op.bias.is_some() && op.residual.is_some()
}

fn placeable(op: &Projections<'_>) -> bool {
    op.pairs.is_none_or(|pairs| !pairs.ragged())
}

/// What the kernel's shape depends on.
fn projected<'a>(op: &Projections<'a>) -> TokenProduct<'a> {
    let rows = op.segments.iter().map(|s| s.rows.len());
    TokenProduct {
        weight: op.weights,
        pairs: op.segments.iter().any(|s| s.stack == Stack::Pairs),
        rows: rows.sum(),
        tokens: op.x.rows,
    }
}

/// Gives each segment its groups of workgroups, so that each of them has about the same to read and none waits for a
/// place; the number of all.
fn share_out(launch: &Launch<'_>, segments: &mut [SegmentParams; MAX_SEGMENTS]) -> Result<usize> {
    let cols = launch.product.weight.shape().cols.0;
    let row_bytes = |matrix: &GpuMatrix| matrix.layout().row_bytes(cols).iter().sum::<usize>();
    let weight_row = row_bytes(launch.product.weight);
    let pair_row = launch.pairs.map_or(weight_row, |(p, _)| row_bytes(p));
    let block = launch.stream.block_rows;
    let count = |turns: usize, segment: &SegmentParams| {
        let turns = if segment.stack == 0 {
            turns
        } else {
            (turns * weight_row / pair_row.max(1)).max(1)
        };
        (segment.rows as usize).div_ceil(turns * block)
    };
    let all = |turns: usize| -> usize { launch.segments.iter().map(|s| count(turns, s)).sum() };
    let blocks = all(1);
    // Products of few rows may never fit, and then wait for each other.
    let turns = (1..=blocks)
        .find(|turns| all(*turns) <= launch.stream.groups)
        .unwrap_or(blocks.div_ceil(launch.stream.groups).max(1));
    let (mut first, mut before) = (0, 0);
    for (place, segment) in segments.iter_mut().zip(&launch.segments) {
        let groups = count(turns, segment);
        place.first_group = u32_of("workgroups", first)?;
        place.groups = u32_of("workgroups", groups)?;
        place.before = before;
        first += groups;
        before += segment.rows;
    }
    Ok(first)
}
