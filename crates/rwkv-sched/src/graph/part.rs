//! Cutting a graph between layers.

use super::{Graph, Node, Op, ValueId};
use std::{
    collections::{BTreeSet, HashSet},
    ops::Range,
};

impl Graph {
    /// The nodes of some of its layers; the first layer brings those before it, the last one those after it. Values keep
    /// their numbers: what earlier layers have made are its inputs, what later ones read its results.
    pub(crate) fn part(&self, layers: Range<usize>) -> Self {
        let start = match layers.start {
            0 => 0,
            first => self.start_of(first),
        };
        let end = self.start_of(layers.end);
        let nodes = self.nodes.get(start..end).unwrap_or_default();
        let later = self.nodes.get(end..).unwrap_or_default();
        let made: HashSet<ValueId> = nodes.iter().flat_map(|n| &n.outputs).copied().collect();
        let read = |nodes: &[Node]| -> BTreeSet<ValueId> {
            nodes.iter().flat_map(|n| &n.inputs).copied().collect()
        };
        let inputs = read(nodes).into_iter().filter(|id| !made.contains(id));
        let inputs: Vec<Node> = inputs
            .map(|id| Node {
                op: Op::Input,
                inputs: Vec::new(),
                outputs: vec![id],
            })
            .collect();
        let mut results = read(later);
        results.extend(&self.results);
        results.retain(|id| made.contains(id));
        let begun = self.layers.get(layers.clone()).unwrap_or_default();
        Self {
            values: self.values.clone(),
            layers: begun.iter().map(|at| at - start + inputs.len()).collect(),
            results: results.into_iter().collect(),
            nodes: inputs
                .into_iter()
                .chain(nodes.iter().map(|node| node.in_part(layers.start)))
                .collect(),
        }
    }

    /// The first node of a layer; the end, after the last one.
    fn start_of(&self, layer: usize) -> usize {
        let start = self.layers.get(layer).copied();
        start.unwrap_or(self.nodes.len())
    }
}

impl Node {
    /// The same where layers are counted from `first`.
    fn in_part(&self, first: usize) -> Self {
        let mut node = self.clone();
        if let Some(layer) = node.op.layer_mut() {
            *layer -= first;
        }
        node
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Domain, Version, fuse::small_graph};

    const LAYERS: usize = 5;

    /// From a cut on, as many values are read as the version needs, and no others.
    #[test]
    fn what_crosses() {
        for (version, count) in [
            (Version::V4, 1),
            (Version::V5_0, 1),
            (Version::V5_1, 1),
            (Version::V5_2, 1),
            (Version::V6, 1),
            // The first layer's value.
            (Version::V7, 2),
            // The normed embedding.
            (Version::V7a, 3),
        ] {
            let whole = small_graph(version, LAYERS);
            for cut in 1..LAYERS {
                let (first, second) = (whole.part(0..cut), whole.part(cut..LAYERS));
                let inputs: Vec<_> = second.inputs().collect();
                assert_eq!(inputs.len(), count, "{version}, {cut}");
                assert_eq!(first.results(), inputs, "{version}, {cut}");
                for id in inputs {
                    let value = whole.value(id);
                    assert_eq!((value.domain, value.width), (Domain::Tokens, 16));
                }
                assert_eq!(first.inputs().count(), 0);
                assert_eq!(second.results(), whole.results());
                assert_eq!((first.logits(), second.logits()), (None, whole.logits()));
            }
            // In the middle nobody makes the first layer's values again.
            let middle = whole.part(2..3);
            assert_eq!(
                (middle.inputs().count(), middle.results().len()),
                (count, 1)
            );
        }
    }

    /// Parts have the nodes of the whole, one after the other, but for which layer of theirs a state belongs to; and a part
    /// of a part is one of the whole.
    #[test]
    fn parts_make_the_whole() {
        for version in Version::ALL {
            let whole = small_graph(version, LAYERS);
            let parts = [0..2, 2..3, 3..5].map(|range| (range.start, whole.part(range)));
            let mut nodes = Vec::new();
            for (first, part) in &parts {
                let own = part.nodes().iter().filter(|node| node.op != Op::Input);
                nodes.extend(own.cloned().map(|mut node| {
                    if let Some(layer) = node.op.layer_mut() {
                        *layer += first;
                    }
                    node
                }));
            }
            assert_eq!(nodes, whole.nodes(), "{version}");
            let (again, direct) = (parts[0].1.part(1..2), whole.part(1..2));
            assert_eq!(again.nodes(), direct.nodes(), "{version}");
            assert_eq!(again.results(), direct.results(), "{version}");
        }
    }
}
