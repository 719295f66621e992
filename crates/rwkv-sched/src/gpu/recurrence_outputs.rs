//! One token's recurrence of version 7 and the output projection in one dispatch: whether it suits, and its dispatches.

use super::{plan::Context, resolve_group::mistake};
use crate::{
    Result, ValueId,
    fuse::{Group, Kernel, Recurrence7},
};
use rwkv_gpu::Dispatch;
use rwkv_kernels::{GpuMatrix, ops::Wkv7Output};

/// The matrix of the output projection.
fn output<'a>(context: &'a Context<'_>, group: &Group) -> Option<&'a GpuMatrix> {
    let product = group.products().last()?;
    context.weights.matrix(product.weight)
}

/// Whether the kernel can do `group`, whose parts suit on their own.
pub(super) fn suits(context: &Context<'_>, group: &Group) -> bool {
    let Kernel::RecurrenceOutput7 { what, .. } = &group.kernel else {
        return false;
    };
    let up = group.packed_pairs();
    let up = up.and_then(|ups| context.weights.base.pairs(&ups));
    up.zip(output(context, group)).is_some_and(|(up, output)| {
        context
            .kernels
            .wkv7_output_suits(output, up, what.head_size)
    })
}

impl super::resolve::Resolver<'_> {
    pub(super) fn recurrence_output7(
        &self,
        group: &Group,
        what: &Recurrence7,
        x: ValueId,
        out: &mut Vec<Dispatch>,
    ) -> Result<()> {
        let hidden = self.hidden7(what)?;
        let output = output(self.context, group).ok_or_else(mistake)?;
        for page in self.context.states.pages() {
            let x = self.activations.view(x)?;
            let time_mix = self.time_mix7(group, what, &hidden, page, x)?;
            let op = Wkv7Output { time_mix, output };
            out.push(self.context.kernels.wkv7_output(&op, None)?);
        }
        Ok(())
    }
}
