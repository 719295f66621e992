//! The CPU executor: interprets the logical graph, operation by operation, with the processor's vector instructions or
//! with the twins of `rwkv-kernels`. Weights are used where they are (a mapped file, say). With the twins it is the
//! oracle of the GPU executor.

mod blend;
mod rows;
mod spare;
mod step;

use crate::{
    Adapter, Batch, BlendProgress, Error, Executor, Graph, LoadOptions, Logits, Model, ModelConfig,
    Op, Result, SlotId, State, StateLayout, Weight, WeightReads,
    adapter::{Blends, Recipe},
    part::{Begun, Carried, PartExecutor, Rows, carried_value},
    quantization::packed_bytes,
};
use blend::{CpuBlend, CpuBlender, PartialBlend};
use rustc_hash::FxHashMap;
use rwkv_kernels::{Csr, Simd};
use spare::Spare;
use std::sync::Arc;
use step::Step;

/// Runs a model on the processor.
pub struct CpuExecutor {
    model: Model,
    name: String,
    layout: StateLayout,
    states: Vec<State>,
    /// What `reset` makes a slot.
    initial: State,
    /// Vectors in f32: small, and used by every token.
    vectors: FxHashMap<Weight, Vec<f32>>,
    /// After which node each value is dropped.
    last_use: Vec<usize>,
    blends: Blends<PartialBlend, CpuBlend>,
    simd: Simd,
    /// Buffers of the last step.
    spare: Spare,
    /// Whether all matrices are multiplied where they lie.
    in_place: bool,
}

/// Tokens that share the expansion of weights; past this the activations leave the cache.
pub(crate) const CHUNK: usize = 256;

impl CpuExecutor {
    /// An executor with `slots` empty sequences, which uses the widest vector instructions that the processor has.
    ///
    /// # Errors
    /// [`Error::Weight`] for a vector that cannot be read, [`Error::Config`] for no slots.
    pub fn new(model: &Model, slots: usize) -> Result<Self> {
        if slots == 0 {
            return Err(Error::Config {
                problem: "0 slots".to_owned(),
            });
        }
        let layout = model.state_layout();
        let initial = model.initial_state()?;
        let mut vectors = FxHashMap::default();
        for weight in model.graph().nodes().iter().flat_map(|n| n.op.vectors()) {
            let len = model.weights().describe(weight)?.1.elements().unwrap_or(0);
            vectors.insert(weight, model.weights().vector(weight, len)?);
        }
        let mut in_place = true;
        for weight in model.matrices() {
            // Checked before the first step: a file may say anything of its entries.
            let sparse = model.weights().sparse(weight)?;
            in_place &= sparse.is_none() && model.weights().is_in_place(weight);
        }
        let simd = Simd::detect();
        Ok(Self {
            name: name(simd),
            simd,
            layout,
            states: vec![initial.clone(); slots],
            initial,
            vectors,
            last_use: last_uses(model.graph()),
            blends: Blends::new(LoadOptions::default().blend_bytes),
            model: model.clone(),
            spare: Spare::default(),
            in_place,
        })
    }

    /// Computes with these instructions, where the processor has them; with [`Simd::Twins`] it is the oracle.
    #[must_use]
    pub fn with_simd(mut self, simd: Simd) -> Self {
        self.simd = if simd.is_available() {
            simd
        } else {
            Simd::Twins
        };
        self.name = name(self.simd);
        self
    }

    /// Keeps at most so many bytes of blends: see [`LoadOptions::blend_bytes`].
    #[must_use]
    pub fn with_blend_bytes(mut self, bytes: u64) -> Self {
        self.blends.set_bound(bytes);
        self
    }

    fn prepare(&mut self, recipe: &Recipe, tensors: usize) -> Result<BlendProgress> {
        let blender = CpuBlender {
            model: &self.model,
            vectors: &self.vectors,
            matrices: self.model.matrices(),
        };
        self.blends.prepare(recipe, tensors, &blender)
    }

    fn vector_bytes(&self, weight: Weight) -> u64 {
        self.vectors.get(&weight).map_or(0, |v| v.len() as u64 * 4)
    }

    fn slot(&mut self, slot: SlotId) -> Result<&mut State> {
        let slots = self.states.len();
        self.states
            .get_mut(slot.0 as usize)
            .ok_or(Error::SlotRange { slot, slots })
    }
}

/// What the executor is called.
fn name(simd: Simd) -> String {
    let threads = rayon::current_num_threads();
    let plural = if threads == 1 { "" } else { "s" };
    match simd {
        Simd::Twins => format!("CPU ({threads} thread{plural})"),
        _ => format!("CPU ({threads} thread{plural}, {simd})"),
    }
}

/// For each value, the index of the last node that reads it.
fn last_uses(graph: &Graph) -> Vec<usize> {
    let mut last = vec![0; graph.value_count()];
    for (index, node) in graph.nodes().iter().enumerate() {
        for id in node.inputs.iter().chain(&node.outputs) {
            last[id.0] = index;
        }
    }
    for id in graph.results() {
        last[id.0] = usize::MAX;
    }
    last
}

