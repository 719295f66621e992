//! What one token's step joins further: norm and shift with the products of the mixes. The recurrence, or the product
//! that follows, then stores the normed row as the state.

use super::{Group, Kernel};
use crate::{
    Graph, Op, ValueId,
    fuse::{Step, StoredShift},
};
use rwkv_kernels::ops::Function;

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
        if group.kernel != Kernel::NormShift {
            continue;
        }
        if let Some(found) = time_mix(graph, &steps, group)
            && suits(&found.joined)
        {
            if let Some(Step::Group(recurrence)) = &mut steps[found.storing]
                && let Kernel::Recurrence7(what) = &mut recurrence.kernel
            {
                what.stores = Some(found.stores);
                recurrence.inputs.push(found.stores.x);
                steps[found.products] = Some(Step::Group(Box::new(found.joined)));
                steps[index] = None;
            }
        } else if let Some(found) = channel_mix(graph, &steps, group)
            && suits(&found.joined)
            && let Some(Step::Linear(value)) = &mut steps[found.storing]
        {
            value.stores = Some(found.stores);
            steps[found.products] = Some(Step::Group(Box::new(found.joined)));
            steps[index] = None;
        }
    }
    steps.into_iter().flatten().collect()
}

/// Joins norm, shift and key, which [`join_norms`] has joined, with the value and the residual, where `suits` says that
/// the kernel can do it, and that of the time mix's products before them can set the result to zero.
pub(crate) fn join_channel_mixes(
    graph: &Graph,
    steps: Vec<Step>,
    suits: &dyn Fn(&Group) -> bool,
) -> Vec<Step> {
    let mut steps: Vec<Option<Step>> = steps.into_iter().map(Some).collect();
    let mut clearing = None;
    for index in 0..steps.len() {
        let Some(Step::Group(group)) = &steps[index] else {
            continue;
        };
        if !matches!(group.kernel, Kernel::NormProjects { .. }) {
            continue;
        }
        if let Some((value, joined)) = whole_channel_mix(graph, &steps, group)
            && let Kernel::ChannelMix { y } = joined.kernel
            && let Some(before) = clearing.take()
            && let Some(Step::Group(clears)) = &steps[before]
            && let clears = clearing_too(clears, y)
            && suits(&clears)
            && suits(&joined)
        {
            steps[before] = Some(Step::Group(Box::new(clears)));
            steps[value] = Some(Step::Group(Box::new(joined)));
            steps[index] = None;
        } else {
            clearing = Some(index);
        }
    }
    steps.into_iter().flatten().collect()
}

/// Joins version 7's recurrences with the output projections and the residual, where the channel mix after them is one
/// group and `suits` says that the kernel can do it: the sum lies where the residual stream lay, which nobody else reads.
pub(crate) fn join_outputs(
    graph: &Graph,
    steps: Vec<Step>,
    suits: &dyn Fn(&Group) -> bool,
) -> Vec<Step> {
    let mut steps: Vec<Option<Step>> = steps.into_iter().map(Some).collect();
    for index in 0..steps.len() {
        let Some(found) = recurrence_output(graph, &steps, index) else {
            continue;
        };
        if !suits(&found.joined) {
            continue;
        }
        let Kernel::RecurrenceOutput7 { x, .. } = &found.joined.kernel else {
            continue;
        };
        if let Some(Step::Group(mix)) = &mut steps[found.channel_mix] {
            for input in &mut mix.inputs {
                if *input == found.sum {
                    *input = *x;
                }
            }
        }
        steps[found.output] = Some(Step::Group(Box::new(found.joined)));
        steps[index] = None;
    }
    steps.into_iter().flatten().collect()
}

/// A recurrence that can be made together with the output projection.
struct WithOutput {
    joined: Group,
    /// The steps of the projection, and of the channel mix that reads `sum`, what the projection makes.
    output: usize,
    channel_mix: usize,
    sum: ValueId,
}

fn recurrence_output(graph: &Graph, steps: &[Option<Step>], at: usize) -> Option<WithOutput> {
    let Some(Step::Group(group)) = &steps[at] else {
        return None;
    };
    let Kernel::Recurrence7(what) = &group.kernel else {
        return None;
    };
    let output = only_reader(graph, steps, &group.outputs)?;
    let Some(Step::Linear(linear)) = &steps[output] else {
        return None;
    };
    let plain = linear.function == Function::Identity && linear.bias.is_none();
    let x = linear
        .residual
        .filter(|_| plain && linear.stores.is_none())?;
    let channel_mix = only_reader(graph, steps, &[linear.y])?;
    let is_mix = matches!(&steps[channel_mix], Some(Step::Group(g)) if matches!(g.kernel, Kernel::ChannelMix { .. }));
    // Nobody reads the residual stream after it is added to.
    let read_later = steps[output + 1..].iter().flatten();
    let read_later = read_later
        .flat_map(|step| step.inputs(graph))
        .any(|id| id == x);
    let joined = Group {
        kernel: Kernel::RecurrenceOutput7 {
            what: what.clone(),
            x,
        },
        parts: [&group.parts[..], &[Step::Linear(linear.clone())]].concat(),
        inputs: [&group.inputs[..], &[x]].concat(),
        outputs: Vec::new(),
    };
    (is_mix && !read_later && !graph.results().contains(&x)).then_some(WithOutput {
        joined,
        output,
        channel_mix,
        sum: linear.y,
    })
}

