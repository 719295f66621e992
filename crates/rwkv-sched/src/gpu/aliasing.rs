//! That the planned places never overlap while their values live: a step by step account of what each word of each
//! buffer holds, for random graphs, fusions and batches.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

use super::{
    choose::Chosen,
    layout::{Layout, Place, last_uses, skipped},
};
use crate::{
    BatchShape, BlockWeight as B, Graph, ShiftHalf, ValueId, Version, Weight,
    fuse::{
        Group, Kernel, Step, fuse, fuse_decode, join_channel_mixes, join_norms, join_outputs,
        small_graph,
    },
};
use proptest::prelude::*;
use rwkv_kernels::{
    View,
    ops::{Function, HalfRows, Weighs},
};
use std::{
    collections::{HashMap, HashSet},
    ops::Range,
};

/// Words of memory, by what is in them.
struct Memory<'a> {
    layout: &'a Layout,
    buffers: Vec<Vec<Option<ValueId>>>,
}

impl Memory<'_> {
    fn place(&self, id: ValueId) -> Result<(usize, Range<usize>), String> {
        let place = self.layout.place(id).copied();
        let place = place.ok_or_else(|| format!("{id:?} has no place"))?;
        let words = words(&place);
        let size = self.buffers[place.buffer].len();
        if words.end > size {
            return Err(format!("{id:?} at {words:?} of a buffer of {size} words"));
        }
        Ok((place.buffer, words))
    }

    fn write(&mut self, id: ValueId) -> Result<(), String> {
        let (buffer, words) = self.place(id)?;
        self.buffers[buffer][words].fill(Some(id));
        Ok(())
    }

    fn holds(&self, id: ValueId) -> Result<(), String> {
        let (buffer, words) = self.place(id)?;
        match self.buffers[buffer][words.clone()]
            .iter()
            .find(|held| **held != Some(id))
        {
            None => Ok(()),
            Some(other) => Err(format!("{other:?} lies where {id:?} is")),
        }
    }
}

fn words(place: &Place) -> Range<usize> {
    let bytes = if place.halves {
        HalfRows::bytes(place.rows, place.width)
    } else {
        View::bytes(place.rows, place.width)
    };
    let first = place.offset as usize;
    first / 4..(first + bytes as usize).div_ceil(4)
}

/// The values that a step changes where they lie.
fn changed(step: &Step) -> Option<ValueId> {
    match step {
        Step::Group(group) => match &group.kernel {
            Kernel::RecurrenceOutput7 { x, .. } => Some(*x),
            Kernel::ChannelMix { y } => Some(*y),
            _ => None,
        },
        _ => None,
    }
}

/// Runs the steps in memory: what a step reads must be what was written there, and what it writes must lie in other
/// buffers than what it reads, because a kernel binds whole buffers.
fn check(graph: &Graph, shape: BatchShape, chosen: &Chosen, large: u64) -> Result<(), String> {
    let last_use = last_uses(graph, shape, &chosen.steps);
    let layout = Layout::with_large(graph, shape, chosen, &last_use, large);
    let mut memory = Memory {
        layout: &layout,
        buffers: layout
            .buffers
            .iter()
            .map(|bytes| vec![None; bytes.div_ceil(4) as usize])
            .collect(),
    };
    // The host writes them before anything runs.
    for id in graph.inputs() {
        memory.write(id)?;
    }
    // Where a step that selects all rows is left out, what it makes is what it reads.
    let mut same: HashMap<ValueId, ValueId> = HashMap::new();
    for step in &chosen.steps {
        let at = |error: String| format!("{error}, at {step:?} of {:?}", chosen.steps);
        let (inputs, outputs) = (step.inputs(graph), step.outputs(graph));
        if skipped(graph, shape, step) {
            let unwanted = outputs.iter().all(|y| layout.place(*y).is_none());
            if let ([x], [y], false) = (&inputs[..], &outputs[..], unwanted) {
                same.insert(*y, *x);
            }
            continue;
        }
        let inputs: Vec<_> = inputs
            .iter()
            .map(|id| same.get(id).copied().unwrap_or(*id))
            .collect();
        for x in &inputs {
            memory.holds(*x).map_err(at)?;
        }
        let changed = changed(step);
        let written: HashSet<_> = outputs.iter().copied().chain(changed).collect();
        for y in &written {
            let (buffer, _) = memory.place(*y).map_err(at)?;
            for x in inputs.iter().filter(|x| Some(**x) != changed) {
                if memory.place(*x).map_err(at)?.0 == buffer {
                    return Err(at(format!("{x:?} is read where {y:?} is written")));
                }
            }
        }
        for y in outputs
            .iter()
            .filter(|y| !graph.inputs().any(|id| id == **y))
        {
            memory.write(*y).map_err(at)?;
        }
        for y in &outputs {
            memory.holds(*y).map_err(at)?;
        }
        for together in step.buffers(graph) {
            let buffers: Result<HashSet<_>, _> = together
                .iter()
                .map(|y| memory.place(*y).map(|(buffer, _)| buffer))
                .collect();
            if buffers?.len() > 1 {
                return Err(at(format!("{together:?} do not lie together")));
            }
        }
    }
    let made = |id: &&ValueId| shape.rows(graph.value(**id).domain) > 0;
    graph
        .results()
        .iter()
        .filter(made)
        .try_for_each(|id| memory.holds(same.get(id).copied().unwrap_or(*id)))
}