impl PartExecutor for CpuExecutor {
    /// Done when it returns.
    fn begin_part(&mut self, batch: &Batch, carried: &Carried) -> Result<Begun> {
        let tables = batch.tables(self.model.config().vocab, self.states.len())?;
        let (model, vectors) = match self.blends.active() {
            Some(blend) => (&blend.model, &blend.vectors),
            None => (&self.model, &self.vectors),
        };
        let graph = model.graph();
        let (tokens, outputs) = (tables.tokens.len(), tables.outputs.len());
        self.spare.begin([tokens, outputs]);
        let mut values = vec![None; graph.value_count()];
        for id in graph.inputs() {
            let value = carried_value(carried, id)?;
            let mut copy = self.spare.take(value.len());
            copy.copy_from_slice(value);
            values[id.0] = Some(copy);
        }
        let mut step = Step {
            model,
            tables: &tables,
            states: &mut self.states,
            vectors,
            values,
            spare: &mut self.spare,
            simd: self.simd,
        };
        let last_use = &self.last_use;
        let mut run = || {
            for (index, node) in graph.nodes().iter().enumerate() {
                step.node(&node.op, &node.inputs, &node.outputs)?;
                for id in node.inputs.iter().chain(&node.outputs) {
                    if last_use[id.0] <= index {
                        step.drop(*id);
                    }
                }
            }
            Ok::<_, Error>(())
        };
        let alone = tokens == 1 && rayon::current_num_threads() == 1;
        if alone && self.in_place && self.simd != Simd::Twins {
            // Nothing of it is shared out.
            run()?;
        } else {
            // On one of the threads that share the work: to hand it over from outside costs a switch for each operation.
            rayon::scope(|_| run())?;
        }
        let values = &mut step.values;
        let results = graph.results().iter();
        let results: Carried = results
            .map(|id| {
                let rows = values[id.0].take().unwrap_or_default();
                (*id, Rows::Own(rows))
            })
            .collect();
        Ok(Box::new(move |carried| {
            carried.extend(results);
            Ok(Vec::new())
        }))
    }
}

impl Executor for CpuExecutor {
    fn config(&self) -> &ModelConfig {
        self.model.config()
    }

    fn device(&self) -> &str {
        &self.name
    }

    fn slots(&self) -> usize {
        self.states.len()
    }

    fn chunk(&self) -> usize {
        CHUNK
    }

    fn device_bytes(&self) -> u64 {
        let vectors: usize = self.vectors.values().map(|v| v.len() * 4).sum();
        // One more state than slots: the initial one.
        let states = self.layout.bytes() * (self.states.len() as u64 + 1);
        vectors as u64 + states + self.blends.bytes()
    }

    fn blend_bytes(&self) -> u64 {
        self.blends.bytes()
    }

    fn run(&mut self, batch: &Batch) -> Result<Logits> {
        let mut carried = Carried::new();
        self.run_part(batch, &mut carried)?;
        Ok(Logits::of(&self.model, carried))
    }

    fn reset(&mut self, slot: SlotId) -> Result<()> {
        let initial = self.initial.clone();
        *self.slot(slot)? = initial;
        Ok(())
    }

    fn set_initial_state(&mut self, state: Option<&State>) -> Result<()> {
        self.initial = match state {
            Some(state) => {
                state.check(self.layout)?;
                state.clone()
            }
            None => self.model.initial_state()?,
        };
        Ok(())
    }

    fn state(&mut self, slot: SlotId) -> Result<State> {
        self.slot(slot).cloned()
    }

    fn set_state(&mut self, slot: SlotId, state: &State) -> Result<()> {
        state.check(self.layout)?;
        self.slot(slot)?.clone_from(state);
        Ok(())
    }

    fn prepare_adapters(
        &mut self,
        blend: &[(Arc<Adapter>, f32)],
        tensors: usize,
    ) -> Result<BlendProgress> {
        self.prepare(&Recipe::new(blend)?, tensors)
    }

    fn set_adapters(&mut self, blend: &[(Arc<Adapter>, f32)]) -> Result<()> {
        let recipe = Recipe::new(blend)?;
        self.prepare(&recipe, usize::MAX)?;
        self.blends.activate(&recipe)
    }

    fn forget_adapters(&mut self, blend: &[(Arc<Adapter>, f32)]) -> Result<()> {
        self.blends.forget_one(&Recipe::new(blend)?);
        Ok(())
    }

    fn weight_reads(&self) -> WeightReads {
        let weights = match self.blends.active() {
            Some(blend) => blend.model.weights(),
            None => self.model.weights(),
        };
        let matrix = |weight| match (weights.describe(weight), weights.entries(weight)) {
            (Ok((_, shape)), Some(entries)) => Csr::bytes_of(shape, entries),
            (Ok(dense), None) => packed_bytes(dense),
            (Err(_), _) => 0,
        };
        let vectors = |op: &Op| op.vectors().iter().map(|w| self.vector_bytes(*w)).sum();
        WeightReads::of(
            self.model.graph(),
            self.model.config().vocab,
            &matrix,
            &vectors,
        )
    }
}
