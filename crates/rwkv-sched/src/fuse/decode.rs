//! The few kernels of a step in which every sequence has one token.
//!
//! A layer of version 7 becomes six (docs/ARCHITECTURE.md): norm and shift; receptance, key, value and the first halves
//! of the low-rank pairs; the recurrence with everything around it; the output; norm, shift and the channel mix's key;
//! its value.

use super::{LinearStep, Step, StoredShift};
use crate::{BlockWeight as B, Graph, Lora, Node, Op, ValueId, Weight};
use rwkv_kernels::ops::Function;
use std::collections::{HashMap, HashSet};

/// Steps that one kernel does together.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Group {
    pub(crate) kernel: Kernel,
    /// What it stands for, in an order that respects the graph.
    pub(crate) parts: Vec<Step>,
    /// The values that it reads, and those that others read.
    pub(crate) inputs: Vec<ValueId>,
    pub(crate) outputs: Vec<ValueId>,
}

/// Which kernel.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Kernel {
    /// The embedding and the norm after it: two nodes.
    EmbedNorm,
    /// A norm and a token shift: two nodes.
    NormShift,
    /// Matrix products of the results of one token shift.
    Project,
    /// RWKV-7's recurrence with the second halves of the low-rank pairs, its keys, the norm, the bonus and the gate.
    Recurrence7(Box<Recurrence7>),
    /// A norm, a token shift with one mix, and a matrix product of its result.
    NormProject,
}

/// What RWKV-7's recurrence reads.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Recurrence7 {
    pub(crate) layer: usize,
    pub(crate) head_size: usize,
    pub(crate) epsilon: f32,
    pub(crate) r: ValueId,
    pub(crate) k: ValueId,
    pub(crate) v: ValueId,
    /// The inner vectors of the pairs.
    pub(crate) decay: Pair,
    pub(crate) rate: Pair,
    pub(crate) gate: Pair,
    /// The pair of the value residual and the first layer's value; none in the first layer.
    pub(crate) value: Option<(Pair, ValueId)>,
    /// Biases of decay and rate, k_k, k_a, r_k, the norm's weight and bias, and past the first layer the value's bias.
    pub(crate) vectors: Vec<Weight>,
}

impl Recurrence7 {
    /// The pairs, in the order in which the kernel has them.
    pub(crate) fn pairs(&self) -> impl Iterator<Item = &Pair> {
        let value = self.value.as_ref().map(|(pair, _)| pair);
        [&self.decay, &self.rate, &self.gate]
            .into_iter()
            .chain(value)
    }
}

/// The second half of a low-rank pair.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Pair {
    pub(crate) hidden: ValueId,
    pub(crate) up: Weight,
}

impl Group {
    /// The values that lie in one buffer each.
    pub(crate) fn buffers(&self) -> Vec<Vec<ValueId>> {
        match self.kernel {
            Kernel::NormProject => self.outputs.iter().map(|y| vec![*y]).collect(),
            _ => vec![self.outputs.clone()],
        }
    }

    /// The nodes that stand in it as they are.
    pub(crate) fn nodes<'g>(&self, graph: &'g Graph) -> impl Iterator<Item = &'g Node> {
        let index = |step: &Step| match step {
            Step::Node(index) => Some(*index),
            _ => None,
        };
        let nodes: Vec<_> = self.parts.iter().filter_map(index).collect();
        nodes
            .into_iter()
            .filter_map(|index| graph.nodes().get(index))
    }

    /// The products that it has.
    pub(crate) fn products(&self) -> impl Iterator<Item = &LinearStep> {
        self.parts.iter().filter_map(|part| match part {
            Step::Linear(step) => Some(step),
            _ => None,
        })
    }

    /// The vectors that its kernel reads one after the other, if it does.
    pub(crate) fn vectors(&self, graph: &Graph) -> Option<Vec<Weight>> {
        match &self.kernel {
            Kernel::Recurrence7(what) => Some(what.vectors.clone()),
            Kernel::NormProject => Some(self.nodes(graph).flat_map(|n| n.op.vectors()).collect()),
            _ => None,
        }
    }
}

/// Groups `steps`, whose order respects `graph`.
pub(super) fn group(graph: &Graph, steps: Vec<Step>) -> Vec<Step> {
    let mut grouping = Grouping::new(graph, steps);
    grouping.recurrences();
    grouping.norms();
    grouping.projections();
    grouping.finish()
}

/// Steps on their way into groups.
struct Grouping<'a> {
    graph: &'a Graph,
    steps: Vec<Option<Step>>,
    /// The step that makes a value, and those that read it.
    maker: HashMap<ValueId, usize>,
    readers: HashMap<ValueId, Vec<usize>>,
}

