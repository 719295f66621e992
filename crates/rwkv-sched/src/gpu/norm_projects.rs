//! One token's norm, shift and products in one dispatch: what it reads, whether it suits, and its dispatches.

use super::{plan::Context, resident::is_pair, resolve::half_index, resolve_group::mistake};
use crate::{
    Graph, Op, Result, ShiftHalf, ValueId, Weight,
    fuse::{Group, Kernel},
};
use rwkv_gpu::Dispatch;
use rwkv_kernels::{
    GpuMatrix,
    ops::{MAX_SEGMENTS, MixedProduct, NormProject, Stack, Weighs},
};
use std::ops::Range;

/// The matrices of a group: the stack of the large ones, that of the first halves of pairs, and where each product's rows
/// are.
struct Operands<'a> {
    weights: &'a GpuMatrix,
    pairs: Option<&'a GpuMatrix>,
    rows: Vec<(Stack, Range<usize>)>,
}

impl<'a> Operands<'a> {
    fn of(context: &'a Context<'_>, group: &Group) -> Option<Self> {
        let alone = group.products().count() == 1;
        let place = |weight: Weight| {
            if alone {
                let matrix = context.weights.matrix(weight)?;
                return Some((matrix, 0..matrix.shape().rows.0));
            }
            let stack = context.weights.stack(weight)?;
            Some((&stack.matrix, stack.rows(weight)?))
        };
        let (mut weights, mut pairs, mut rows) = (None, None, Vec::new());
        for product in group.products() {
            let (matrix, range) = place(product.weight)?;
            if is_pair(product.weight) {
                pairs = Some(matrix);
                rows.push((Stack::Pairs, range));
            } else {
                weights = Some(matrix);
                rows.push((Stack::Weights, range));
            }
        }
        Some(Self {
            weights: weights?,
            pairs,
            rows,
        })
    }
}

/// Whether the kernel can do `group`, whose parts suit on their own, and set a row to zero besides if the group does.
pub(super) fn suits(context: &Context<'_>, group: &Group) -> bool {
    let clears = matches!(group.kernel, Kernel::NormProjects { clears: Some(_) });
    let suits = |of: Operands<'_>| {
        let kernels = context.kernels;
        kernels.norm_project_suits(of.weights, of.pairs, clears)
    };
    group.products().count() <= MAX_SEGMENTS && Operands::of(context, group).is_some_and(suits)
}

/// The norm at the beginning of a group, and the shift after it.
pub(super) struct NormOf {
    pub(super) x: ValueId,
    pub(super) normed: ValueId,
    pub(super) epsilon: f32,
}

pub(super) struct ShiftOf<'g> {
    pub(super) layer: usize,
    pub(super) half: ShiftHalf,
    pub(super) weighs: Weighs,
    /// The mixes.
    pub(super) outputs: &'g [ValueId],
}

pub(super) fn normed_and_shifted<'g>(
    group: &Group,
    graph: &'g Graph,
) -> Result<(NormOf, ShiftOf<'g>)> {
    let mut nodes = group.nodes(graph);
    let (Some(norm), Some(shift)) = (nodes.next(), nodes.next()) else {
        return Err(mistake());
    };
    match (&norm.op, &shift.op, &norm.inputs[..], &norm.outputs[..]) {
        (
            Op::Norm { epsilon, .. },
            Op::TokenShift {
                layer,
                half,
                weighs,
                ..
            },
            [x],
            [normed],
        ) => Ok((
            NormOf {
                x: *x,
                normed: *normed,
                epsilon: *epsilon,
            },
            ShiftOf {
                layer: *layer,
                half: *half,
                weighs: *weighs,
                outputs: &shift.outputs,
            },
        )),
        _ => Err(mistake()),
    }
}

impl super::resolve::Resolver<'_> {
    pub(super) fn norm_projects(
        &self,
        group: &Group,
        clears: Option<ValueId>,
        out: &mut Vec<Dispatch>,
    ) -> Result<()> {
        let graph = self.context.model.graph();
        let (norm, shift) = normed_and_shifted(group, graph)?;
        let operands = Operands::of(self.context, group).ok_or_else(mistake)?;
        let mut products = Vec::new();
        for (product, (stack, rows)) in group.products().zip(operands.rows) {
            let mix = shift.outputs.iter().position(|mixed| *mixed == product.x);
            products.push(MixedProduct {
                stack,
                rows,
                mix: mix.ok_or_else(mistake)?,
                function: product.function,
                y_offset: self.activations.view(product.y)?.offset,
            });
        }
        let shifted = self.activations.view(norm.normed)?;
        let zeros = clears.map(|id| self.activations.view(id)).transpose()?;
        let vectors = group.vectors(graph).unwrap_or_default();
        for page in self.context.states.pages() {
            let op = NormProject {
                batch: self.batch,
                x: self.activations.view(norm.x)?,
                vectors: self.vectors(&vectors)?,
                epsilon: norm.epsilon,
                weighs: shift.weighs,
                state: page.shift(shift.layer),
                page: page.page(),
                which: half_index(shift.half),
                weights: operands.weights,
                pairs: operands.pairs,
                products: &products,
                shifted_offset: shifted.offset,
                zeros,
                y: shifted.buffer,
            };
            out.push(self.context.kernels.norm_project(&op, None)?);
        }
        Ok(())
    }
}
