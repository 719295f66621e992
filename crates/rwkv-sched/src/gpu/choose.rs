//! Which groups of steps run as one kernel for a batch, and which are taken apart.

use super::{
    channel_mixes, norm_projects,
    plan::Context,
    recurrence_outputs,
    resident::{groups, is_pair},
};
use crate::{
    BatchShape, Graph, Op, ValueId, Weight,
    fuse::{Group, Kernel, LinearStep, Mix6, Step, join_channel_mixes, join_norms, join_outputs},
};
use rwkv_kernels::{
    Format,
    ops::{
        self, Function, GatedHeadsHalves, HalfRows, MAX_SEGMENTS, NormShift, NormShiftHalves,
        Wkv6Step, Wkv7Step,
    },
};
use std::collections::{HashMap, HashSet};

/// Tokens that the kernels of a [`Kernel::Project`] take at most, whatever it has; of one stack they may take more.
pub(super) const TOKENS: usize = 8;

/// Spans that the recurrences' kernels of one token each take at most: with more, those that multiply the low-rank pairs'
/// second halves themselves read them so often that products of all tokens cost less.
const STEP_SPANS: usize = 256;

/// What a batch runs.
#[derive(Default)]
pub(super) struct Chosen {
    pub(super) steps: Vec<Step>,
    /// Values of different steps that lie in one buffer, one after the other.
    pub(super) together: Vec<Vec<ValueId>>,
    /// Values that are rounded to f16 when they are made, since only products read them that would do so.
    pub(super) halves: HashSet<ValueId>,
}

/// The steps for batches of `shape`.
pub(super) fn steps(context: &Context<'_>, shape: BatchShape) -> Chosen {
    let single = shape.is_single();
    let mut choice = Choice {
        context,
        tokens: shape.tokens,
        single,
        readers: readers(context),
        projected: projected(context, shape),
        chosen: Chosen::default(),
        buffers: HashMap::new(),
    };
    let lasting = if single {
        HashSet::new()
    } else {
        lasting(context)
    };
    for step in context.decode_steps {
        match step {
            Step::Group(group) if choice.suits(group) => {
                let without = choice.without(group, &lasting);
                match without.or_else(|| choice.pairs_apart(group)) {
                    Some(steps) => steps.into_iter().for_each(|s| choice.take(s)),
                    None => choice.take(step.clone()),
                }
            }
            Step::Group(group) if single && matches!(group.kernel, Kernel::Project) => {
                if shape.tokens <= STEP_SPANS {
                    choice.keep_together(&read_together(context, group));
                }
                choice.take_products(group);
            }
            Step::Group(group) => choice.take_apart(group),
            Step::Node(_) | Step::Linear(_) => choice.take(step.clone()),
        }
    }
    let mut chosen = choice.chosen;
    if single && shape.tokens == 1 {
        let graph = context.model.graph();
        let suits = |group: &Group| norm_projects::suits(context, group);
        let steps = join_norms(graph, chosen.steps, &suits);
        let suits = |group: &Group| match group.kernel {
            Kernel::NormProjects { .. } => norm_projects::suits(context, group),
            _ => channel_mixes::suits(context, group),
        };
        let steps = join_channel_mixes(graph, steps, &suits);
        let suits = |group: &Group| recurrence_outputs::suits(context, group);
        chosen.steps = join_outputs(graph, steps, &suits);
    }
    chosen
}

/// Who reads a value.
#[derive(Default)]
struct Readers<'a> {
    products: Vec<&'a LinearStep>,
    /// Whether anything else reads it, too.
    others: bool,
}

/// The readers of each value, when all groups are taken apart; whoever asked for a result is one.
fn readers<'a>(context: &Context<'a>) -> HashMap<ValueId, Readers<'a>> {
    let graph = context.model.graph();
    let mut readers: HashMap<ValueId, Readers<'a>> = HashMap::new();
    let apart = context.decode_steps.iter().flat_map(|step| match step {
        Step::Group(group) => &group.parts[..],
        other => std::slice::from_ref(other),
    });
    for step in apart {
        let product = match step {
            Step::Linear(product) => Some(product),
            _ => None,
        };
        for id in step.inputs(graph) {
            let all = readers.entry(id).or_default();
            match product {
                Some(product) if product.residual != Some(id) => all.products.push(product),
                _ => all.others = true,
            }
        }
    }
    for id in graph.results() {
        readers.entry(*id).or_default().others = true;
    }
    readers
}

