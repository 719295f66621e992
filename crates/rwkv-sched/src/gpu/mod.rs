//! The GPU executor: fuses the graph, plans its buffers for each batch shape, and replays the resolved dispatches.

#[cfg(test)]
mod aliasing;
mod arena;
mod blend;
mod budget;
mod channel_mixes;
mod choose;
mod compress;
mod decode;
mod host_values;
mod layout;
mod memory;
mod meter;
mod norm_projects;
mod plan;
mod recurrence_outputs;
mod resident;
mod resolve;
mod resolve_group;
mod rounded;
mod run;
mod states;
mod tune;

use crate::{
    Adapter, Batch, BlendProgress, Decoding, Error, Executor, ExecutorStats, LoadOptions,
    LoadProgress, Logits, Model, ModelConfig, OnTokens, Op, Result, SlotId, State, StepTimes,
    TokenId, Weight, WeightReads, WeightsDType,
    adapter::{Blends, Recipe},
    decode::on_the_host,
    fuse::{Step, fuse, fuse_decode},
    part::{Carried, PartExecutor},
};
use arena::Arena;
use blend::{ActiveWeights, GpuBlend, GpuBlender, PartialBlend};
pub use budget::Shortfall;
use layout::BatchShape;
pub use memory::DeviceMemory;
use meter::Meter;
use plan::Plan;
use quick_cache::unsync::Cache;
use resident::ResidentWeights;
use rwkv_gpu::{Gpu, Kind, Readback, Submission, Timing};
use rwkv_kernels::{GpuVector, Kernels};
use rwkv_mem::{Pool, Upload};
use states::States;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// Runs a model on a GPU.
pub struct GpuExecutor {
    model: Model,
    name: String,
    kernels: Kernels,
    pool: Pool,
    weights: ResidentWeights,
    states: States,
    decode_steps: Vec<Step>,
    /// Looked up by every step, which takes no lock: they are the executor's own.
    plans: Cache<PlanKey, Arc<Plan>>,
    /// The activations of all of them.
    arena: Arena,
    /// Tokens of a prompt's chunk.
    chunk: usize,
    /// The last batch whose logits nobody wanted, if it was not waited for, and its tokens.
    unread: Option<(Submission, usize)>,
    readback: Option<Readback>,
    /// For the tokens of steps that are on their way.
    token_readbacks: Vec<Readback>,
    /// Of states: what is on its way is bounded.
    upload: Upload,
    weights_dtype: WeightsDType,
    deterministic: bool,
    blends: Blends<PartialBlend, GpuBlend>,
    meter: Meter,
}

/// What steps must agree in to share a plan: the shape of the batch, and the number of the blend, whose weights the plan
/// has bound.
type PlanKey = (BatchShape, u64);

/// Batch shapes whose plans are kept.
const PLANS: usize = 16;

/// Tokens of a plan that is small. Of larger ones only that of a chunk within a prompt is kept, the last one with a token a
/// sequence, and the last other one.
const SMALL: usize = 256;

/// After this long no more candidates are timed.
const TUNING: Duration = Duration::from_secs(4);

/// A chunk of a prompt that goes on: nobody wants its logits.
fn within_prompt(tokens: usize) -> BatchShape {
    BatchShape {
        outputs: 0,
        ..prompt(tokens)
    }
}

/// A prompt of one sequence.
fn prompt(tokens: usize) -> BatchShape {
    BatchShape {
        tokens,
        spans: 1,
        outputs: 1,
    }
}

/// Fails where `model` is known not to fit the memory of `gpu`, unless nobody wants to know.
///
/// # Errors
/// [`Error::DoesNotFit`], or a tensor that cannot be described.
pub(crate) fn check_memory(model: &Model, gpu: &Gpu, options: &LoadOptions) -> Result<()> {
    if options.check_memory {
        budget::check(model, gpu, options)?;
    }
    Ok(())
}

