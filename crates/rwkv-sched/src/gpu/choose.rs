//! Which groups of steps run as one kernel for a batch, and which are taken apart.

use super::{channel_mixes, norm_projects, plan::Context, recurrence_outputs, resident::is_pair};
use crate::{
    Op, ValueId, Weight,
    fuse::{Group, Kernel, Mix6, Step, join_channel_mixes, join_norms, join_outputs},
};
use rwkv_kernels::{
    Format,
    ops::{self, MAX_SEGMENTS, NormShift, Wkv6Step, Wkv7Step},
};
use std::collections::HashMap;

/// Tokens that the kernels of groups take at most.
pub(super) const TOKENS: usize = 8;

/// The steps for a batch of `tokens` spans of one token each.
pub(super) fn decode_steps(context: &Context<'_>, tokens: usize) -> Vec<Step> {
    let mut choice = Choice {
        context,
        tokens,
        steps: Vec::new(),
        buffers: HashMap::new(),
    };
    for step in context.decode_steps {
        match step {
            Step::Group(group) if !choice.suits(group) => {
                group.parts.iter().cloned().for_each(|s| choice.take(s));
            }
            _ => choice.take(step.clone()),
        }
    }
    if tokens == 1 {
        let graph = context.model.graph();
        let suits = |group: &Group| norm_projects::suits(context, group);
        let steps = join_norms(graph, choice.steps, &suits);
        let suits = |group: &Group| channel_mixes::suits(context, group);
        let steps = join_channel_mixes(graph, steps, &suits);
        let suits = |group: &Group| recurrence_outputs::suits(context, group);
        return join_outputs(graph, steps, &suits);
    }
    choice.steps
}

/// The steps chosen so far.
struct Choice<'a> {
    context: &'a Context<'a>,
    tokens: usize,
    steps: Vec<Step>,
    /// The number of the buffer that a value is made in.
    buffers: HashMap<ValueId, usize>,
}

impl Choice<'_> {
    fn take(&mut self, step: Step) {
        let graph = self.context.model.graph();
        let first = self.buffers.len();
        for (number, buffer) in step.buffers(graph).into_iter().enumerate() {
            let places = buffer.into_iter().map(|y| (y, first + number));
            self.buffers.extend(places);
        }
        self.steps.push(step);
    }

    /// Whether one step makes all of `values` in one buffer, as kernels must find them that bind them together.
    fn together(&self, values: impl IntoIterator<Item = ValueId>) -> bool {
        let mut places = values.into_iter().map(|id| self.buffers.get(&id));
        places
            .next()
            .is_none_or(|first| first.is_some() && places.all(|place| place == first))
    }

    /// Whether `group`'s kernel can run.
    fn suits(&self, group: &Group) -> bool {
        let graph = self.context.model.graph();
        let width = |id| graph.value(id).width;
        match &group.kernel {
            Kernel::EmbedNorm | Kernel::Recurrence4(_) | Kernel::MultiplyAdd(_) => true,
            Kernel::NormShift => {
                let mixes = group.nodes(graph).map(|node| match &node.op {
                    Op::TokenShift { mixes, .. } => mixes.len(),
                    _ => 0,
                });
                group.inputs.iter().all(|x| NormShift::suits(width(*x)))
                    && mixes.sum::<usize>() <= 6
            }
            // Made of groups that were chosen.
            Kernel::NormProjects { .. }
            | Kernel::ChannelMix { .. }
            | Kernel::RecurrenceOutput7 { .. } => false,
            Kernel::Project => self.projections_suit(group),
            Kernel::Mix6(what) => self.mix6_suits(what),
            Kernel::Recurrence6(what) => {
                Wkv6Step::suits(what.head_size)
                    && self.pairs_suit(group)
                    && self.together([what.r, what.k, what.v])
            }
            Kernel::Recurrence7(what) => {
                let read = [what.r, what.k, what.v]
                    .into_iter()
                    .chain(what.pairs().map(|p| p.hidden));
                Wkv7Step::suits(what.head_size) && self.pairs_suit(group) && self.together(read)
            }
        }
    }

    /// Whether the stacks of a projection's matrices are in one part and as they were loaded, and its inputs lie
    /// together.
    fn projections_suit(&self, group: &Group) -> bool {
        let weights = &self.context.weights;
        let (pairs, large): (Vec<Weight>, Vec<Weight>) = group
            .products()
            .map(|p| p.weight)
            .partition(|w| is_pair(*w));
        let stacked = |members: &[Weight]| {
            let Some(first) = members.first() else {
                return true;
            };
            weights.stack(*first).is_some_and(|stack| {
                let f16 = stack.matrix.format() == Format::F16;
                stack.matrix.is_whole()
                    // Beside large matrices, pairs are read as F16.
                    && (f16 || !is_pair(*first) || large.is_empty())
                    && members
                        .iter()
                        .all(|m| stack.rows(*m).is_some() && !weights.is_blended(*m))
            })
        };
        self.tokens <= TOKENS
            && group.products().count() <= MAX_SEGMENTS
            && stacked(&large)
            && stacked(&pairs)
            && self.together(group.products().map(|p| p.x))
    }

    fn mix6_suits(&self, what: &Mix6) -> bool {
        let weights = &self.context.weights;
        let ups = what.ups();
        let stack = ups.first().and_then(|up| weights.stack(*up));
        stack.is_some_and(|stack| {
            ops::Mix6::suits(&stack.matrix)
                && ups
                    .iter()
                    .all(|up| stack.rows(*up).is_some() && !weights.is_blended(*up))
        }) && self.together([what.x, what.previous])
            && self.together(what.pairs.map(|pair| pair.hidden))
    }

    /// Whether the second halves of a recurrence's low-rank pairs lie together as they were loaded.
    fn pairs_suit(&self, group: &Group) -> bool {
        let weights = &self.context.weights;
        group.packed_pairs().is_none_or(|ups| {
            weights.base.pairs(&ups).is_some() && !ups.iter().any(|up| weights.is_blended(*up))
        })
    }
}
