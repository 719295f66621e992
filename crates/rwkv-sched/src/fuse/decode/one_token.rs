//! What one token's step joins further: norm and shift with the products of the mixes. The recurrence, or the product
//! that follows, then stores the normed row as the state.

use super::{Group, Kernel};
use crate::{
    Graph, Op, ValueId,
    fuse::{Step, StoredShift},
};

/// Joins groups of `steps` where `suits` says that the kernel can do them.
pub(crate) fn join_norms(
    graph: &Graph,
    steps: Vec<Step>,
    suits: &dyn Fn(&Group) -> bool,
) -> Vec<Step> {
    let mut steps: Vec<Option<Step>> = steps.into_iter().map(Some).collect();
    for index in 0..steps.len() {
        let Some(Step::Group(group)) = &steps[index] else {
            continue;
        };
        match group.kernel {
            Kernel::NormProject => {
                let joined = Group {
                    kernel: Kernel::NormProjects,
                    ..(**group).clone()
                };
                if suits(&joined) {
                    steps[index] = Some(Step::Group(Box::new(joined)));
                }
            }
            Kernel::NormShift => {
                let Some(found) = time_mix(graph, &steps, group) else {
                    continue;
                };
                if suits(&found.joined)
                    && let Some(Step::Group(recurrence)) = &mut steps[found.recurrence]
                    && let Kernel::Recurrence7(what) = &mut recurrence.kernel
                {
                    what.stores = Some(found.stores);
                    recurrence.inputs.push(found.stores.x);
                    steps[found.products] = Some(Step::Group(Box::new(found.joined)));
                    steps[index] = None;
                }
            }
            _ => {}
        }
    }
    steps.into_iter().flatten().collect()
}

/// A norm and shift, the products of its mixes, and version 7's recurrence.
struct TimeMix {
    joined: Group,
    products: usize,
    recurrence: usize,
    stores: StoredShift,
}

fn time_mix(graph: &Graph, steps: &[Option<Step>], shift: &Group) -> Option<TimeMix> {
    let group = |step: &Option<Step>| match step {
        Some(Step::Group(group)) => Some(group.clone()),
        _ => None,
    };
    let mut nodes = shift.nodes(graph);
    let (norm, token_shift, None) = (nodes.next()?, nodes.next()?, nodes.next()) else {
        return None;
    };
    let Op::TokenShift { layer, half, .. } = token_shift.op else {
        return None;
    };
    // All that read the mixes is one group of products.
    let reads = |step: &Option<Step>| {
        step.as_ref()
            .is_some_and(|s| s.inputs(graph).iter().any(|x| shift.outputs.contains(x)))
    };
    let mut readers = (0..steps.len()).filter(|i| reads(&steps[*i]));
    let (products, None) = (readers.next()?, readers.next()) else {
        return None;
    };
    let project = group(&steps[products]).filter(|group| group.kernel == Kernel::Project)?;
    if shift.outputs != token_shift.outputs
        || project.inputs.iter().any(|x| !shift.outputs.contains(x))
    {
        return None;
    }
    let recurrence = steps.iter().position(|step| {
        group(step).is_some_and(
            |group| matches!(&group.kernel, Kernel::Recurrence7(what) if what.layer == layer),
        )
    })?;
    let x: ValueId = *norm.outputs.first()?;
    let mut outputs = project.outputs.clone();
    outputs.push(x);
    Some(TimeMix {
        joined: Group {
            kernel: Kernel::NormProjects,
            parts: [&shift.parts[..], &project.parts].concat(),
            inputs: shift.inputs.clone(),
            outputs,
        },
        products,
        recurrence,
        stores: StoredShift { layer, half, x },
    })
}
