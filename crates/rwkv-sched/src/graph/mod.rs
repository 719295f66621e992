//! A logical graph: a version of RWKV as a list of operations on values, in the order of its equations.

mod build;
mod op;
mod part;
mod tables;

pub use op::{Op, ShiftHalf};

/// What the rows of a value stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Domain {
    /// The tokens of the batch.
    Tokens,
    /// The tokens whose logits are wanted.
    Outputs,
}

/// A value: an activation of some rows, all of one width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Value {
    /// What a row is.
    pub domain: Domain,
    /// Elements a row.
    pub width: usize,
}

/// A value's number in its graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub(crate) usize);

/// An operation with its operands; each value is made by one node, before the nodes that use it.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// What is computed.
    pub op: Op,
    /// Operands.
    pub inputs: Vec<ValueId>,
    /// Results.
    pub outputs: Vec<ValueId>,
}

/// The equations of a model.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    nodes: Vec<Node>,
    values: Vec<Value>,
    /// The first node of each layer.
    layers: Vec<usize>,
    results: Vec<ValueId>,
}

impl Graph {
    /// The nodes, each after those it depends on.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// How many values there are.
    pub fn value_count(&self) -> usize {
        self.values.len()
    }

    /// A value.
    pub fn value(&self, id: ValueId) -> Value {
        self.values[id.0]
    }

    /// What is brought to it: values of other parts of a model, and rows of tables that are looked up elsewhere.
    pub fn inputs(&self) -> impl Iterator<Item = ValueId> {
        let inputs = self.nodes.iter().filter(|node| node.op == Op::Input);
        inputs.flat_map(|node| node.outputs.iter().copied())
    }

    /// What it is computed for: the logits, or what other parts of a model read.
    pub fn results(&self) -> &[ValueId] {
        &self.results
    }

    /// The logits: one row a wanted token, one element a token of the vocabulary. A part without the head has none.
    pub fn logits(&self) -> Option<ValueId> {
        let mut results = self.results.iter().copied();
        results.find(|id| self.value(*id).domain == Domain::Outputs)
    }

    /// For each value, how many times it is used; a result counts as used once more.
    pub fn uses(&self) -> Vec<usize> {
        let mut uses = vec![0; self.values.len()];
        for id in self
            .nodes
            .iter()
            .flat_map(|n| &n.inputs)
            .chain(&self.results)
        {
            uses[id.0] += 1;
        }
        uses
    }
}
