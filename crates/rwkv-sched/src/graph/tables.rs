//! Tables whose rows somebody else looks up.

use super::{Graph, Node, Op, ValueId};
use crate::Weight;
use std::collections::HashSet;

impl Graph {
    /// The lookups in tables of tokens: what each makes, and of which table.
    pub(crate) fn lookups(&self) -> impl Iterator<Item = (ValueId, Weight)> {
        self.nodes.iter().filter_map(|node| match node.op {
            Op::Embed { table } => Some((*node.outputs.first()?, table)),
            _ => None,
        })
    }

    /// The same with inputs for what is looked up in `tables`. They come first, as all inputs do; values keep their
    /// numbers.
    pub(crate) fn without_tables(&self, tables: &HashSet<Weight>) -> Self {
        let is_input =
            |node: &Node| matches!(&node.op, Op::Embed { table } if tables.contains(table));
        let mut inputs = Vec::new();
        let mut nodes = Vec::new();
        // How many nodes there are before each once the inputs have left, and at the end.
        let mut before = Vec::with_capacity(self.nodes.len() + 1);
        for node in &self.nodes {
            before.push(nodes.len());
            if is_input(node) {
                inputs.push(Node {
                    op: Op::Input,
                    ..node.clone()
                });
            } else {
                nodes.push(node.clone());
            }
        }
        before.push(nodes.len());
        let layers = self.layers.iter().filter_map(|at| before.get(*at));
        Self {
            values: self.values.clone(),
            layers: layers.map(|at| at + inputs.len()).collect(),
            results: self.results.clone(),
            nodes: inputs.into_iter().chain(nodes).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Version, fuse::small_graph};

    const LAYERS: usize = 3;

    /// What is left is the same but for the lookups, which are inputs before everything else; and layers begin where they
    /// did.
    #[test]
    fn lookups_become_inputs() {
        for version in Version::ALL {
            let whole = small_graph(version, LAYERS);
            for part in [whole.clone(), whole.part(0..2), whole.part(1..3)] {
                let tables: HashSet<Weight> = part.lookups().map(|(_, table)| table).collect();
                let left = part.without_tables(&tables);
                assert_eq!(left.lookups().count(), 0);
                let made: Vec<_> = part.lookups().map(|(id, _)| id).collect();
                let inputs: HashSet<_> = left.inputs().collect();
                let earlier: Vec<_> = part.inputs().collect();
                assert_eq!(inputs.len(), made.len() + earlier.len(), "{version}");
                assert!(made.iter().chain(&earlier).all(|id| inputs.contains(id)));
                let is_input = |node: &&Node| node.op == Op::Input;
                let first = left.nodes().iter().take_while(is_input).count();
                assert_eq!(first, inputs.len(), "{version}");
                let rest = |graph: &Graph| -> Vec<Node> {
                    let own = graph.nodes().iter();
                    let own = own.filter(|n| !matches!(n.op, Op::Input | Op::Embed { .. }));
                    own.cloned().collect()
                };
                assert_eq!(rest(&left), rest(&part), "{version}");
                assert_eq!(left.results(), part.results());
                for (at, was) in left.layers.iter().zip(&part.layers) {
                    assert_eq!(left.nodes.get(*at), part.nodes.get(*was), "{version}");
                }
                // None of them taken is the same graph.
                assert_eq!(part.without_tables(&HashSet::new()).nodes(), part.nodes());
            }
            let count = whole.lookups().count();
            let want = if version == Version::V7a {
                1 + LAYERS
            } else {
                1
            };
            assert_eq!(count, want, "{version}");
        }
    }
}
