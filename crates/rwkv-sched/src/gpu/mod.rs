//! The GPU executor: fuses the graph, plans its buffers for each batch shape, and replays the resolved dispatches.

#[cfg(test)]
mod aliasing;
mod arena;
mod blend;
mod budget;
mod burst;
mod channel_mixes;
mod choose;
mod compress;
mod copies;
mod decode;
mod draws;
mod host_values;
mod layout;
mod memory;
mod meter;
mod norm_projects;
mod pieces;
mod plan;
mod plans;
mod prepare;
mod readbacks;
mod recurrence_outputs;
mod resident;
mod resolve;
mod resolve_group;
mod rounded;
mod run;
mod samplers;
mod shape;
mod states;
mod tune;

use crate::{
    Adapter, Batch, BlendProgress, Burst, Counted, Decoding, Error, Executor, ExecutorStats,
    Expected, LoadOptions, LoadProgress, Logits, Model, ModelConfig, OnDrawn, OnTokens, Op, Result,
    SlotId, State, StepTimes, TokenId, TokenTables, Weight, WeightReads, WeightsDType,
    adapter::{Blends, Recipe},
    decode::{on_the_host, one_after_the_other},
    fuse::{Step, fuse, fuse_decode},
    part::{Carried, PartExecutor},
    token_tables::{self, HostTables},
};
use arena::Arena;
use blend::{ActiveWeights, GpuBlend, GpuBlender, PartialBlend};
pub use budget::Shortfall;
pub(crate) use copies::StateCopies;
use draws::Draws;
pub use memory::DeviceMemory;
use meter::Meter;
use pieces::Limits;
use plans::{Held, PLANS, Plans};
use prepare::Prepared;
use readbacks::Readbacks;
use resident::ResidentWeights;
use rwkv_gpu::{Gpu, Kind, Readback, Submission, Timing};
use rwkv_kernels::{GpuVector, Kernels};
use rwkv_mem::{Pool, Upload};
pub(crate) use samplers::token_of;
use states::States;
use std::{sync::Arc, time::Duration};

/// Runs a model on a GPU.
pub struct GpuExecutor {
    model: Model,
    name: String,
    kernels: Kernels,
    pool: Pool,
    weights: ResidentWeights,
    /// What is not among them.
    host_tables: HostTables,
    states: States,
    decode_steps: Vec<Step>,
    plans: Plans,
    prepared: Prepared,
    expected: Expected,
    /// The activations of all of them.
    arena: Arena,
    held: Held,
    /// Bytes that a plan may need beside which all others are kept.
    usual: u64,
    /// Tokens of a prompt's chunk.
    chunk: usize,
    /// The most that a chunk may have.
    longest_chunk: usize,
    limits: Limits,
    /// The last batch whose logits nobody wanted, if it was not waited for, and its tokens.
    unread: Option<(Submission, usize)>,
    readbacks: Readbacks,
    /// For the tokens of steps that are on their way.
    token_readbacks: Vec<Readback>,
    /// Of the micro-batches of a decoding on several devices.
    draws: Vec<Draws>,
    /// Of states: what is on its way is bounded.
    upload: Upload,
    weights_dtype: WeightsDType,
    deterministic: bool,
    blends: Blends<PartialBlend, GpuBlend>,
    meter: Meter,
}

/// After this long no more candidates are timed.
const TUNING: Duration = Duration::from_secs(4);