/// `group` of norm and products, which sets `y` to zero too.
fn clearing_too(group: &Group, y: ValueId) -> Group {
    let mut clears = group.clone();
    clears.kernel = Kernel::NormProjects { clears: Some(y) };
    clears.outputs.push(y);
    clears
}

/// `group` with the product that reads its only one, and where that product is.
fn whole_channel_mix(
    graph: &Graph,
    steps: &[Option<Step>],
    group: &Group,
) -> Option<(usize, Group)> {
    let mut products = group.products();
    let (key, None) = (products.next()?, products.next()) else {
        return None;
    };
    let at = only_reader(graph, steps, &[key.y])?;
    let Some(Step::Linear(value)) = &steps[at] else {
        return None;
    };
    let x = *group.inputs.first()?;
    let plain = value.function == Function::Identity && value.bias.is_none();
    let joined = Group {
        kernel: Kernel::ChannelMix { y: value.y },
        parts: [&group.parts[..], &[Step::Linear(value.clone())]].concat(),
        inputs: vec![x, value.y],
        outputs: Vec::new(),
    };
    (plain && value.stores.is_some() && value.residual == Some(x)).then_some((at, joined))
}

/// A norm and shift that can be made together with the products of their mixes.
struct Joinable {
    joined: Group,
    /// The step of the products.
    products: usize,
    /// The one that then stores the normed row as the state: while the products are made, other workgroups still read it.
    storing: usize,
    stores: StoredShift,
}

/// What `shift` makes the state of: where it is no more than a norm and a shift whose mixes others read.
fn stored(graph: &Graph, shift: &Group) -> Option<StoredShift> {
    let mut nodes = shift.nodes(graph);
    let (norm, token_shift, None) = (nodes.next()?, nodes.next()?, nodes.next()) else {
        return None;
    };
    let Op::TokenShift { layer, half, .. } = token_shift.op else {
        return None;
    };
    let x: ValueId = *norm.outputs.first()?;
    (shift.outputs == token_shift.outputs).then_some(StoredShift { layer, half, x })
}

/// The only step that reads one of `values`.
fn only_reader(graph: &Graph, steps: &[Option<Step>], values: &[ValueId]) -> Option<usize> {
    let reads = |step: &Option<Step>| {
        step.as_ref()
            .is_some_and(|s| s.inputs(graph).iter().any(|x| values.contains(x)))
    };
    let mut readers = (0..steps.len()).filter(|i| reads(&steps[*i]));
    let (reader, None) = (readers.next()?, readers.next()) else {
        return None;
    };
    let is_result = graph.results().iter().any(|y| values.contains(y));
    (!is_result).then_some(reader)
}

/// `shift` and `parts`, which make `outputs`.
fn joined(shift: &Group, parts: &[Step], outputs: &[ValueId], normed: ValueId) -> Group {
    Group {
        kernel: Kernel::NormProjects { clears: None },
        parts: [&shift.parts[..], parts].concat(),
        inputs: shift.inputs.clone(),
        outputs: [outputs, &[normed]].concat(),
    }
}

/// With the group of products that reads all mixes, and version 7's recurrence.
fn time_mix(graph: &Graph, steps: &[Option<Step>], shift: &Group) -> Option<Joinable> {
    let group = |step: &Option<Step>| match step {
        Some(Step::Group(group)) => Some(group.clone()),
        _ => None,
    };
    let stores = stored(graph, shift)?;
    let products = only_reader(graph, steps, &shift.outputs)?;
    let project = group(&steps[products]).filter(|group| group.kernel == Kernel::Project)?;
    if project.inputs.iter().any(|x| !shift.outputs.contains(x)) {
        return None;
    }
    let storing = steps.iter().position(|step| {
        group(step).is_some_and(
            |group| matches!(&group.kernel, Kernel::Recurrence7(what) if what.layer == stores.layer),
        )
    })?;
    Some(Joinable {
        joined: joined(shift, &project.parts, &project.outputs, stores.x),
        products,
        storing,
        stores,
    })
}

/// With the one product of its one mix, and the product that follows.
fn channel_mix(graph: &Graph, steps: &[Option<Step>], shift: &Group) -> Option<Joinable> {
    let linear = |index: usize| match &steps[index] {
        Some(Step::Linear(step)) => Some(step),
        _ => None,
    };
    let stores = stored(graph, shift)?;
    let products = only_reader(graph, steps, &shift.outputs)?;
    let key = linear(products).filter(|key| key.residual.is_none() && key.bias.is_none())?;
    let storing = only_reader(graph, steps, &[key.y])?;
    let follows = linear(storing)?.x == key.y;
    follows.then(|| Joinable {
        joined: joined(shift, &[Step::Linear(key.clone())], &[key.y], stores.x),
        products,
        storing,
        stores,
    })
}