/// The matrices of projections that are one kernel where their inputs are rounded to f16.
fn projected(context: &Context<'_>, shape: BatchShape) -> HashSet<Weight> {
    let suits = |group: &&Group| {
        let mut stacks = group.products().map(|p| {
            let stack = context.weights.stack(p.weight)?;
            let whole = stack.rows(p.weight).is_some() && !context.weights.is_blended(p.weight);
            whole.then_some(stack)
        });
        let Some(Some(first)) = stacks.next() else {
            return false;
        };
        matches!(group.kernel, Kernel::Project)
            && group.products().count() <= MAX_SEGMENTS
            && stacks.all(|stack| stack.is_some_and(|stack| std::ptr::eq(stack, first)))
            && context
                .kernels
                .half_projections_round(&first.matrix, shape.tokens)
    };
    groups(context.decode_steps)
        .filter(suits)
        .flat_map(|group| group.products().map(|p| p.weight).collect::<Vec<_>>())
        .collect()
}

/// The matrices of projections whose results other layers read too. A buffer is in use until all that lies in it has been
/// read, so that in a prompt one of them would keep all results of its projection.
fn lasting(context: &Context<'_>) -> HashSet<Weight> {
    let steps = context.decode_steps;
    let mut last_use = HashMap::new();
    for (index, step) in steps.iter().enumerate() {
        let inputs = step.inputs(context.model.graph());
        last_use.extend(inputs.into_iter().map(|id| (id, index)));
    }
    let norm = |step: &Step| matches!(step, Step::Group(group) if matches!(group.kernel, Kernel::NormShift));
    let mut found = HashSet::new();
    for (index, step) in steps.iter().enumerate() {
        let after = steps.iter().skip(index).position(norm);
        if let (Step::Group(group), Some(after)) = (step, after)
            && matches!(group.kernel, Kernel::Project)
        {
            let far = |y: &ValueId| last_use.get(y).is_some_and(|last| *last > index + after);
            found.extend(group.products().filter(|p| far(&p.y)).map(|p| p.weight));
        }
    }
    found
}

/// The results of a projection that a kernel after it binds together.
fn read_together(context: &Context<'_>, group: &Group) -> Vec<ValueId> {
    let binds = |group: &&Group| {
        let kernel = &group.kernel;
        matches!(
            kernel,
            Kernel::Mix6(_) | Kernel::Recurrence6(_) | Kernel::Recurrence7(_)
        )
    };
    let read: HashSet<ValueId> = groups(context.decode_steps)
        .filter(binds)
        .flat_map(|group| group.inputs.iter().copied())
        .collect();
    let outputs = group.outputs.iter().copied();
    outputs.filter(|y| read.contains(y)).collect()
}

/// The steps chosen so far.
struct Choice<'a> {
    context: &'a Context<'a>,
    tokens: usize,
    /// Whether every span is one token.
    single: bool,
    readers: HashMap<ValueId, Readers<'a>>,
    /// See [`projected`].
    projected: HashSet<Weight>,
    chosen: Chosen,
    /// The number of the buffer that a value is made in.
    buffers: HashMap<ValueId, usize>,
}