/// `model` as `gpu` will have it: with its tables of tokens there or on the host. Fails where it is known not to fit the
/// memory in any of the ways that `options` allow, unless nobody wants to know.
///
/// # Errors
/// [`Error::DoesNotFit`], or a tensor that cannot be described.
pub(crate) fn check_memory(model: &Model, gpu: &Gpu, options: &LoadOptions) -> Result<Model> {
    if options.check_memory {
        budget::check(model, gpu, options)
    } else {
        options.token_tables.unasked(model)
    }
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
        let model = &check_memory(model, gpu, options)?;
        if options.token_tables == TokenTables::Auto && !model.host_tables().is_empty() {
            tracing::warn!(
                "{} of tables of tokens stay on the host, to spare memory of {}: decoding takes longer",
                budget::Bytes(token_tables::host_bytes(model)?),
                gpu.name()
            );
        }
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
            name: device_name(gpu, model),
            kernels,
            pool: Pool::new(gpu),
            weights,
            host_tables: HostTables::of(model),
            states,
            decode_steps,
            plans: Plans::new(PLANS),
            prepared: Prepared::default(),
            expected: Expected::default(),
            arena: Arena::default(),
            held: Held::default(),
            usual: 0,
            chunk,
            longest_chunk: chunk,
            limits: Limits::default(),
            unread: None,
            readbacks: Readbacks::default(),
            token_readbacks: Vec::new(),
            draws: Vec::new(),
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
        // What candidates took is not needed before prompts come.
        executor.pool.trim();
        executor.recall_chunk();
        executor.warm_up()?;
        Ok(executor)
    }

    /// Lets chunks of prompts have up to `tokens` tokens, whatever suits the adapter. For tests.
    #[doc(hidden)]
    pub fn set_longest_chunk(&mut self, tokens: usize) {
        self.longest_chunk = tokens;
        self.recall_chunk();
    }

    /// Bytes of GPU memory that the model's tensors take; [`device_bytes`](Executor::device_bytes) has states and
    /// activations as well.
    pub fn weights_bytes(&self) -> u64 {
        self.weights.bytes()
    }

    /// Bytes of GPU memory that kernels share for partial sums; [`device_bytes`](Executor::device_bytes) has them too.
    pub fn scratch_bytes(&self) -> u64 {
        self.kernels.scratch_bytes()
    }

    /// Computes up to `tensors` tensors of a blend. What a tensor drives out is freed before the next one, which takes
    /// its place; where memory does not suffice, all blends that are not in use go, once.
    fn prepare(&mut self, recipe: &Recipe, tensors: usize) -> Result<BlendProgress> {
        let mut left = tensors.max(1);
        let recipe = &self.resident_part(recipe)?;
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

    /// What of a blend is computed on the GPU: nothing, where it changes tables alone that are on the host.
    fn resident_part(&self, recipe: &Recipe) -> Result<Recipe> {
        let tables_alone = !self.host_tables.is_empty() && recipe.changed(&self.model)?.is_empty();
        Ok(if tables_alone {
            Recipe::default()
        } else {
            recipe.clone()
        })
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
}

/// Where a model runs, which says too whether tables are on the host: what is looked up there may differ from what would lie on the
/// device.
fn device_name(gpu: &Gpu, model: &Model) -> String {
    let name = gpu.name();
    if model.host_tables().is_empty() {
        name.to_owned()
    } else {
        format!("{name}, tables of tokens on the host")
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
        self.chunk.min(self.limits.prompts.tokens())
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
        counted: Counted<'_>,
        take: OnTokens<'_>,
    ) -> Result<()> {
        let mut burst = Burst {
            prompts: &Batch::default(),
            going_on: sequences.len(),
            sequences,
            steps,
            counted,
            may_stop: true,
        };
        let told = &mut |drawn: &[Option<TokenId>]| {
            let tokens: Vec<TokenId> = drawn.iter().copied().flatten().collect();
            take(&tokens)
        };
        if steps == 0 || self.burst_ahead(&mut burst, told)? {
            return Ok(());
        }
        on_the_host(self, sequences, steps, counted, take)
    }

    fn burst(&mut self, mut burst: Burst<'_>, take: OnDrawn<'_>) -> Result<()> {
        if self.burst_ahead(&mut burst, take)? {
            return Ok(());
        }
        one_after_the_other(self, burst, take)
    }

    fn runs_ahead(&self) -> bool {
        self.host_tables.is_empty()
    }

    fn draws(&self) -> bool {
        true
    }

    fn expected(&self) -> Option<Expected> {
        Some(self.expected.clone())
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
        let resident = self.resident_part(&recipe)?;
        self.host_tables.set_blend(&self.model, &recipe)?;
        self.blends.activate(&resident)?;
        self.drop_stale_plans();
        Ok(())
    }

    fn forget_adapters(&mut self, blend: &[(Arc<Adapter>, f32)]) -> Result<()> {
        self.blends.forget_one(&Recipe::new(blend)?);
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