/// From which size on blocks lie in buffers of other sizes: all, some, or none.
fn large() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), 0u64..2000, Just(u64::MAX)]
}

fn shapes() -> impl Strategy<Value = BatchShape> {
    (1usize..12, any::<usize>(), any::<usize>(), 0u8..4).prop_map(
        |(tokens, spans, outputs, all)| BatchShape {
            tokens,
            spans: 1 + spans % tokens,
            outputs: match all {
                0 => tokens,
                1 => 0,
                _ => outputs % (tokens + 1),
            },
        },
    )
}

/// A graph of operations on values of a few widths: each number picks an operation or an operand.
fn random_graph(operations: &[(u8, [usize; 3])]) -> Graph {
    let mut g = Graph::default();
    let weight = |i: usize| Weight::Block(i, B::AttKey);
    let mut values = vec![g.embed(Weight::Embedding, 16)];
    for (i, (operation, operands)) in operations.iter().enumerate() {
        let x = values[operands[0] % values.len()];
        let width = g.value(x).width;
        let alike: Vec<_> = values
            .iter()
            .copied()
            .filter(|id| g.value(*id).width == width)
            .collect();
        let [y, t] = [1, 2].map(|n| alike[operands[n] % alike.len()]);
        match operation {
            0 => values.push(g.add(x, y)),
            1 => values.push(g.multiply(x, y)),
            2 => values.push(g.lerp(x, y, t)),
            3 => values.push(g.layer_norm(x, weight(i), weight(i), 1e-5)),
            4 => values.push(g.apply(Function::SquaredRelu, x)),
            5 => values.push(g.previous(x, i, ShiftHalf::Att)),
            6 => {
                let mixes = [weight(i); 3];
                let weighs = Weighs::Previous;
                values.extend(g.token_shift(x, i, ShiftHalf::Att, weighs, mixes));
            }
            _ => values.push(g.matmul(x, weight(i), [16, 24, 60][operands[1] % 3])),
        }
    }
    let last = values[values.len() - 1];
    let x = g.select(last);
    let x = g.layer_norm(
        x,
        Weight::OutputNorm(crate::Affine::Weight),
        weight(0),
        1e-5,
    );
    let logits = g.matmul(x, Weight::Head, 30);
    g.finish(logits);
    g
}

/// The steps of `all`, without some of its groups; `bits` says which.
fn apart(all: Vec<Step>, bits: u64) -> Chosen {
    let mut chosen = Chosen::default();
    for (i, step) in all.into_iter().enumerate() {
        match step {
            Step::Group(group) if bits >> (i % 64) & 1 == 1 => {
                // As where a group's kernel does not suit, and those that read its results bind them together.
                if matches!(group.kernel, Kernel::Project) {
                    chosen.together.push(group.outputs.clone());
                }
                chosen.steps.extend(group.parts);
            }
            step => chosen.steps.push(step),
        }
    }
    chosen
}

/// Which values of the graph are rounded.
fn halves(graph: &Graph, bits: u64) -> HashSet<ValueId> {
    let all = (0..graph.value_count()).map(ValueId);
    all.filter(|id| bits >> (id.0 % 64) & 1 == 1).collect()
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn random_graphs(
        operations in prop::collection::vec((0u8..9, any::<[usize; 3]>()), 1..60),
        shape in shapes(),
        rounded in prop_oneof![Just(0), any::<u64>()],
        large in large(),
    ) {
        let graph = random_graph(&operations);
        let chosen = Chosen {
            steps: fuse(&graph),
            halves: halves(&graph, rounded),
            ..Chosen::default()
        };
        prop_assert_eq!(check(&graph, shape, &chosen, large), Ok(()));
    }

    /// Those of models and their parts, of which any groups are taken apart, or where one token's are joined.
    #[test]
    fn models(
        version in prop::sample::select(vec![
            Version::V4, Version::V5_0, Version::V5_1, Version::V5_2, Version::V6, Version::V7, Version::V7a,
        ]),
        layers in 1usize..4,
        shape in shapes(),
        together in prop_oneof![Just(0), Just(u64::MAX), any::<u64>()],
        joined in any::<[bool; 3]>(),
        rounded in prop_oneof![Just(0), any::<u64>()],
        part in any::<[usize; 2]>(),
        large in large(),
    ) {
        let first = part[0] % layers;
        let graph = small_graph(version, layers).part(first..first + 1 + part[1] % (layers - first));
        let mut steps = fuse_decode(&graph);
        let all = |_: &Group| true;
        let one = BatchShape { tokens: 1, spans: 1, outputs: shape.outputs.min(1) };
        let shape = if joined[0] { one } else { shape };
        if joined[0] {
            steps = join_norms(&graph, steps, &all);
            if joined[1] {
                steps = join_channel_mixes(&graph, steps, &all);
            }
            if joined[1] && joined[2] {
                steps = join_outputs(&graph, steps, &all);
            }
        }
        let mut chosen = if joined[0] {
            Chosen { steps, ..Chosen::default() }
        } else {
            apart(steps, together)
        };
        chosen.halves = halves(&graph, rounded);
        prop_assert_eq!(check(&graph, shape, &chosen, large), Ok(()));
    }
}
