//! Which buffer each value of a step lies in.

use super::choose::Chosen;
use crate::{BatchShape, Graph, Op, ValueId, fuse::Step};
use rwkv_kernels::{View, ops::HalfRows};
use std::collections::HashMap;

/// Bytes from which on a block may lie in a buffer of another size. Those of short steps are smaller: there memory matters
/// less than that kernels seldom meet.
const LARGE: u64 = 1 << 20;

/// A buffer for each value. A buffer is used again once its value was read for the last time; the one that has been
/// free for longest is taken, so that kernels that do not depend on each other seldom meet in one.
pub(super) struct Layout {
    /// Their bytes.
    pub(super) buffers: Vec<u64>,
    places: HashMap<ValueId, Place>,
}

/// A part of a buffer.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) buffer: usize,
    pub(super) offset: u64,
    pub(super) rows: usize,
    pub(super) width: usize,
    /// Whether it is f16, as [`HalfRows`] has it.
    pub(super) halves: bool,
}

/// The last step that makes or reads each value; one of which all rows are selected is read with those.
pub(super) fn last_uses(
    graph: &Graph,
    shape: BatchShape,
    steps: &[Step],
) -> HashMap<ValueId, usize> {
    let same = selections(graph, shape, steps);
    let mut last_use = HashMap::new();
    for (index, step) in steps.iter().enumerate() {
        for id in step.inputs(graph).into_iter().chain(step.outputs(graph)) {
            last_use.insert(id, index);
            last_use.extend(same.get(&id).map(|whole| (*whole, index)));
        }
    }
    last_use.extend(graph.results().iter().map(|result| (*result, usize::MAX)));
    last_use
}

impl Layout {
    /// The layout of what `chosen` says; `last_use` is that of its steps.
    pub(super) fn new(
        graph: &Graph,
        shape: BatchShape,
        chosen: &Chosen,
        last_use: &HashMap<ValueId, usize>,
    ) -> Self {
        Self::with_large(graph, shape, chosen, last_use, LARGE)
    }

    /// The same where blocks from `large` bytes on are large.
    pub(super) fn with_large(
        graph: &Graph,
        shape: BatchShape,
        chosen: &Chosen,
        last_use: &HashMap<ValueId, usize>,
        large: u64,
    ) -> Self {
        let steps = &chosen.steps;
        let same = selections(graph, shape, steps);
        let mut layout = Self {
            buffers: Vec::new(),
            places: HashMap::new(),
        };
        // Those that have been free for longest come first.
        let mut free: Vec<usize> = Vec::new();
        // How many values of a buffer are still to be read.
        let mut live: Vec<usize> = Vec::new();
        for (index, step) in steps.iter().enumerate() {
            if skipped(graph, shape, step) {
                continue;
            }
            let outputs = step.outputs(graph);
            for together in step.buffers(graph) {
                // Of values that several steps make in one buffer, the first has made the places of all.
                if together.iter().any(|y| layout.places.contains_key(y)) {
                    continue;
                }
                let kept = chosen.together.iter().find(|all| {
                    let member = |y: &ValueId| all.contains(y);
                    together.first().is_some_and(member)
                });
                let together = kept.cloned().unwrap_or(together);
                let block = |id: &ValueId| {
                    let value = graph.value(*id);
                    let rows = shape.rows(value.domain);
                    if chosen.halves.contains(id) {
                        HalfRows::bytes(rows, value.width)
                    } else {
                        View::block_bytes(rows, value.width)
                    }
                };
                let bytes = together.iter().map(block).fold(0, u64::saturating_add);
                let buffer = if let Some(at) = layout.best(&free, bytes, bytes >= large) {
                    free.remove(at)
                } else {
                    layout.buffers.push(0);
                    live.push(0);
                    live.len() - 1
                };
                layout.buffers[buffer] = bytes.max(layout.buffers[buffer]);
                live[buffer] = together.len();
                let mut offset = 0u64;
                for id in &together {
                    let value = graph.value(*id);
                    let place = Place {
                        buffer,
                        offset,
                        rows: shape.rows(value.domain),
                        width: value.width,
                        halves: chosen.halves.contains(id),
                    };
                    layout.places.insert(*id, place);
                    offset = block(id).saturating_add(offset);
                }
            }
            let mut done = step.inputs(graph);
            done.extend(&outputs);
            for id in &mut done {
                *id = same.get(id).copied().unwrap_or(*id);
            }
            done.sort_unstable();
            done.dedup();
            for id in done {
                if last_use.get(&id) == Some(&index)
                    && let Some(place) = layout.places.get(&id)
                {
                    let left = &mut live[place.buffer];
                    *left -= 1;
                    if *left == 0 {
                        free.push(place.buffer);
                    }
                }
            }
        }
        for (selected, whole) in same {
            if let Some(place) = layout.places.get(&whole) {
                layout.places.insert(selected, *place);
            }
        }
        layout
    }

    /// The place in `free` of the buffer that a block of `bytes` goes to: one of its size, or where it is `large` the
    /// smallest of up to twice its size, or else the largest from half its size on, which is made larger.
    fn best(&self, free: &[usize], bytes: u64, large: bool) -> Option<usize> {
        let size = |at: &usize| self.buffers[free[*at]];
        let all = 0..free.len();
        let same = all.clone().find(|at| size(at) == bytes);
        let suits =
            all.filter(|at| large && (bytes / 2..=bytes.saturating_mul(2)).contains(&size(at)));
        let larger = suits.clone().filter(|at| size(at) > bytes);
        let larger = larger.min_by_key(size);
        same.or(larger).or_else(|| suits.max_by_key(size))
    }

    /// Where a value lies.
    pub(super) fn place(&self, id: ValueId) -> Option<&Place> {
        self.places.get(&id)
    }
}

/// Whether a step only makes logits that nobody wants, or selects all rows.
pub(super) fn skipped(graph: &Graph, shape: BatchShape, step: &Step) -> bool {
    let mut made = step.outputs(graph).into_iter().peekable();
    let unwanted = made.peek().is_some() && made.all(|id| shape.rows(graph.value(id).domain) == 0);
    unwanted || selects_all(graph, shape, step).is_some()
}

/// What a step selects all rows of, after what it calls them: where every token's logits are wanted.
fn selects_all(graph: &Graph, shape: BatchShape, step: &Step) -> Option<(ValueId, ValueId)> {
    let Step::Node(index) = step else {
        return None;
    };
    let node = graph.nodes().get(*index)?;
    let all = matches!(node.op, Op::Select) && shape.wants_all();
    Some((*node.outputs.first()?, *node.inputs.first()?)).filter(|_| all)
}

fn selections(graph: &Graph, shape: BatchShape, steps: &[Step]) -> HashMap<ValueId, ValueId> {
    let all = steps
        .iter()
        .filter_map(|step| selects_all(graph, shape, step));
    all.collect()
}
