//! Matrix products take what follows them element by element along: `W x`, `+ bias`, `f(…)`, `+ residual`.

use super::{LinearStep, Step};
use crate::{Graph, Op, ValueId};
use rwkv_kernels::ops::Function;

/// The steps that compute `graph`, in an order that respects it: products with their epilogues, and all else as it
/// stands.
pub(super) fn steps(graph: &Graph) -> Vec<Step> {
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
            stores: None,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BlockWeight as B, Lora, Weight};

    const WIDTH: usize = 8;

    fn weight(block: B) -> Weight {
        Weight::Block(0, block)
    }

    /// The epilogue of a product, or the name of a node, for each step.
    fn steps(graph: &Graph) -> Vec<String> {
        let name = |step| match step {
            Step::Node(index) => {
                let op = format!("{:?}", graph.nodes()[index].op);
                op.split([' ', '(']).next().unwrap_or_default().to_owned()
            }
            Step::Group(group) => format!("{:?}", group.kernel),
            Step::Linear(step) => {
                let mut text = "W x".to_owned();
                if step.bias.is_some() {
                    text += " + b";
                }
                if step.function != Function::Identity {
                    text = format!("{:?}({text})", step.function);
                }
                match step.residual {
                    Some(ValueId(id)) => text + &format!(" + {id}"),
                    None => text,
                }
            }
        };
        super::steps(graph).into_iter().map(name).collect()
    }

    /// Every value is made once, by a step before those that read it, and the result is among them.
    fn respects(graph: &Graph) -> bool {
        let mut made = Vec::new();
        for step in super::steps(graph) {
            let ready = step.inputs(graph).iter().all(|x| made.contains(x));
            let again = step.outputs(graph).iter().any(|y| made.contains(y));
            if !ready || again {
                return false;
            }
            made.extend(step.outputs(graph));
        }
        graph.results().iter().all(|result| made.contains(result))
    }

    #[test]
    fn epilogues() {
        // `build` gets the embedding, value 0.
        #[track_caller]
        fn check(build: fn(&mut Graph, ValueId) -> ValueId, want: &[&str]) {
            let mut graph = Graph::default();
            let x = graph.embed(Weight::Embedding, WIDTH);
            let y = build(&mut graph, x);
            graph.finish(y);
            assert_eq!(steps(&graph)[1..], *want);
            assert!(respects(&graph), "{graph:?}");
        }
        fn product(g: &mut Graph, x: ValueId) -> ValueId {
            g.matmul(x, weight(B::AttKey), WIDTH)
        }
        fn biased(g: &mut Graph, x: ValueId) -> ValueId {
            g.add_vector(x, weight(B::LoraBias(Lora::Rate)))
        }
        check(product, &["W x"]);
        check(
            |g, x| {
                let y = product(g, x);
                let y = biased(g, y);
                let y = g.apply(Function::Tanh, y);
                g.add(x, y)
            },
            &["Tanh(W x + b) + 0"],
        );
        check(
            |g, x| {
                let y = product(g, x);
                g.add(y, x)
            },
            &["W x + 0"],
        );
        // Version 6's gate and decay.
        check(
            |g, x| {
                let y = product(g, x);
                g.apply(Function::Silu, y)
            },
            &["Silu(W x)"],
        );
        check(
            |g, x| {
                let y = product(g, x);
                let y = biased(g, y);
                g.apply(Function::Decay6, y)
            },
            &["Decay6(W x + b)"],
        );
        // The kernel adds the bias before the function, and has one of each.
        check(
            |g, x| {
                let y = product(g, x);
                let y = g.apply(Function::Sigmoid, y);
                biased(g, y)
            },
            &["Sigmoid(W x)", "AddVector"],
        );
        check(
            |g, x| {
                let y = product(g, x);
                let y = biased(g, y);
                biased(g, y)
            },
            &["W x + b", "AddVector"],
        );
        check(
            |g, x| {
                let y = product(g, x);
                let y = g.apply(Function::Sigmoid, y);
                g.apply(Function::Decay7, y)
            },
            &["Sigmoid(W x)", "Apply"],
        );
        // The residual comes last.
        check(
            |g, x| {
                let y = product(g, x);
                let y = g.add(x, y);
                g.apply(Function::Tanh, y)
            },
            &["W x + 0", "Apply"],
        );
        // A product that is used twice stays a value of its own.
        check(
            |g, x| {
                let y = product(g, x);
                let z = g.apply(Function::Sigmoid, y);
                g.multiply(y, z)
            },
            &["W x", "Apply", "Multiply"],
        );
        check(
            |g, x| {
                let y = product(g, x);
                g.add(y, y)
            },
            &["W x", "Add"],
        );
        // So does one that is the result.
        check(
            |g, x| {
                let y = product(g, x);
                g.apply(Function::Tanh, y);
                y
            },
            &["W x", "Apply"],
        );
        // A residual that is made after the product cannot be added to it; the later of two products takes the other.
        check(
            |g, x| {
                let y = product(g, x);
                let late = g.multiply(x, x);
                g.add(y, late)
            },
            &["W x", "Multiply", "Add"],
        );
        check(
            |g, x| {
                let y = product(g, x);
                let z = product(g, x);
                g.add(y, z)
            },
            &["W x", "W x + 1"],
        );
        // What stands between a product and its epilogue runs after it, and may be used by others.
        check(
            |g, x| {
                let y = product(g, x);
                let z = g.multiply(x, x);
                let y = biased(g, y);
                g.multiply(y, z)
            },
            &["W x + b", "Multiply", "Multiply"],
        );
    }
}
