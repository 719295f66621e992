//! A plan: for one batch shape, a place for each value, and every dispatch resolved.

use super::{
    arena::{Arena, Lease, Leased},
    blend::ActiveWeights,
    choose,
    host_values::HostValues,
    layout::{Layout, last_uses, skipped},
    resolve::Resolver,
    rounded::Rounded,
    states::States,
};
use crate::{BatchShape, Error, Graph, Model, Result, ValueId, batch::Tables, fuse::Step};
use parking_lot::Mutex;
use rayon::prelude::*;
use rwkv_gpu::{Binding, Buffer, BufferKind, Dispatch, Gpu, Pipeline, Recording};
use rwkv_kernels::{BatchTables, Kernels, View, ops::HalfRows, tuning::Problem};
use rwkv_mem::{Pool, Pooled};
use std::{
    collections::{HashMap, HashSet},
    ops::Range,
    sync::Arc,
};

/// What plans are made from.
#[derive(Clone, Copy)]
pub(super) struct Context<'a> {
    pub(super) model: &'a Model,
    /// Which only declare their pipelines.
    pub(super) kernels: &'a Kernels,
    pub(super) pool: &'a Pool,
    pub(super) arena: &'a Arena,
    pub(super) weights: ActiveWeights<'a>,
    pub(super) states: &'a States,
    /// In groups as steps of one token a span have them; none of them where sums must be in one order.
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
    inputs: HostValues,
    results: HostValues,
    /// Activations, inputs of products rounded to f16 and what kernels leave for the next one, in buffers that other plans have
    /// too: between two steps nothing in them is needed.
    leased: Leased,
    /// Of a step that is not asked for yet.
    recording: Mutex<Option<Recording>>,
}

impl Plan {
    /// Resolves the steps for batches of `shape`. It can be launched when its pipelines are [compiled](compile).
    pub(super) fn new(context: &Context<'_>, shape: BatchShape) -> Result<Self> {
        let tables = TableBuffer::new(context.kernels.gpu(), context.pool, shape)?;
        let chosen = choose::steps(context, shape);
        let graph = context.model.graph();
        let last_use = last_uses(graph, shape, &chosen.steps);
        let layout = Layout::new(graph, shape, &chosen, &last_use);
        let lease = context.arena.lease(context.pool);
        let activations = Activations::new(&lease, layout)?;
        let kernels = &context.kernels.with_scratch(Arc::new(lease.clone()));
        let mut resolver = Resolver {
            context: &Context {
                kernels,
                ..*context
            },
            activations: &activations,
            batch: tables.bindings(shape),
            rounded: Rounded::new(lease.clone()),
            sliced: None,
            readers: readers(graph, &chosen.steps),
        };
        let mut dispatches = Vec::new();
        let mut problems = Vec::new();
        // Which groups suit depends on the same questions.
        context.kernels.asked();
        for (index, step) in chosen.steps.iter().enumerate() {
            if !skipped(graph, shape, step) {
                let first = dispatches.len();
                resolver.resolve(step, &mut dispatches)?;
                let asked = context.kernels.asked().pop();
                problems.extend(asked.map(|problem| (first..dispatches.len(), problem)));
            }
            resolver
                .rounded
                .release(|id| last_use.get(&id) == Some(&index));
        }
        let inputs = HostValues::new(&activations, graph, graph.inputs(), shape)?;
        let results = graph.results().iter().copied();
        let results = HostValues::new(&activations, graph, results, shape)?;
        Ok(Self {
            shape,
            dispatches,
            problems,
            tables,
            inputs,
            results,
            leased: lease.leased(),
            recording: Mutex::default(),
        })
    }

    /// Records a step to be run later.
    pub(super) fn prepare(&self, gpu: &Gpu) -> Result<()> {
        let mut recorder = gpu.recorder("step");
        recorder.dispatch(&self.dispatches);
        *self.recording.lock() = Some(recorder.finish()?);
        Ok(())
    }

    /// Whether a step is recorded that nobody has asked for.
    pub(super) fn has_recording(&self) -> bool {
        self.recording.lock().is_some()
    }

    /// That step.
    pub(super) fn take_recording(&self) -> Option<Recording> {
        self.recording.lock().take()
    }

    /// Where its activations lie, and what else is needed only during a step.
    pub(super) fn leased(&self) -> &Leased {
        &self.leased
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

    /// What the host writes before a step.
    pub(super) fn inputs(&self) -> &HostValues {
        &self.inputs
    }

    /// What the host reads after it: of a whole model the logits, if any are wanted.
    pub(super) fn results(&self) -> &HostValues {
        &self.results
    }

    /// Writes what differs between steps of one shape: the tables of a batch that is padded to it.
    pub(super) fn write_tables(&self, gpu: &Gpu, tables: &Tables) -> Result<()> {
        self.tables.write(gpu, &self.shape.pad(tables))
    }
}

/// How many of `steps` read each value; the results are read after all of them.
fn readers(graph: &Graph, steps: &[Step]) -> HashMap<ValueId, usize> {
    let mut readers = HashMap::new();
    let read = steps.iter().flat_map(|step| step.inputs(graph));
    for id in read.chain(graph.results().iter().copied()) {
        *readers.entry(id).or_default() += 1;
    }
    readers
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

/// The buffers of a layout.
pub(super) struct Activations {
    buffers: Vec<Arc<Pooled>>,
    layout: Layout,
}

impl Activations {
    fn new(lease: &Lease, layout: Layout) -> Result<Self> {
        Ok(Self {
            buffers: lease.take_all("activation", &layout.buffers)?,
            layout,
        })
    }

    /// Where a value lies that was rounded to f16 when it was made.
    pub(super) fn halves(&self, id: ValueId) -> Option<HalfRows> {
        let place = self.layout.place(id).filter(|place| place.halves)?;
        let buffer = self.buffers.get(place.buffer)?;
        Some(HalfRows::placed(
            Buffer::clone(&**buffer),
            place.offset,
            place.rows,
            place.width,
        ))
    }

    /// Where a value lies, in f32.
    pub(super) fn view(&self, id: ValueId) -> Result<View<'_>> {
        let place = self.layout.place(id).filter(|place| !place.halves);
        match place.and_then(|place| Some((place, self.buffers.get(place.buffer)?))) {
            Some((place, buffer)) => Ok(View {
                buffer,
                offset: place.offset,
                rows: place.rows,
                width: place.width,
            }),
            None => Err(Error::Config {
                problem: format!("value {} has no place in f32", id.0),
            }),
        }
    }
}
