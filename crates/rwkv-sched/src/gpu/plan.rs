//! A plan: for one batch shape, a buffer for each value, and every dispatch resolved.

use super::{blend::ActiveWeights, choose, resolve::Resolver, states::States};
use crate::{Domain, Error, Model, Op, Result, ValueId, batch::Tables, fuse::Step};
use rayon::prelude::*;
use rwkv_gpu::{Binding, Buffer, BufferKind, Dispatch, Gpu, Pipeline};
use rwkv_kernels::{BatchTables, Kernels, View, tuning::Problem};
use rwkv_mem::{Pool, Pooled};
use std::{
    collections::{HashMap, HashSet, VecDeque},
    ops::Range,
    sync::Arc,
};

/// What batches must agree in to share a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct BatchShape {
    pub(super) tokens: usize,
    pub(super) spans: usize,
    pub(super) outputs: usize,
}

/// What plans are made from.
pub(super) struct Context<'a> {
    pub(super) model: &'a Model,
    /// Which only declare their pipelines.
    pub(super) kernels: &'a Kernels,
    pub(super) pool: &'a Pool,
    pub(super) weights: ActiveWeights<'a>,
    pub(super) states: &'a States,
    pub(super) steps: &'a [Step],
    /// The same for batches in which every span is one token, in groups.
    pub(super) decode_steps: &'a [Step],
    /// Whether all sums must be in one order whatever the batch.
    pub(super) deterministic: bool,
}

/// Everything that a step of one batch shape does.
pub(super) struct Plan {
    shape: BatchShape,
    dispatches: Vec<Dispatch>,
    /// Which of them can be cut in several ways: where their kernels were observed.
    problems: Vec<(Range<usize>, Problem)>,
    tables: TableBuffer,
    logits: Option<(Buffer, u64)>,
    /// Activations: held so that nobody else takes them.
    _buffers: Vec<Pooled>,
}

impl Plan {
    /// Resolves the steps for batches of `shape`. It can be launched when its pipelines are [compiled](compile).
    pub(super) fn new(context: &Context<'_>, shape: BatchShape) -> Result<Self> {
        let tables = TableBuffer::new(context.kernels.gpu(), context.pool, shape)?;
        let steps = if shape.tokens == shape.spans {
            choose::decode_steps(context, shape.tokens)
        } else {
            context.steps.to_vec()
        };
        let activations = Activations::assign(context, shape, &steps)?;
        let resolver = Resolver {
            context,
            activations: &activations,
            batch: tables.bindings(shape),
        };
        let mut dispatches = Vec::new();
        let mut problems = Vec::new();
        // Which groups suit depends on the same questions.
        context.kernels.asked();
        for step in &steps {
            if !skipped(context, shape, step) {
                let first = dispatches.len();
                resolver.resolve(step, &mut dispatches)?;
                let asked = context.kernels.asked().pop();
                problems.extend(asked.map(|problem| (first..dispatches.len(), problem)));
            }
        }
        let logits = match context.model.graph().logits() {
            Some(id) if shape.outputs > 0 => {
                let view = activations.view(id)?;
                Some((view.buffer.clone(), view.offset))
            }
            _ => None,
        };
        Ok(Self {
            shape,
            dispatches,
            problems,
            logits,
            _buffers: activations.buffers,
            tables,
        })
    }

    pub(super) fn dispatches(&self) -> &[Dispatch] {
        &self.dispatches
    }

    /// Which dispatches can be cut in several ways, if the kernels were observed.
    pub(super) fn problems(&self) -> &[(Range<usize>, Problem)] {
        &self.problems
    }

    /// What is to be compiled before it is launched; many dispatches share one.
    pub(super) fn pipelines(&self) -> impl Iterator<Item = &Arc<Pipeline>> {
        self.dispatches.iter().map(|dispatch| &dispatch.pipeline)
    }