impl<'a> Grouping<'a> {
    fn new(graph: &'a Graph, steps: Vec<Step>) -> Self {
        let mut maker = HashMap::new();
        let mut readers: HashMap<_, Vec<_>> = HashMap::new();
        for (index, step) in steps.iter().enumerate() {
            maker.extend(step.outputs(graph).into_iter().map(|y| (y, index)));
            for x in step.inputs(graph) {
                readers.entry(x).or_default().push(index);
            }
        }
        Self {
            graph,
            steps: steps.into_iter().map(Some).collect(),
            maker,
            readers,
        }
    }

    /// The operation of step `index`, if it is a node as it stands.
    fn node(&self, index: usize) -> Option<(&'a Op, &'a [ValueId], &'a [ValueId])> {
        match self.steps.get(index)? {
            Some(Step::Node(node)) => {
                let node = self.graph.nodes().get(*node)?;
                Some((&node.op, &node.inputs, &node.outputs))
            }
            _ => None,
        }
    }

    fn linear(&self, index: usize) -> Option<&LinearStep> {
        match self.steps.get(index)? {
            Some(Step::Linear(step)) => Some(step),
            _ => None,
        }
    }

    /// The only step that reads `value`.
    fn only_reader(&self, value: ValueId) -> Option<usize> {
        match self.readers.get(&value)?[..] {
            [reader] if self.graph.logits() != Some(value) => Some(reader),
            _ => None,
        }
    }

    /// Puts `members` in one group at the place of one of them, unless a value that the group keeps to itself is read
    /// elsewhere: `outputs` are those that may be.
    fn join(&mut self, kernel: Kernel, mut members: Vec<usize>, at: usize, outputs: &[ValueId]) {
        members.sort_unstable();
        members.dedup();
        let parts: Vec<Step> = members
            .iter()
            .filter_map(|i| self.steps.get(*i).cloned().flatten())
            .collect();
        if parts.len() != members.len() {
            return;
        }
        let made: HashSet<ValueId> = parts.iter().flat_map(|p| p.outputs(self.graph)).collect();
        let escapes = |y: &ValueId| {
            let inside = |reader: &usize| members.contains(reader);
            !self.readers.get(y).is_none_or(|r| r.iter().all(inside))
                || self.graph.logits() == Some(*y)
        };
        if made.iter().any(|y| escapes(y) && !outputs.contains(y)) {
            return;
        }
        let mut inputs = Vec::new();
        for input in parts.iter().flat_map(|p| p.inputs(self.graph)) {
            if !made.contains(&input) && !inputs.contains(&input) {
                inputs.push(input);
            }
        }
        for member in &members {
            self.steps[*member] = None;
        }
        self.steps[at] = Some(Step::Group(Box::new(Group {
            kernel,
            parts,
            inputs,
            outputs: outputs.to_vec(),
        })));
    }

    fn finish(self) -> Vec<Step> {
        self.steps.into_iter().flatten().collect()
    }

    /// Norms with the token shifts, and the one product, that follow them; and the embedding's.
    fn norms(&mut self) {
        for index in 0..self.steps.len() {
            let Some((Op::Norm { group, .. }, x, y)) = self.node(index) else {
                continue;
            };
            let (x, y) = (x[0], y[0]);
            if *group != self.graph.value(y).width {
                continue;
            }
            if let Some(embed) = self.maker.get(&x).copied()
                && matches!(self.node(embed), Some((Op::Embed { .. }, ..)))
            {
                self.join(Kernel::EmbedNorm, vec![embed, index], index, &[y]);
                continue;
            }
            let Some(shift) = self.only_reader(y) else {
                continue;
            };
            let Some((Op::TokenShift { .. }, _, mixed)) = self.node(shift) else {
                continue;
            };
            let product = match mixed {
                [mixed] => self.only_reader(*mixed),
                _ => None,
            };
            let Some((at, next, stores)) = product.and_then(|at| self.key(shift, at, y)) else {
                self.join(Kernel::NormShift, vec![index, shift], shift, mixed);
                continue;
            };
            if let (Some(Step::Linear(key)), Some(Some(Step::Linear(value)))) =
                (self.steps[at].clone(), self.steps.get_mut(next))
            {
                value.stores = Some(stores);
                self.join(Kernel::NormProject, vec![index, shift, at], at, &[key.y, y]);
            }
        }
    }

    /// Whether the product at `at` of what `shift` mixed can be made together with the norm `y`: the step after it, which
    /// then stores the normed row as the state. While the product is made, other workgroups still read the state.
    fn key(&self, shift: usize, at: usize, y: ValueId) -> Option<(usize, usize, StoredShift)> {
        let (Op::TokenShift { layer, half, .. }, ..) = self.node(shift)? else {
            return None;
        };
        let product = self.linear(at)?;
        let next = self.only_reader(product.y)?;
        let fits = product.residual.is_none()
            && product.bias.is_none()
            && self.linear(next)?.x == product.y;
        let stores = StoredShift {
            layer: *layer,
            half: *half,
            x: y,
        };
        fits.then_some((at, next, stores))
    }

