//! One token's channel mix in one dispatch: whether it suits, and its dispatches.

use super::{
    norm_projects::normed_and_shifted, plan::Context, resolve::half_index, resolve_group::mistake,
};
use crate::{
    Result, ValueId,
    fuse::{Group, LinearStep},
};
use rwkv_gpu::Dispatch;
use rwkv_kernels::{
    GpuMatrix,
    ops::{ChannelMix, ChannelValue},
};

/// The key and the value of a group.
fn products(group: &Group) -> Option<(&LinearStep, &LinearStep)> {
    let mut products = group.products();
    Some((products.next()?, products.next()?))
}

/// Their matrices.
fn operands<'a>(
    context: &'a Context<'_>,
    group: &Group,
) -> Option<(&'a GpuMatrix, ChannelValue<'a>)> {
    let (key, value) = products(group)?;
    let weights = &context.weights;
    let columns = weights.columns(value.weight).map(ChannelValue::Columns);
    let rows = || weights.matrix(value.weight).map(ChannelValue::Rows);
    Some((weights.matrix(key.weight)?, columns.or_else(rows)?))
}

/// Whether the kernel can do `group`.
pub(super) fn suits(context: &Context<'_>, group: &Group) -> bool {
    operands(context, group)
        .is_some_and(|(key, value)| context.kernels.channel_mix_suits(key, value))
}

impl super::resolve::Resolver<'_> {
    pub(super) fn channel_mix(
        &self,
        group: &Group,
        y: ValueId,
        out: &mut Vec<Dispatch>,
    ) -> Result<()> {
        let graph = self.context.model.graph();
        let (norm, shift) = normed_and_shifted(group, graph)?;
        let (step, _) = products(group).ok_or_else(mistake)?;
        // Not always what the norm's node reads: a sum may lie where one of its terms lay.
        let x = *group.inputs.first().ok_or_else(mistake)?;
        let (key, value) = operands(self.context, group).ok_or_else(mistake)?;
        let vectors = group.vectors(graph).unwrap_or_default();
        for page in self.context.states.pages() {
            let op = ChannelMix {
                batch: self.batch,
                x: self.activations.view(x)?,
                vectors: self.vectors(&vectors)?,
                epsilon: norm.epsilon,
                weighs: shift.weighs,
                state: page.shift(shift.layer),
                page: page.page(),
                which: half_index(shift.half),
                key,
                function: step.function,
                value,
                y: self.activations.view(y)?,
            };
            out.push(self.context.kernels.channel_mix(&op, None)?);
        }
        Ok(())
    }
}