    /// The table of tokens: what the next step's embedding looks up.
    pub(super) fn tokens(&self) -> Binding<'_> {
        self.tables.bindings(self.shape).tokens
    }

    /// Where the logits come out, if any are wanted.
    pub(super) fn logits(&self) -> Option<(&Buffer, u64)> {
        self.logits
            .as_ref()
            .map(|(buffer, offset)| (buffer, *offset))
    }

    /// Writes what differs between steps of one shape.
    pub(super) fn write_tables(&self, gpu: &Gpu, tables: &Tables) -> Result<()> {
        self.tables.write(gpu, tables)
    }
}

/// Compiles `pipelines` side by side, each once. They are known before the first is compiled, because the layers of a
/// model need the same ones in the same order: threads that resolved layers side by side would all wait for one.
pub(super) fn compile<'a>(
    gpu: &Gpu,
    pipelines: impl IntoIterator<Item = &'a Arc<Pipeline>>,
) -> Result<()> {
    let mut seen = HashSet::new();
    let distinct: Vec<_> = pipelines
        .into_iter()
        .filter(|pipeline| seen.insert(Arc::as_ptr(pipeline)))
        .collect();
    let compiled: Vec<_> = distinct
        .par_iter()
        // One at a time: some take a hundred times as long as others.
        .with_max_len(1)
        .map(|pipeline| gpu.compile(pipeline))
        .collect();
    // The first error is that of the first dispatch, whichever thread was faster.
    Ok(compiled.into_iter().collect::<rwkv_gpu::Result<()>>()?)
}

/// The batch's tables in one buffer, written at once.
struct TableBuffer {
    buffer: Pooled,
    /// First bytes of tokens, spans and outputs.
    offsets: [u64; 3],
}

impl TableBuffer {
    fn new(gpu: &Gpu, pool: &Pool, shape: BatchShape) -> Result<Self> {
        let alignment = gpu.capabilities().limits.offset_alignment;
        let sizes = [shape.tokens * 8, shape.spans * 16, shape.outputs.max(1) * 4];
        let mut end = 0;
        let offsets = sizes.map(|size| {
            let start = end;
            end = (start + size as u64).next_multiple_of(alignment);
            start
        });
        Ok(Self {
            buffer: pool.take(BufferKind::Storage, "batch", end)?,
            offsets,
        })
    }

    fn bindings(&self, shape: BatchShape) -> BatchTables<'_> {
        let sizes = [shape.tokens * 8, shape.spans * 16, shape.outputs.max(1) * 4];
        let binding = |i: usize| Binding {
            buffer: &self.buffer,
            offset: self.offsets[i],
            size: Some(sizes[i] as u64),
        };
        BatchTables {
            tokens: binding(0),
            spans: binding(1),
            outputs: binding(2),
            span_count: shape.spans,
        }
    }

    fn write(&self, gpu: &Gpu, tables: &Tables) -> Result<()> {
        let mut bytes = bytemuck::cast_slice(&tables.tokens).to_vec();
        let rest: [(u64, &[u8]); 2] = [
            (self.offsets[1], bytemuck::cast_slice(&tables.spans)),
            (self.offsets[2], bytemuck::cast_slice(&tables.outputs)),
        ];
        for (offset, section) in rest {
            bytes.resize(usize::try_from(offset).unwrap_or(usize::MAX), 0);
            bytes.extend_from_slice(section);
        }
        Ok(gpu.write(&self.buffer, 0, &bytes)?)
    }
}

/// A buffer for each value. A buffer is used again once its value was read for the last time; the one that has been
/// free for longest is taken, so that kernels that do not depend on each other seldom meet in one.
pub(super) struct Activations {
    buffers: Vec<Pooled>,
    places: HashMap<ValueId, Place>,
}

/// A part of a buffer.
#[derive(Clone, Copy)]
struct Place {
    buffer: usize,
    offset: u64,
    rows: usize,
    width: usize,
}