    /// The products that read one token shift: the large matrices, and the first halves of low-rank pairs.
    fn projections(&mut self) {
        for index in 0..self.steps.len() {
            let Some(Step::Group(shift)) = &self.steps[index] else {
                continue;
            };
            if shift.kernel != Kernel::NormShift {
                continue;
            }
            let mut members: Vec<usize> = shift
                .outputs
                .iter()
                .filter_map(|y| self.readers.get(y))
                .flatten()
                .copied()
                .filter(|i| {
                    self.linear(*i)
                        .is_some_and(|l| l.residual.is_none() && l.bias.is_none())
                })
                .collect();
            members.sort_unstable();
            members.dedup();
            let outputs: Vec<ValueId> = members
                .iter()
                .filter_map(|i| self.linear(*i).map(|l| l.y))
                .collect();
            if let (Some(first), true) = (members.first().copied(), members.len() > 1) {
                self.join(Kernel::Project, members, first, &outputs);
            }
        }
    }

    fn recurrences(&mut self) {
        for index in 0..self.steps.len() {
            if let Some((Op::Wkv7 { .. }, ..)) = self.node(index)
                && let Some((what, members, at, y)) = self.recurrence7(index)
            {
                self.join(Kernel::Recurrence7(Box::new(what)), members, at, &[y]);
            }
        }
    }