impl Choice<'_> {
    fn take(&mut self, step: Step) {
        let graph = self.context.model.graph();
        let first = self.buffers.len();
        for (number, buffer) in step.buffers(graph).into_iter().enumerate() {
            for y in buffer {
                // What is kept together has its place.
                self.buffers.entry(y).or_insert(first + number);
            }
        }
        if let Step::Group(group) = &step
            && self.halves_suit(group)
        {
            self.chosen.halves.extend(&group.outputs);
        }
        self.chosen.steps.push(step);
    }

    /// The parts of `group`, those of a recurrence of RWKV-7 in fewer steps where their kernels suit.
    fn take_apart(&mut self, group: &Group) {
        let graph = self.context.model.graph();
        let end = group.gated_heads(graph);
        let end = end.filter(|end| self.halves_suit(end));
        let ups = group.pair_ups(graph);
        let ups = ups.filter(|(ups, _)| self.pair_ups_suit(ups));
        let (ups, mut parts) = match ups {
            Some((ups, rest)) => (Some(Step::Group(Box::new(ups))), rest),
            None => (None, group.parts.clone()),
        };
        let end = end.map(|end| {
            parts.retain(|part| !end.parts.contains(part));
            Step::Group(Box::new(end))
        });
        let steps = ups.into_iter().chain(parts).chain(end);
        steps.for_each(|s| self.take(s));
    }

    /// A projection's products without its pairs in a kernel, and those of the pairs in another, as far as they suit; the
    /// others one by one.
    fn take_products(&mut self, group: &Group) {
        if self.tokens <= TOKENS {
            group.parts.iter().cloned().for_each(|s| self.take(s));
            return;
        }
        for half in group.products_apart(|weight| !is_pair(weight)) {
            if half.parts.len() > 1 && self.suits(&half) {
                self.take(Step::Group(Box::new(half)));
            } else {
                half.parts.into_iter().for_each(|s| self.take(s));
            }
        }
    }

    /// The steps of a projection of which the products with `lasting` matrices are made alone, if it has some and there is a
    /// kernel for them.
    fn without(&self, group: &Group, lasting: &HashSet<Weight>) -> Option<Vec<Step>> {
        if !group.products().any(|p| lasting.contains(&p.weight)) {
            return None;
        }
        let [others, alone] = group.products_apart(|weight| !lasting.contains(&weight));
        let (kernels, weights) = (self.context.kernels, &self.context.weights);
        let rounds = |weight: Weight| {
            let matrix = weights.matrix(weight);
            matrix.is_some_and(|matrix| kernels.linear_rounds(matrix, self.tokens))
        };
        let suits = self.rounded(group)
            && others.parts.len() > 1
            && alone.products().all(|p| rounds(p.weight));
        suits.then(|| {
            let others = Step::Group(Box::new(others));
            std::iter::once(others).chain(alone.parts).collect()
        })
    }

    /// The products of a projection in a prompt in two: those with large matrices and those of the low-rank pairs, if that is
    /// faster than all in one.
    fn pairs_apart(&self, group: &Group) -> Option<Vec<Step>> {
        if self.single || !matches!(group.kernel, Kernel::Project) || !self.rounded(group) {
            return None;
        }
        let [large, pairs] = group.products_apart(|weight| !is_pair(weight));
        if large.parts.is_empty() {
            return None;
        }
        let stack = self
            .context
            .weights
            .stack(pairs.products().next()?.weight)?;
        let rows = pairs.products().map(|p| stack.rows(p.weight));
        let few = rows.map(|rows| rows.map_or(0, |rows| rows.len())).sum();
        let apart = self
            .context
            .kernels
            .half_projections_apart(&stack.matrix, self.tokens, few);
        let steps = [large, pairs].map(|half| Step::Group(Box::new(half)));
        apart.then(|| steps.to_vec())
    }

    /// `values` are made by the steps that follow, in one buffer: as if one step had made them.
    fn keep_together(&mut self, values: &[ValueId]) {
        if values.len() < 2 {
            return;
        }
        let number = self.buffers.len();
        self.buffers.extend(values.iter().map(|y| (*y, number)));
        self.chosen.together.push(values.to_vec());
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
            Kernel::EmbedNorm | Kernel::MultiplyAdd(_) => true,
            Kernel::NormShift if self.halves_suit(group) => true,
            Kernel::Project if self.rounded(group) => true,
            // The others have one row of each sequence.
            _ if !self.single => false,
            Kernel::Recurrence4(_) => true,
            Kernel::NormShift => {
                group.inputs.iter().all(|x| NormShift::suits(width(*x)))
                    && mixes_of(group, graph) <= 6
            }
            // Made of groups that were chosen.
            Kernel::NormProjects { .. }
            | Kernel::ChannelMix { .. }
            | Kernel::RecurrenceOutput7 { .. } => false,
            Kernel::GatedHeads(_) => self.halves_suit(group),
            Kernel::PairUps(_) => self.pair_ups_suit(group),
            // In f16, inputs meet all matrices in one stack or each product alone.
            Kernel::Project => {
                !group.products().any(|p| self.chosen.halves.contains(&p.x))
                    && self.projections_suit(group)
            }
            Kernel::Mix6(what) => self.mix6_suits(what),
            Kernel::Recurrence6(what) => {
                Wkv6Step::suits(what.head_size)
                    && self.tokens <= STEP_SPANS
                    && self.pairs_suit(group)
                    && self.together([what.r, what.k, what.v])
            }
            Kernel::Recurrence7(what) => {
                let read = [what.r, what.k, what.v]
                    .into_iter()
                    .chain(what.pairs().map(|p| p.hidden));
                Wkv7Step::suits(what.head_size)
                    && self.tokens <= STEP_SPANS
                    && self.pairs_suit(group)
                    && self.together(read)
            }
        }
    }

    /// Whether a norm and a token shift can leave their mixes in f16, or the end of a recurrence its result: only products
    /// read them, and all of those would round them.
    fn halves_suit(&self, group: &Group) -> bool {
        let (kernels, weights) = (self.context.kernels, &self.context.weights);
        let graph = self.context.model.graph();
        let Some(width) = group.outputs.first().map(|y| graph.value(*y).width) else {
            return false;
        };
        let limits = &kernels.gpu().capabilities().limits;
        let bytes = HalfRows::bytes(self.tokens, width) * group.outputs.len() as u64;
        let rounds = |product: &&LinearStep| {
            let by_columns = weights.columns(product.weight).is_some();
            let dense = product.function != Function::Identity || product.bias.is_some();
            (dense || !by_columns)
                && weights.sparse(product.weight).is_none()
                && (self.projected.contains(&product.weight)
                    || weights
                        .matrix(product.weight)
                        .is_some_and(|matrix| kernels.linear_rounds(matrix, self.tokens)))
        };
        let suits = match &group.kernel {
            Kernel::NormShift => {
                NormShiftHalves::suits(width, group.outputs.len())
                    && mixes_of(group, graph) == group.outputs.len()
            }
            Kernel::GatedHeads(what) => GatedHeadsHalves::suits(width, what.head_size),
            _ => false,
        };
        suits
            && kernels.gpu().capabilities().f16
            && bytes <= limits.binding_bytes.min(limits.buffer_bytes)
            && group.outputs.iter().all(|y| {
                let readers = self.readers.get(y);
                readers.is_some_and(|all| !all.others && all.products.iter().all(rounds))
            })
    }

    /// Whether a projection's inputs are in f16, and a kernel multiplies all of them.
    fn rounded(&self, group: &Group) -> bool {
        group
            .products()
            .all(|p| self.chosen.halves.contains(&p.x) && self.projected.contains(&p.weight))
            && self.together(group.products().map(|p| p.x))
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
        let streams = || {
            let mut stacks = [&large, &pairs].into_iter().filter(|all| !all.is_empty());
            let one = stacks.next().and_then(|all| weights.stack(all[0]));
            let kernels = self.context.kernels;
            stacks.next().is_none()
                && one.is_some_and(|stack| kernels.stream_tokens_suit(&stack.matrix, self.tokens))
        };
        (self.tokens <= TOKENS || streams())
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

    /// Whether there is a kernel for the second halves of a recurrence's low-rank pairs and what follows them.
    fn pair_ups_suit(&self, group: &Group) -> bool {
        let Kernel::PairUps(what) = &group.kernel else {
            return false;
        };
        let kernels = self.context.kernels;
        let ups = group.packed_pairs().unwrap_or_default();
        let up = self.context.weights.base.pairs(&ups);
        up.is_some_and(|up| kernels.pair_ups_suit(up, self.tokens))
            && self.pairs_suit(group)
            && self.together(what.ends.iter().map(|end| end.pair.hidden))
    }

    /// Whether the second halves of a recurrence's low-rank pairs lie together as they were loaded.
    fn pairs_suit(&self, group: &Group) -> bool {
        let weights = &self.context.weights;
        group.packed_pairs().is_none_or(|ups| {
            weights.base.pairs(&ups).is_some() && !ups.iter().any(|up| weights.is_blended(*up))
        })
    }
}

/// The mixes of a group's token shift.
fn mixes_of(group: &Group, graph: &Graph) -> usize {
    let mixes = group.nodes(graph).map(|node| match &node.op {
        Op::TokenShift { mixes, .. } => mixes.len(),
        _ => 0,
    });
    mixes.sum()
}
