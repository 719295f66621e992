//! From the logical graph to a shorter list of steps, each one kernel's work.
//!
//! A matrix product takes what follows it element by element along: `W x`, `+ bias`, `f(…)`, `+ residual`.

use crate::{Graph, Op, ValueId, Weight};
use rwkv_kernels::ops::Function;

/// What one kernel does.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// A node as it stands, by its index.
    Node(usize),
    /// `y = function(W x + bias) + residual`.
    Linear(LinearStep),
}

/// A matrix product with its epilogue.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LinearStep {
    pub(crate) x: ValueId,
    pub(crate) weight: Weight,
    pub(crate) bias: Option<Weight>,
    pub(crate) function: Function,
    pub(crate) residual: Option<ValueId>,
    pub(crate) y: ValueId,
}

impl Step {
    /// The values that it reads.
    pub(crate) fn inputs(&self, graph: &Graph) -> Vec<ValueId> {
        match self {
            Self::Node(index) => graph.nodes()[*index].inputs.clone(),
            Self::Linear(step) => [step.x].into_iter().chain(step.residual).collect(),
        }
    }

    /// The values that it makes.
    pub(crate) fn outputs(&self, graph: &Graph) -> Vec<ValueId> {
        match self {
            Self::Node(index) => graph.nodes()[*index].outputs.clone(),
            Self::Linear(step) => vec![step.y],
        }
    }
}

/// The steps that compute `graph`, in an order that respects it.
pub(crate) fn fuse(graph: &Graph) -> Vec<Step> {
    let uses = graph.uses();
    let mut taken = vec![false; graph.nodes().len()];
    let mut steps = Vec::new();
    for (index, node) in graph.nodes().iter().enumerate() {
        if taken[index] {
            continue;
        }
        let Op::MatMul { weight } = node.op else {
            steps.push(Step::Node(index));
            continue;
        };
        let mut step = LinearStep {
            x: node.inputs[0],
            weight,
            bias: None,
            function: Function::Identity,
            residual: None,
            y: node.outputs[0],
        };
        // The one node that uses the product so far, if there is only one.
        let next = |y: ValueId| {
            let only = uses[y.0] == 1;
            graph
                .nodes()
                .iter()
                .enumerate()
                .skip(index + 1)
                .find(|(_, n)| only && n.inputs.contains(&y))
        };
        while let Some((at, following)) = next(step.y) {
            match &following.op {
                Op::AddVector { vector }
                    if step.bias.is_none() && step.function == Function::Identity =>
                {
                    step.bias = Some(*vector);
                }
                Op::Apply(function) if step.function == Function::Identity => {
                    step.function = *function;
                }
                Op::Add => {
                    let other = following.inputs.iter().copied().find(|i| *i != step.y);
                    // The residual must be there when the product is made.
                    step.residual = other.filter(|o| o.0 < node.outputs[0].0);
                    if step.residual.is_none() {
                        break;
                    }
                }
                _ => break,
            }
            taken[at] = true;
            step.y = following.outputs[0];
            if step.residual.is_some() {
                break;
            }
        }
        steps.push(Step::Linear(step));
    }
    steps
}