    /// What stands around RWKV-7's recurrence at `index`: what it reads, the steps, the last of them and its result.
    fn recurrence7(&self, index: usize) -> Option<(Recurrence7, Vec<usize>, usize, ValueId)> {
        let (Op::Wkv7 { layer, head_size }, inputs, outputs) = self.node(index)? else {
            return None;
        };
        let [r, w, k, kappa, v, a] = inputs.try_into().ok()?;
        let mut members = vec![index];
        let mut pair = |y: ValueId, lora: Lora, function: Function| {
            let at = *self.maker.get(&y)?;
            let step = self.linear(at)?;
            let fits = step.weight == Weight::Block(*layer, B::LoraUp(lora))
                && step.function == function
                && step.residual.is_none();
            members.push(at);
            let pair = Pair {
                hidden: step.x,
                up: step.weight,
            };
            fits.then_some((pair, step.bias))
        };
        let (decay, decay_bias) = pair(w, Lora::Decay, Function::Decay7)?;
        let (rate, rate_bias) = pair(a, Lora::Rate, Function::Sigmoid)?;
        // The value, with the first layer's mixed in.
        let lerp = self
            .maker
            .get(&v)
            .copied()
            .filter(|at| matches!(self.node(*at), Some((Op::Lerp, ..))));
        let (value, v, value_bias) = match lerp {
            None => (None, v, None),
            Some(at) => {
                let [own, first, t] = self.node(at)?.1.try_into().ok()?;
                let (pair, bias) = pair(t, Lora::Value, Function::Sigmoid)?;
                (Some((pair, first)), own, Some(bias?))
            }
        };
        // After it: the norm of each head, the bonus, the gate.
        let norm = self.only_reader(outputs[0])?;
        let (
            Op::Norm {
                weight,
                bias,
                group,
                epsilon,
            },
            _,
            normed,
        ) = self.node(norm)?
        else {
            return None;
        };
        let bonus = self.only_reader(normed[0])?;
        let (Op::Bonus { weight: r_k, .. }, operands, with_bonus) = self.node(bonus)? else {
            return None;
        };
        let last = self.only_reader(with_bonus[0])?;
        let (Op::Multiply, factors, y) = self.node(last)? else {
            return None;
        };
        let gate = factors.iter().copied().find(|f| *f != with_bonus[0])?;
        let (gate, no_bias) = pair(gate, Lora::Gate, Function::Identity)?;
        let keys = *self.maker.get(&k)?;
        let (
            Op::Keys7 {
                removal,
                replacement,
                ..
            },
            of,
            made,
        ) = self.node(keys)?
        else {
            return None;
        };
        let right = made == [k, kappa].as_slice()
            && of.get(1) == Some(&a)
            && operands[1..] == [r, k, inputs[4]]
            && group == head_size
            && no_bias.is_none();
        members.extend(lerp);
        members.extend([keys, norm, bonus, last]);
        let mut vectors = vec![decay_bias?, rate_bias?];
        vectors.extend([*removal, *replacement, *r_k, *weight, *bias]);
        vectors.extend(value_bias);
        right.then(|| {
            let what = Recurrence7 {
                layer: *layer,
                head_size: *head_size,
                epsilon: *epsilon,
                r,
                k: of[0],
                v,
                decay,
                rate,
                gate,
                value,
                vectors,
            };
            (what, members, last, y[0])
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::{
        InMemoryWeights, ModelConfig, Result, Version, Weights, fuse::fuse_decode, layers,
    };
    use rwkv_kernels::{Format, Matrix};
    use rwkv_mem::Shape;

    const WIDTH: usize = 16;

    /// Tensors of the right shapes, without their values.
    struct Shapes(InMemoryWeights);

    impl Weights for Shapes {
        fn matrix(&self, weight: Weight) -> Result<Matrix<'_>> {
            self.0.matrix(weight)
        }

        fn name(&self, weight: Weight) -> String {
            self.0.name(weight)
        }

        fn describe(&self, weight: Weight) -> Result<(Format, Shape)> {
            let (rows, cols) = match weight {
                Weight::Embedding | Weight::Head => (32, WIDTH),
                Weight::Block(_, block) => match block {
                    B::FfnEmbedding => (32, 16),
                    B::LoraUp(Lora::DeepEmbed) => (4 * WIDTH, 4),
                    B::LoraBias(Lora::DeepEmbed) => (1, 4 * WIDTH),
                    B::LoraDown(_) => (4, WIDTH),
                    B::LoraUp(_) => (WIDTH, 4),
                    B::FfnKey => (4 * WIDTH, WIDTH),
                    B::FfnValue => (WIDTH, 4 * WIDTH),
                    B::FfnEmbeddingUp
                    | B::AttReceptance
                    | B::AttKey
                    | B::AttValue
                    | B::AttGate
                    | B::AttOutput
                    | B::FfnReceptance => (WIDTH, WIDTH),
                    _ => (1, WIDTH),
                },
                _ => (1, WIDTH),
            };
            Ok((Format::F16, Shape::new(rows, cols)))
        }
    }

    fn graph(version: Version, layers: usize) -> Graph {
        let config = ModelConfig {
            version,
            layers,
            width: WIDTH,
            head_size: if version == Version::V4 { 1 } else { 8 },
            ffn: 4 * WIDTH,
            vocab: 32,
            norm_epsilon: 1e-5,
            group_norm_epsilon: 64e-5,
        };
        layers::build(&config, &Shapes(InMemoryWeights::default())).unwrap()
    }

    /// What kernels a step runs, in order.
    fn names(steps: &[Step], graph: &Graph) -> Vec<String> {
        let first_word =
            |text: String| text.split(['(', ' ']).next().unwrap_or_default().to_owned();
        let name = |step: &Step| match step {
            Step::Node(index) => first_word(format!("{:?}", graph.nodes()[*index].op)),
            Step::Linear(step) if step.stores.is_some() => "Linear, stores".to_owned(),
            Step::Linear(_) => "Linear".to_owned(),
            Step::Group(group) => format!(
                "{} of {}",
                first_word(format!("{:?}", group.kernel)),
                group.parts.len()
            ),
        };
        steps.iter().map(name).collect()
    }

    #[test]
    fn six_kernels_a_layer() {
        let graph = graph(Version::V7, 2);
        let steps = fuse_decode(&graph);
        let layer = |first: bool| {
            let [project, recurrence] = if first { [6, 8] } else { [7, 10] };
            vec![
                "NormShift of 2".to_owned(),
                format!("Project of {project}"),
                format!("Recurrence7 of {recurrence}"),
                "Linear".to_owned(),
                "NormProject of 3".to_owned(),
                "Linear, stores".to_owned(),
            ]
        };
        let mut want = vec!["EmbedNorm of 2".to_owned()];
        want.extend(layer(true));
        want.extend(layer(false));
        want.extend(["Select", "Norm", "Linear"].map(str::to_owned));
        assert_eq!(names(&steps, &graph), want);
    }

    /// Every value that is read was made before, in groups and apart, and nothing is lost.
    #[test]
    fn order_is_respected() {
        for version in Version::ALL {
            let graph = graph(version, 3);
            let steps = fuse_decode(&graph);
            let mut made = HashSet::new();
            for step in &steps {
                assert!(
                    step.inputs(&graph).iter().all(|x| made.contains(x)),
                    "{version}: {step:?}"
                );
                made.extend(step.outputs(&graph));
            }
            assert!(made.contains(&graph.logits().unwrap()));
            let mut apart: Vec<usize> = Vec::new();
            let mut linears = 0;
            let mut count = |step: &Step| match step {
                Step::Node(index) => apart.push(*index),
                _ => linears += 1,
            };
            for step in &steps {
                match step {
                    Step::Group(group) => group.parts.iter().for_each(&mut count),
                    other => count(other),
                }
            }
            let all = super::super::fuse(&graph);
            let nodes = all.iter().filter(|s| matches!(s, Step::Node(_))).count();
            assert_eq!(
                (apart.len(), linears),
                (nodes, all.len() - nodes),
                "{version}"
            );
        }
    }
}