impl Activations {
    fn assign(context: &Context<'_>, shape: BatchShape, steps: &[Step]) -> Result<Self> {
        let graph = context.model.graph();
        let selections = steps.iter().filter_map(|s| selects_all(context, shape, s));
        let same: HashMap<ValueId, ValueId> = selections.collect();
        let made_as = |id: ValueId| same.get(&id).copied().unwrap_or(id);
        let mut last_use: HashMap<ValueId, usize> = HashMap::new();
        for (index, step) in steps.iter().enumerate() {
            for id in step.inputs(graph).into_iter().chain(step.outputs(graph)) {
                last_use.insert(made_as(id), index);
            }
        }
        if let Some(logits) = graph.logits() {
            last_use.insert(logits, usize::MAX);
        }
        let mut activations = Self {
            buffers: Vec::new(),
            places: HashMap::new(),
        };
        let mut free: HashMap<u64, VecDeque<usize>> = HashMap::new();
        // How many values of a buffer are still to be read, and its size.
        let mut live: Vec<(usize, u64)> = Vec::new();
        for (index, step) in steps.iter().enumerate() {
            if skipped(context, shape, step) {
                continue;
            }
            let outputs = step.outputs(graph);
            for together in step.buffers(graph) {
                let block = |id: &ValueId| {
                    let value = graph.value(*id);
                    View::block_bytes(shape.rows(value.domain), value.width)
                };
                let bytes: u64 = together.iter().map(block).sum();
                let shelf = free.entry(bytes).or_default();
                let buffer = if let Some(buffer) = shelf.pop_front() {
                    buffer
                } else {
                    activations.buffers.push(context.pool.take(
                        BufferKind::Storage,
                        "activation",
                        bytes,
                    )?);
                    live.push((0, bytes));
                    live.len() - 1
                };
                live[buffer].0 = together.len();
                let mut offset = 0;
                for id in &together {
                    let value = graph.value(*id);
                    let place = Place {
                        buffer,
                        offset,
                        rows: shape.rows(value.domain),
                        width: value.width,
                    };
                    activations.places.insert(*id, place);
                    offset += block(id);
                }
            }
            let mut done = step.inputs(graph);
            done.extend(&outputs);
            done = done.into_iter().map(made_as).collect();
            done.sort_unstable();
            done.dedup();
            for id in done {
                if last_use.get(&id) == Some(&index)
                    && let Some(place) = activations.places.get(&id)
                {
                    let (left, bytes) = &mut live[place.buffer];
                    *left -= 1;
                    if *left == 0 {
                        free.entry(*bytes).or_default().push_back(place.buffer);
                    }
                }
            }
        }
        for (selected, whole) in same {
            if let Some(place) = activations.places.get(&whole) {
                activations.places.insert(selected, *place);
            }
        }
        Ok(activations)
    }

    /// Where a value lies.
    pub(super) fn view(&self, id: ValueId) -> Result<View<'_>> {
        match self.places.get(&id) {
            Some(place) => Ok(View {
                buffer: &self.buffers[place.buffer],
                offset: place.offset,
                rows: place.rows,
                width: place.width,
            }),
            None => Err(Error::Config {
                problem: format!("value {} has no place", id.0),
            }),
        }
    }
}

/// Whether a step only makes logits that nobody wants, or selects all rows.
fn skipped(context: &Context<'_>, shape: BatchShape, step: &Step) -> bool {
    let graph = context.model.graph();
    let mut made = step.outputs(graph).into_iter().peekable();
    let unwanted = made.peek().is_some() && made.all(|id| shape.rows(graph.value(id).domain) == 0);
    unwanted || selects_all(context, shape, step).is_some()
}

/// What a step selects all rows of, after what it calls them: where every token's logits are wanted.
fn selects_all(
    context: &Context<'_>,
    shape: BatchShape,
    step: &Step,
) -> Option<(ValueId, ValueId)> {
    let Step::Node(index) = step else {
        return None;
    };
    let node = context.model.graph().nodes().get(*index)?;
    let all = matches!(node.op, Op::Select) && shape.outputs == shape.tokens;
    Some((*node.outputs.first()?, *node.inputs.first()?)).filter(|_| all)
}

impl BatchShape {
    fn rows(self, domain: Domain) -> usize {
        match domain {
            Domain::Tokens => self.tokens,
            Domain::Outputs => self.outputs,
        }
    }
}
