//! Steps on their way into groups.

use super::{Group, Kernel};
use crate::{
    Graph, Op, ValueId,
    fuse::{LinearStep, Step},
};
use std::collections::{HashMap, HashSet};

/// What the passes look at and change.
pub(super) struct Grouping<'a> {
    pub(super) graph: &'a Graph,
    pub(super) steps: Vec<Option<Step>>,
    /// The step that makes a value, and those that read it.
    pub(super) maker: HashMap<ValueId, usize>,
    pub(super) readers: HashMap<ValueId, Vec<usize>>,
}

/// A group that a pass has found.
pub(super) struct Found {
    pub(super) kernel: Kernel,
    pub(super) members: Vec<usize>,
    /// The member whose place it takes.
    pub(super) at: usize,
    pub(super) outputs: Vec<ValueId>,
}

impl<'a> Grouping<'a> {
    pub(super) fn new(graph: &'a Graph, steps: Vec<Step>) -> Self {
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
    pub(super) fn node(&self, index: usize) -> Option<(&'a Op, &'a [ValueId], &'a [ValueId])> {
        match self.steps.get(index)? {
            Some(Step::Node(node)) => {
                let node = self.graph.nodes().get(*node)?;
                Some((&node.op, &node.inputs, &node.outputs))
            }
            _ => None,
        }
    }

    pub(super) fn linear(&self, index: usize) -> Option<&LinearStep> {
        match self.steps.get(index)? {
            Some(Step::Linear(step)) => Some(step),
            _ => None,
        }
    }

    /// The only step that reads `value`.
    pub(super) fn only_reader(&self, value: ValueId) -> Option<usize> {
        match self.readers.get(&value)?[..] {
            [reader] if !self.graph.results().contains(&value) => Some(reader),
            _ => None,
        }
    }

    /// Makes what was found one group.
    pub(super) fn join_found(&mut self, found: Found) {
        let Found {
            kernel,
            members,
            at,
            outputs,
        } = found;
        self.join(kernel, members, at, &outputs);
    }

    /// Puts `members` in one group at the place of one of them, unless a value that the group keeps to itself is read
    /// elsewhere: `outputs` are those that may be.
    pub(super) fn join(
        &mut self,
        kernel: Kernel,
        mut members: Vec<usize>,
        at: usize,
        outputs: &[ValueId],
    ) {
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
                || self.graph.results().contains(y)
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

    pub(super) fn finish(self) -> Vec<Step> {
        self.steps.into_iter().flatten().collect()
    }
}
