//! RWKV-7's recurrence with everything around it: the second halves of the low-rank pairs before it, its keys, and after
//! it the norm of each head, the bonus and the gate.

use super::{
    Kernel,
    grouping::{Found, Grouping},
    pairs::Pair,
};
use crate::{
    Graph, Lora, Op, ValueId, Weight,
    fuse::{Group, Step, StoredShift},
};
use rwkv_kernels::ops::Function;

/// What it reads.
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
    /// The row that becomes a shift vector, where nothing else stores it.
    pub(crate) stores: Option<StoredShift>,
}

/// The end of a recurrence that was taken apart: the norm of each head, the bonus and the gate.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct GatedHeads {
    pub(crate) head_size: usize,
    pub(crate) epsilon: f32,
    /// What the recurrence made, and what the bonus is of.
    pub(crate) x: ValueId,
    pub(crate) r: ValueId,
    pub(crate) k: ValueId,
    pub(crate) v: ValueId,
    pub(crate) gate: ValueId,
    /// Those of the recurrence, and which rows of them are the bonus, the norm's weight and its bias.
    pub(crate) vectors: Vec<Weight>,
    pub(crate) rows: [usize; 3],
}

/// The second halves of the low-rank pairs of a recurrence that was taken apart, with all that follows them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PairUps {
    pub(crate) ends: Vec<PairEnd>,
    /// Those of the recurrence.
    pub(crate) vectors: Vec<Weight>,
    /// The layer's value and the first layer's, which the last pair mixes.
    pub(crate) mixed: Option<[ValueId; 2]>,
}

/// `y = function(up · hidden + bias)`, the bias a row of the vectors; or what that mixes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PairEnd {
    pub(crate) pair: Pair,
    pub(crate) bias: Option<usize>,
    pub(crate) function: Function,
    pub(crate) y: ValueId,
}

impl Group {
    /// The second halves of the pairs of a recurrence of RWKV-7, with what mixes the value, as a group, and the other parts.
    /// None for other groups.
    pub(crate) fn pair_ups(&self, graph: &Graph) -> Option<(Group, Vec<Step>)> {
        let Kernel::Recurrence7(what) = &self.kernel else {
            return None;
        };
        let up_of =
            |step: &Step, up: Weight| matches!(step, Step::Linear(product) if product.weight == up);
        let mut rest = self.parts.clone();
        let (mut parts, mut ends) = (Vec::new(), Vec::new());
        for pair in what.pairs() {
            let at = rest.iter().position(|step| up_of(step, pair.up))?;
            let Step::Linear(product) = rest.remove(at) else {
                return None;
            };
            let row = |bias: Weight| what.vectors.iter().position(|w| *w == bias);
            ends.push(PairEnd {
                pair: *pair,
                bias: match product.bias {
                    Some(bias) => Some(row(bias)?),
                    None => None,
                },
                function: product.function,
                y: product.y,
            });
            parts.push(Step::Linear(product));
        }
        let mut inputs: Vec<_> = what.pairs().map(|pair| pair.hidden).collect();
        let mut mixed = None;
        if let Some((_, first)) = what.value {
            let value = ends.last_mut()?;
            let node = |step: &Step| match step {
                Step::Node(index) => graph.nodes().get(*index),
                _ => None,
            };
            let mixes = |step: &Step| {
                node(step).is_some_and(|n| n.op == Op::Lerp && n.inputs == [what.v, first, value.y])
            };
            let lerp = rest.remove(rest.iter().position(mixes)?);
            value.y = *node(&lerp)?.outputs.first()?;
            parts.push(lerp);
            mixed = Some([what.v, first]);
            inputs.extend([what.v, first]);
        }
        let outputs = ends.iter().map(|end| end.y).collect();
        let kernel = Kernel::PairUps(Box::new(PairUps {
            ends,
            vectors: what.vectors.clone(),
            mixed,
        }));
        let group = Group {
            kernel,
            parts,
            inputs,
            outputs,
        };
        Some((group, rest))
    }

    /// What follows a recurrence of RWKV-7 as a group: its last parts. None for other groups.
    pub(crate) fn gated_heads(&self, graph: &Graph) -> Option<Group> {
        let Kernel::Recurrence7(what) = &self.kernel else {
            return None;
        };
        let parts = self.parts.get(self.parts.len().checked_sub(3)?..)?;
        let node = |step: &Step| match step {
            Step::Node(index) => graph.nodes().get(*index),
            _ => None,
        };
        let [norm, bonus, multiply] = [node(&parts[0])?, node(&parts[1])?, node(&parts[2])?];
        let (
            Op::Norm {
                weight,
                bias,
                group,
                epsilon,
            },
            Op::Bonus { weight: r_k, .. },
            Op::Multiply,
        ) = (&norm.op, &bonus.op, &multiply.op)
        else {
            return None;
        };
        let [normed, r, k, v] = bonus.inputs[..] else {
            return None;
        };
        let with_bonus = *bonus.outputs.first()?;
        let gate = multiply.inputs.iter().copied().find(|f| *f != with_bonus)?;
        let x = *norm.inputs.first()?;
        let row = |weight: &Weight| what.vectors.iter().position(|w| w == weight);
        let rows = [row(r_k)?, row(weight)?, row(bias)?];
        let right = norm.outputs.first() == Some(&normed) && multiply.inputs.contains(&with_bonus);
        right.then(|| {
            let kernel = Kernel::GatedHeads(Box::new(GatedHeads {
                head_size: *group,
                epsilon: *epsilon,
                x,
                r,
                k,
                v,
                gate,
                vectors: what.vectors.clone(),
                rows,
            }));
            Group {
                kernel,
                parts: parts.to_vec(),
                inputs: vec![x, r, k, v, gate],
                outputs: multiply.outputs.clone(),
            }
        })
    }
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

impl Grouping<'_> {
    /// What stands around the recurrence at `index`.
    pub(super) fn recurrence7(&self, index: usize) -> Option<Found> {
        let (Op::Wkv7 { layer, head_size }, inputs, outputs) = self.node(index)? else {
            return None;
        };
        let [r, w, k, kappa, v, a] = inputs.try_into().ok()?;
        let mut members = vec![index];
        let mut pair = |y: ValueId, lora: Lora, function: Function| {
            let found = self.pair(y, lora, function)?;
            members.push(found.at);
            Some((found.pair, found.bias))
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
            stores: None,
        };
        right.then(|| Found {
            kernel: Kernel::Recurrence7(Box::new(what)),
            members,
            at: last,
            outputs: y.to_vec(),
        })
    }
}
