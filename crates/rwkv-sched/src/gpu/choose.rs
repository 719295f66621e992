//! Which groups of steps run as one kernel for a batch, and which are taken apart.

use super::{plan::Context, resident::is_pair, resolve::missing};
use crate::{
    Op, Result, ValueId, Weight,
    fuse::{Group, Kernel, LinearStep, Step},
};
use rwkv_kernels::{
    Format,
    ops::{MAX_SEGMENTS, NormShift, Wkv7Step},
};
use std::collections::HashSet;

/// Tokens that the kernels of groups take at most.
pub(super) const TOKENS: usize = 8;

/// The steps for a batch of `tokens` spans of one token each.
pub(super) fn decode_steps(context: &Context<'_>, tokens: usize) -> Result<Vec<Step>> {
    let mut steps = Vec::new();
    let (mut projected, mut waits) = (HashSet::new(), HashSet::<ValueId>::new());
    for step in context.decode_steps {
        match step {
            Step::Group(group) if suits(context, group, tokens, &projected)? => {
                match group.kernel {
                    Kernel::Project => projected.extend(&group.outputs),
                    Kernel::NormProject => waits.extend(group.outputs.last()),
                    _ => {}
                }
                steps.push(step.clone());
            }
            Step::Group(group) => steps.extend(group.parts.iter().cloned()),
            Step::Linear(linear) => {
                // Apart, a token shift stores its own state.
                let stores = linear.stores.filter(|stored| waits.contains(&stored.x));
                steps.push(Step::Linear(LinearStep {
                    stores,
                    ..linear.clone()
                }));
            }
            Step::Node(_) => steps.push(step.clone()),
        }
    }
    Ok(steps)
}

/// Whether `group`'s kernel can run; `projected` are the values that projections make.
fn suits(
    context: &Context<'_>,
    group: &Group,
    tokens: usize,
    projected: &HashSet<ValueId>,
) -> Result<bool> {
    let weights = &context.weights;
    let graph = context.model.graph();
    let width = |id| graph.value(id).width;
    Ok(match &group.kernel {
        Kernel::EmbedNorm => true,
        Kernel::NormShift => {
            let mixes = group.nodes(graph).map(|node| match &node.op {
                Op::TokenShift { mixes, .. } => mixes.len(),
                _ => 0,
            });
            group.inputs.iter().all(|x| NormShift::suits(width(*x))) && mixes.sum::<usize>() <= 6
        }
        Kernel::Project => {
            let (pairs, large): (Vec<Weight>, Vec<Weight>) = group
                .products()
                .map(|p| p.weight)
                .partition(|w| is_pair(*w));
            let together = |members: &[Weight]| {
                let Some(first) = members.first() else {
                    return true;
                };
                weights.stack(*first).is_some_and(|stack| {
                    let f16 = stack.matrix.format() == Format::F16;
                    stack.matrix.is_whole()
                        && (f16 || !is_pair(*first))
                        && members
                            .iter()
                            .all(|m| stack.rows(*m).is_some() && !weights.is_blended(*m))
                })
            };
            tokens <= TOKENS
                && group.products().count() <= MAX_SEGMENTS
                && !large.is_empty()
                && together(&large)
                && together(&pairs)
        }
        Kernel::NormProject => {
            let product = group.products().next();
            let Some(weight) = product.map(|product| product.weight) else {
                return Ok(false);
            };
            let matrix = weights
                .matrix(weight)
                .ok_or_else(|| missing(context, weight))?;
            tokens <= TOKENS && context.kernels.norm_shift_linear_suits(matrix, tokens)
        }
        Kernel::Recurrence7(what) => {
            let ups: Vec<Weight> = what.pairs().map(|pair| pair.up).collect();
            let read = [what.r, what.k, what.v]
                .into_iter()
                .chain(what.pairs().map(|p| p.hidden));
            Wkv7Step::suits(what.head_size)
                && weights.base.pairs(&ups).is_some()
                && !ups.iter().any(|up| weights.is_blended(*up))
                && read.into_iter().all(|id| projected.contains(&id))
        }
    })
}
