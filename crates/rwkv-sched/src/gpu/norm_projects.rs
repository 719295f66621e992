//! One token's norm, shift and products in one dispatch: what it reads, whether it suits, and its dispatches.

use super::{plan::Context, resident::is_pair, resolve::half_index, resolve_group::mistake};
use crate::{Op, Result, Weight, fuse::Group};
use rwkv_gpu::Dispatch;
use rwkv_kernels::{
    GpuMatrix,
    ops::{MAX_SEGMENTS, MixedProduct, NormProject, Stack},
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

/// Whether the kernel can do `group`, whose parts suit on their own.
pub(super) fn suits(context: &Context<'_>, group: &Group) -> bool {
    group.products().count() <= MAX_SEGMENTS
        && Operands::of(context, group)
            .is_some_and(|of| context.kernels.norm_project_suits(of.weights, of.pairs))
}

impl super::resolve::Resolver<'_> {
    pub(super) fn norm_projects(&self, group: &Group, out: &mut Vec<Dispatch>) -> Result<()> {
        let graph = self.context.model.graph();
        let mut nodes = group.nodes(graph);
        let (Some(norm), Some(shift)) = (nodes.next(), nodes.next()) else {
            return Err(mistake());
        };
        let (
            Op::Norm { epsilon, .. },
            Op::TokenShift {
                layer,
                half,
                weighs,
                ..
            },
        ) = (&norm.op, &shift.op)
        else {
            return Err(mistake());
        };
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
        let (Some(x), Some(normed)) = (norm.inputs.first(), norm.outputs.first()) else {
            return Err(mistake());
        };
        let shifted = self.activations.view(*normed)?;
        let vectors = group.vectors(graph).unwrap_or_default();
        for page in self.context.states.pages() {
            let op = NormProject {
                batch: self.batch,
                x: self.activations.view(*x)?,
                vectors: self.vectors(&vectors)?,
                epsilon: *epsilon,
                weighs: *weighs,
                state: page.shift(*layer),
                page: page.page(),
                which: half_index(*half),
                weights: operands.weights,
                pairs: operands.pairs,
                products: &products,
                shifted_offset: shifted.offset,
                y: shifted.buffer,
            };
            out.push(self.context.kernels.norm_project(&op, None)?);
        }
        Ok(())
    }
}