impl GpuExecutor {
    /// Uploads `model` to `gpu`, and compiles what its first steps need. When it fails, everything it took is free again.
    ///
    /// # Errors
    /// [`Error::DoesNotFit`] before anything is taken, where it is known that the memory will not suffice
    /// ([`LoadOptions::check_memory`]); memory that does not suffice after all, or a tensor that the kernels cannot take;
    /// both name the tensor.
    pub fn new(
        model: &Model,
        gpu: &Gpu,
        options: &LoadOptions,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Self> {
        Self::with_chunk(model, gpu, options, usize::MAX, progress)
    }

    /// The same with chunks of prompts of at most `chunk` tokens.
    pub(crate) fn with_chunk(
        model: &Model,
        gpu: &Gpu,
        options: &LoadOptions,
        chunk: usize,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Self> {
        if options.slots == 0 {
            return Err(Error::Config {
                problem: "0 slots".to_owned(),
            });
        }
        check_memory(model, gpu, options)?;
        Self::load(model, gpu, options, chunk, progress).inspect_err(|_| {
            // What was on its way to buffers that are gone keeps their memory till it has arrived. A device that is lost is
            // what the load has failed with.
            let _ = gpu.finish();
        })
    }

    fn load(
        model: &Model,
        gpu: &Gpu,
        options: &LoadOptions,
        chunk: usize,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Self> {
        let kernels = Kernels::new(gpu)?;
        // Groups, and what depends on how many sequences there are, would sum in other orders.
        let decode_steps = if options.deterministic {
            fuse(model.graph())
        } else {
            fuse_decode(model.graph())
        };
        let weights = ResidentWeights::upload(model, &kernels, &decode_steps, options, progress)?;
        let states = States::new(gpu, model.state_layout(), options.slots)?;
        let chunk = chunk.min(memory::chunk(model, &kernels));
        let mut executor = Self {
            name: gpu.name().to_owned(),
            kernels,
            pool: Pool::new(gpu),
            weights,
            states,
            decode_steps,
            plans: Cache::new(PLANS),
            arena: Arena::default(),
            chunk,
            unread: None,
            readback: None,
            token_readbacks: Vec::new(),
            upload: Upload::new(gpu),
            weights_dtype: options.weights_dtype,
            deterministic: options.deterministic,
            blends: Blends::new(options.blend_bytes),
            meter: Meter::default(),
            model: model.clone(),
        };
        executor.set_initial_state(None)?;
        executor.recall_choices();
        let kept = gpu.cache_file("tuner", "").is_some();
        let mut stepped = false;
        if options.tune && kept && gpu.kind() != Kind::Software {
            match executor.tune(TUNING, progress) {
                // Candidates take more than the model.
                Err(error) if blend::out_of_memory(&error) => {
                    tracing::debug!("not tuned: {error}");
                    executor.pool.trim();
                    stepped = true;
                }
                tuned => _ = tuned?,
            }
        }
        // New states are zeros.
        if executor.states.has_initial() || stepped {
            for slot in (0u32..).take(executor.slots()) {
                executor.reset(SlotId(slot))?;
            }
        }
        // What candidates took is smaller than what comes.
        executor.pool.trim();
        executor.warm_up()?;
        Ok(executor)
    }

    /// Bytes of GPU memory that the model's tensors take; [`device_bytes`](Executor::device_bytes) has states and
    /// activations as well.
    pub fn weights_bytes(&self) -> u64 {
        self.weights.bytes()
    }

    /// How many plans and blocks of kernel parameters are kept. For tests.
    #[doc(hidden)]
    pub fn kept(&self) -> [usize; 2] {
        [self.plans.len(), self.kernels.params_kept()]
    }

    /// The kernels that a batch of `tokens` tokens in `spans` spans, each with one row of logits, launches with the
    /// capabilities of `gpu`, a [pretending](Gpu::pretending) copy of the executor's; and the bytes of its activations. For
    /// tests.
    ///
    /// # Errors
    /// What a plan's resolution says.
    #[doc(hidden)]
    pub fn kernels_on(
        &self,
        gpu: &Gpu,
        tokens: usize,
        spans: usize,
    ) -> Result<(Vec<&'static str>, u64)> {
        let kernels = Kernels::new(gpu)?.declaring();
        let shape = BatchShape {
            tokens,
            spans,
            outputs: spans,
        };
        let plan = self.resolve_by(&kernels, shape)?;
        let names = plan.pipelines().map(|p| p.shader().name);
        Ok((names.collect(), plan.leased().needed()))
    }

    /// The plan for batches of this shape, made on first use.
    fn plan(&mut self, shape: BatchShape) -> Result<Arc<Plan>> {
        let key = (shape, self.blends.number());
        let known = self.plans.get(&key).cloned();
        self.meter.plan(known.is_some());
        if let Some(plan) = known {
            return Ok(plan);
        }
        let plan = match self.resolve(shape) {
            Err(error) if blend::out_of_memory(&error) => {
                self.plans.retain(|key, _| key.0.tokens <= SMALL);
                self.pool.trim();
                self.resolve(shape)?
            }
            resolved => resolved?,
        };
        plan::compile(self.kernels.gpu(), plan.pipelines())?;
        if shape.tokens > SMALL {
            let chunk = (within_prompt(self.chunk), self.blends.number());
            let single = |shape: BatchShape| shape.tokens == shape.spans;
            self.plans.retain(|key, _| {
                let known = key.0;
                known.tokens <= SMALL || *key == chunk || single(known) != single(shape)
            });
            self.pool.trim();
        }
        let plan = Arc::new(plan);
        self.plans.insert(key, plan.clone());
        self.gather(key, plan)
    }

    /// Lets go of plans until all together take little more than the largest of them needs. It is those whose buffers are
    /// not those of `plan`, the newest; where `plan` itself holds the buffers of a larger one that is gone, it is made anew.
    fn gather(&mut self, key: PlanKey, plan: Arc<Plan>) -> Result<Arc<Plan>> {
        if !self.is_scattered() {
            return Ok(plan);
        }
        let newest = plan.leased();
        self.plans
            .retain(|_, known| known.leased().is_within(newest));
        let plan = if self.is_scattered() {
            self.plans.clear();
            drop(plan);
            let plan = Arc::new(self.resolve(key.0)?);
            plan::compile(self.kernels.gpu(), plan.pipelines())?;
            self.plans.insert(key, plan.clone());
            plan
        } else {
            plan
        };
        self.pool.trim();
        Ok(plan)
    }

    /// Whether plans hold an eighth more than the largest of them needs.
    fn is_scattered(&self) -> bool {
        let needed = self.plans.iter().map(|(_, plan)| plan.leased().needed());
        let needed = needed.max().unwrap_or(0);
        self.arena.bytes() > needed.saturating_add(needed / 8)
    }

    /// A plan whose pipelines may not be compiled.
    fn resolve(&self, shape: BatchShape) -> Result<Plan> {
        self.resolve_by(&self.kernels.declaring(), shape)
    }

    /// The same by `kernels`.
    fn resolve_by(&self, kernels: &Kernels, shape: BatchShape) -> Result<Plan> {
        let context = plan::Context {
            model: &self.model,
            kernels,
            pool: &self.pool,
            arena: &self.arena,
            weights: ActiveWeights {
                base: &self.weights,
                blend: self.blends.active(),
            },
            states: &self.states,
            decode_steps: &self.decode_steps,
            deterministic: self.deterministic,
        };
        Plan::new(&context, shape)
    }

    /// Fills what plans share with numbers that are none. For tests: nothing there is needed between two steps.
    ///
    /// # Errors
    /// A device that is lost.
    #[doc(hidden)]
    pub fn poison(&self) -> Result<()> {
        self.arena.poison(self.kernels.gpu())
    }

    /// Makes the plans that will come first, and compiles all that they and the sampler need side by side, so that the
    /// first token does not wait for it. The largest is made first, so that the others find room in its buffers. Shapes that
    /// there is no memory for are left until they come, and chunks get shorter; but without memory for a single token the
    /// model cannot run.
    fn warm_up(&mut self) -> Result<()> {
        let start = Instant::now();
        let gpu = self.kernels.gpu().clone();
        let mut plans = Vec::new();
        // A token, a prompt of a few hundred, and a chunk of a long one: others need many of the same pipelines.
        let logits = self.model.graph().logits().is_some();
        let shapes = [prompt(1), prompt(SMALL.min(self.chunk))];
        let mut shapes = Vec::from(shapes.map(|shape| BatchShape {
            outputs: if logits { shape.outputs } else { 0 },
            ..shape
        }));
        shapes.extend((self.chunk > SMALL).then(|| within_prompt(self.chunk)));
        while let Some(shape) = shapes.pop() {
            let error = match self.resolve(shape) {
                Ok(plan) => {
                    plans.push((shape, plan));
                    continue;
                }
                Err(error) => error,
            };
            // It is the largest that has to do with less.
            shapes.push(shape);
            shapes.extend(plans.drain(..).rev().map(|(shape, _)| shape));
            let largest = shapes.pop().filter(|largest| largest.tokens > 1);
            let Some(largest) = largest.filter(|_| blend::out_of_memory(&error)) else {
                return Err(error);
            };
            tracing::debug!(?largest, "not made ready: {error}");
            self.pool.trim();
            if largest.tokens > SMALL {
                self.chunk = largest.tokens / 2;
                let shorter = Some(within_prompt(self.chunk));
                shapes.extend(shorter.filter(|shape| shape.tokens > SMALL));
            }
        }
        // The tokens of a model of parts are chosen on the host.
        let sample = if self.model.is_whole() {
            let kernels = self.kernels.declaring();
            Some(kernels.sample_pipeline(self.model.config().vocab)?)
        } else {
            None
        };
        let pipelines = plans.iter().flat_map(|(_, plan)| plan.pipelines());
        plan::compile(&gpu, pipelines.chain(&sample))?;
        // What a token or a short prompt hands back.
        let read = plans.iter().filter(|(shape, _)| shape.tokens <= SMALL);
        let read = read.map(|(_, plan)| plan.results().bytes()).max();
        self.readback(read.unwrap_or(0))?;
        for (shape, plan) in plans {
            let key = (shape, self.blends.number());
            self.plans.insert(key, Arc::new(plan));
        }
        self.meter.warmed_up(start.elapsed());
        // Now, since a program need not end in an orderly way.
        if let Err(error) = gpu.save_pipelines() {
            tracing::warn!("compiled pipelines are not kept: {error}");
        }
        Ok(())
    }

    /// Computes up to `tensors` tensors of a blend. What a tensor drives out is freed before the next one, which takes
    /// its place; where memory does not suffice, all blends that are not in use go, once.
    fn prepare(&mut self, recipe: &Recipe, tensors: usize) -> Result<BlendProgress> {
        let mut left = tensors.max(1);
        loop {
            let mut prepared = self.try_prepare(recipe);
            self.drop_stale_plans();
            if prepared.as_ref().is_err_and(blend::out_of_memory) && self.blends.forget() {
                self.drop_stale_plans();
                self.pool.trim();
                prepared = self.try_prepare(recipe);
            }
            let progress = prepared?;
            left -= 1;
            if progress.is_done() || left == 0 {
                return Ok(progress);
            }
        }
    }

    /// Computes one tensor.
    fn try_prepare(&mut self, recipe: &Recipe) -> Result<BlendProgress> {
        let blender = GpuBlender {
            model: &self.model,
            kernels: &self.kernels,
            pool: &self.pool,
            weights: &self.weights,
            dtype: self.weights_dtype,
        };
        self.blends.prepare(recipe, 1, &blender)
    }

    /// Plans keep the weights that they have bound: those of blends that are gone go too.
    fn drop_stale_plans(&mut self) {
        let blends = &self.blends;
        self.plans.retain(|key, _| blends.has_number(key.1));
    }

    /// A readback buffer of at least `bytes`.
    fn readback(&mut self, bytes: u64) -> Result<&Readback> {
        if self.readback.as_ref().is_none_or(|r| r.capacity() < bytes) {
            self.readback = None;
        }
        match &mut self.readback {
            Some(readback) => Ok(readback),
            empty => Ok(empty.insert(Readback::new(
                self.kernels.gpu(),
                "results",
                bytes.next_power_of_two(),
            )?)),
        }
    }
}

impl Executor for GpuExecutor {
    fn config(&self) -> &ModelConfig {
        self.model.config()
    }

    fn device(&self) -> &str {
        &self.name
    }

    fn slots(&self) -> usize {
        self.states.slots()
    }

    fn chunk(&self) -> usize {
        self.chunk
    }

    fn device_bytes(&self) -> u64 {
        let pool = self.pool.counters().bytes();
        let scratch = self.kernels.scratch_bytes();
        self.weights.bytes() + self.states.bytes() + pool + scratch + self.blends.bytes()
    }

    fn blend_bytes(&self) -> u64 {
        self.blends.bytes()
    }

    fn run(&mut self, batch: &Batch) -> Result<Logits> {
        let mut carried = Carried::new();
        self.run_part(batch, &mut carried)?;
        Ok(Logits::of(&self.model, carried))
    }

    fn decode(
        &mut self,
        sequences: &mut [Decoding],
        steps: usize,
        counted: &dyn Fn(TokenId) -> bool,
        take: OnTokens<'_>,
    ) -> Result<()> {
        if steps == 0 || self.decode_ahead(sequences, steps, counted, take)? {
            return Ok(());
        }
        on_the_host(self, sequences, steps, counted, take)
    }

    fn runs_ahead(&self) -> bool {
        true
    }

    fn reset(&mut self, slot: SlotId) -> Result<()> {
        self.states.reset(self.kernels.gpu(), slot)
    }

    fn set_initial_state(&mut self, state: Option<&State>) -> Result<()> {
        let own;
        let state = if let Some(state) = state {
            state.check(self.model.state_layout())?;
            state
        } else {
            own = self.model.initial_state()?;
            &own
        };
        let gpu = self.kernels.gpu();
        self.states.set_initial(gpu, &mut self.upload, state)
    }

    fn state(&mut self, slot: SlotId) -> Result<State> {
        self.states.read(self.kernels.gpu(), slot)
    }

    fn set_state(&mut self, slot: SlotId, state: &State) -> Result<()> {
        state.check(self.model.state_layout())?;
        self.states.write(&mut self.upload, slot, state)
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
        self.blends.activate(&recipe)?;
        self.drop_stale_plans();
        Ok(())
    }

    fn weight_reads(&self) -> WeightReads {
        let weights = ActiveWeights {
            base: &self.weights,
            blend: self.blends.active(),
        };
        let matrix = |weight: Weight| match weights.matrix(weight) {
            Some(blended) if weights.is_blended(weight) => blended.bytes(),
            _ => self.weights.matrix_bytes(weight),
        };
        let vectors = |op: &Op| {
            let groups = resident::operation_vectors(op).into_iter();
            groups
                .map(|group| weights.vectors(&group).map_or(0, GpuVector::bytes))
                .sum()
        };
        WeightReads::of(
            self.model.graph(),
            self.model.config().vocab,
            &matrix,
            &vectors,
        )
    }

    fn stats(&self) -> ExecutorStats {
        let (pool, gpu) = (self.pool.counters(), self.kernels.gpu().counts());
        ExecutorStats {
            params: self.kernels.param_counts(),
            pipelines: gpu.pipelines,
            pipelines_kept: gpu.pipelines_kept,
            tuned: self.kernels.choices().len() as u64,
            buffers: pool.requests(),
            buffers_made: gpu.buffers,
            ..self.meter.stats()
        }
    }

    fn set_timing(&mut self, timing: Timing) -> Result<bool> {
        self.meter.set_timing(self.kernels.gpu(), timing)
    }

    fn take_times(&mut self) -> Vec<StepTimes> {
        self.meter.take_times()
    }
}
