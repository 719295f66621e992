//! The plans of an executor: made when a batch shape comes, that of a token when a model is loaded, and let go of where
//! they hold too much.

use super::{
    GpuExecutor,
    arena::{Arena, Leased},
    blend::{self, ActiveWeights, if_there_is_room},
    memory,
    plan::{self, Plan},
};
use crate::{BatchShape, Executor, Result};
use quick_cache::unsync::Cache;
use rwkv_gpu::Gpu;
use rwkv_kernels::{Kernels, View};
use rwkv_mem::Pool;
use std::{collections::HashMap, sync::Arc, time::Instant};

/// What steps must agree in to share a plan: the shape of the batch, and the number of the blend, whose weights the plan
/// has bound.
pub(super) type PlanKey = (BatchShape, u64);

/// The plans of an executor. Looked up by every step, which takes no lock: they are the executor's own.
pub(super) type Plans = Cache<PlanKey, Arc<Plan>>;

/// Batch shapes whose plans are kept. They share their activations, so what each keeps is on the host: a few hundred bind groups.
/// Of plans that need more memory than a chunk of a prompt and the logits of all slots, only the newest is kept.
pub(super) const PLANS: usize = 64;

/// Tokens of a plan that is small: such a one is kept where memory does not suffice for a larger one.
pub(super) const SMALL: usize = 256;

/// How often as much memory as a plan needs may be held, and after so many plans in a row that need no more it is let go of: long
/// enough that prompts which take turns with decoding find it, and then making it anew costs little. It is counted how often one is
/// asked for, which is once for all tokens that are submitted in advance.
const LITTLE: u64 = 4;
pub(super) const PATIENCE: usize = 1024;

/// Memory that is there for plans to come.
#[derive(Default)]
pub(super) struct Held {
    /// For a token of each sequence, and the bytes of its buffers.
    decoding: Leased,
    one_each: Vec<u64>,
    /// For prompts of up to so many tokens, and what is known of the bytes that prompts take.
    prompts: Leased,
    tokens: usize,
    of_prompts: HashMap<usize, Vec<u64>>,
    /// Bytes of the arena.
    bytes: u64,
    /// Plans that were asked for in a row and need [little](LITTLE) of it.
    idle: usize,
}

impl Held {
    fn forget_prompts(&mut self) {
        self.prompts = Leased::default();
        self.tokens = 0;
    }
}

/// A chunk of a prompt that goes on: nobody wants its logits.
pub(super) fn within_prompt(tokens: usize) -> BatchShape {
    BatchShape {
        outputs: 0,
        ..prompt(tokens)
    }
}

/// A prompt of one sequence.
pub(super) fn prompt(tokens: usize) -> BatchShape {
    BatchShape {
        tokens,
        spans: 1,
        outputs: 1,
    }
    .padded()
}

impl GpuExecutor {
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
        let shape = BatchShape {
            tokens,
            spans,
            outputs: spans,
        };
        let plan = self.planned_by(&Kernels::new(gpu)?, shape)?;
        let names = plan.pipelines().map(|p| p.shader().name);
        Ok((names.collect(), plan.leased().needed()))
    }

    /// The plan for batches of this shape, to which they are padded, made on first use.
    pub(super) fn plan(&mut self, shape: BatchShape) -> Result<Arc<Plan>> {
        let key = (shape, self.blends.number());
        self.prepared.observe(&key);
        for (key, plan) in std::mem::take(&mut self.prepared.made) {
            // Nobody has asked for it.
            if let Err(error) = self.take_in(key, plan) {
                tracing::debug!("a plan that was made in advance is not kept: {error}");
                self.reserve_decoding()?;
            }
        }
        self.limits.asked(self.chunk);
        let known = self.plans.get(&key).cloned();
        self.meter.plan(known.is_some());
        let plan = match known {
            Some(plan) => plan,
            None => self.make(key)?,
        };
        self.settle(key, plan)
    }

    /// A new plan. Where there is no memory for it beside others, those of many tokens go, and then all of them.
    fn make(&mut self, key: PlanKey) -> Result<Arc<Plan>> {
        let (shape, _) = key;
        self.make_room(shape)?;
        let mut plan = self.resolve(shape);
        for kept in [SMALL, 0] {
            if plan.as_ref().is_err_and(blend::out_of_memory) {
                self.let_go(kept);
                plan = self.resolve(shape);
            }
        }
        let plan = plan?;
        plan::compile(self.kernels.gpu(), plan.pipelines())?;
        self.take_in(key, Arc::new(plan))
    }

    /// Lets go of plans of more than so many tokens, and of what is there for prompts to come.
    pub(super) fn let_go(&mut self, tokens: usize) {
        self.plans.retain(|key, _| key.0.tokens <= tokens);
        self.held.forget_prompts();
        self.pool.trim();
    }

    /// Takes memory for prompts of more tokens, if a batch of `shape` has more than there is room for and there is that much:
    /// so many that prompts of other lengths find room too, and it is seldom taken anew.
    fn make_room(&mut self, shape: BatchShape) -> Result<()> {
        let chunk = self.chunk();
        if shape.is_single() || shape.tokens > chunk || shape.tokens <= self.held.tokens {
            return Ok(());
        }
        let tokens = shape.tokens.max(SMALL).next_power_of_two().min(chunk);
        let sizes = match self.held.of_prompts.remove(&tokens) {
            Some(sizes) => sizes,
            None => self
                .planned(self.wanted(prompt(tokens)))?
                .leased()
                .sizes()
                .to_vec(),
        };
        if let Some(prompts) = if_there_is_room(self.reserve(&sizes))? {
            (self.held.prompts, self.held.tokens) = (prompts, tokens);
        }
        self.held.of_prompts.insert(tokens, sizes);
        Ok(())
    }

    /// Keeps a new plan, and lets go of others where they hold too much.
    fn take_in(&mut self, key: PlanKey, plan: Arc<Plan>) -> Result<Arc<Plan>> {
        let usual = self.usual;
        if plan.leased().needed() > usual {
            self.plans
                .retain(|_, known| known.leased().needed() <= usual);
            self.pool.trim();
        }
        self.plans.insert(key, plan.clone());
        self.gather(key, plan)
    }

    /// Lets go of plans until all together take little more than what would suffice for each of them. It is those whose buffers are
    /// neither those of `plan`, the newest, nor those that are there for others; where `plan` itself holds the buffers of a
    /// larger one that is gone, it is made anew.
    fn gather(&mut self, key: PlanKey, mut plan: Arc<Plan>) -> Result<Arc<Plan>> {
        if self.is_scattered() {
            self.keep_those_of(&plan);
            if self.is_scattered() {
                self.held.forget_prompts();
                self.keep_those_of(&plan);
            }
            if self.is_scattered() {
                self.plans.clear();
                self.held.decoding = Leased::default();
                drop(plan);
                self.make_room(key.0)?;
                plan = Arc::new(self.resolve(key.0)?);
                plan::compile(self.kernels.gpu(), plan.pipelines())?;
                self.plans.insert(key, plan.clone());
            }
            self.reserve_decoding()?;
            self.pool.trim();
        }
        self.held.bytes = self.arena.bytes();
        Ok(plan)
    }

    /// Lets go of plans that have other buffers than `plan` and those for prompts to come.
    fn keep_those_of(&mut self, plan: &Plan) {
        let Self { plans, held, .. } = self;
        let kept = [plan.leased(), &held.prompts];
        plans.retain(|_, known| known.leased().is_within(&kept));
        if !held.decoding.is_within(&kept) {
            held.decoding = Leased::default();
        }
    }

    /// Whether plans hold an eighth more than what would suffice for each of them.
    fn is_scattered(&self) -> bool {
        let plans = self.plans.iter().map(|(_, plan)| plan.leased());
        let all = plans.chain([&self.held.decoding, &self.held.prompts]);
        let needed = memory::in_common(all.map(|leased| leased.sizes().to_vec()));
        self.arena.bytes() > needed.saturating_add(needed / 8)
    }

    /// Before a step of `plan`: lets go of what larger ones have taken when none has come for long.
    fn settle(&mut self, key: PlanKey, plan: Arc<Plan>) -> Result<Arc<Plan>> {
        let most = self.held.bytes / LITTLE;
        let little = plan.leased().needed() <= most;
        self.held.idle = if little { self.held.idle + 1 } else { 0 };
        if self.held.idle < PATIENCE {
            return Ok(plan);
        }
        self.held.idle = 0;
        self.plans
            .retain(|_, known| known.leased().needed() <= most);
        self.held.forget_prompts();
        let plan = self.gather(key, plan)?;
        self.pool.trim();
        Ok(plan)
    }

    /// A plan whose pipelines may not be compiled.
    pub(super) fn resolve(&self, shape: BatchShape) -> Result<Plan> {
        self.resolve_by(&self.kernels.declaring(), shape)
    }

    /// The same by `kernels`.
    pub(super) fn resolve_by(&self, kernels: &Kernels, shape: BatchShape) -> Result<Plan> {
        self.resolve_in((&self.pool, &self.arena), kernels, shape)
    }

    /// A plan without any memory, which is not to be launched: it says what one needs, and what is to be compiled for it.
    fn planned(&self, shape: BatchShape) -> Result<Plan> {
        self.planned_by(&self.kernels, shape)
    }

    fn planned_by(&self, kernels: &Kernels, shape: BatchShape) -> Result<Plan> {
        let kernels = kernels.planning();
        let pool = Pool::new(kernels.gpu());
        self.resolve_in((&pool, &Arena::default()), &kernels, shape)
    }

    fn resolve_in(
        &self,
        (pool, arena): (&Pool, &Arena),
        kernels: &Kernels,
        shape: BatchShape,
    ) -> Result<Plan> {
        let context = plan::Context {
            model: &self.model,
            kernels,
            pool,
            arena,
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

    /// Makes the plan of a token, with memory for one of each sequence, and compiles all that it, prompts and the sampler need
    /// side by side, so that the first token does not wait for it. Memory for prompts is taken when they come; chunks get
    /// shorter where it is known that there is too little. Without memory for a single token the model cannot run.
    pub(super) fn warm_up(&mut self) -> Result<()> {
        let start = Instant::now();
        let gpu = self.kernels.gpu().clone();
        let mut planned = Vec::new();
        // A prompt of a few hundred tokens, and a chunk of a long one: others need many of the same pipelines.
        if self.chunk > SMALL {
            planned.extend(self.plan_chunk()?);
        }
        let short = self.wanted(prompt(SMALL.min(self.chunk)));
        planned.push((short, self.planned(short)?));
        let needed = planned.iter().map(|(_, plan)| plan.leased().needed());
        let needed = needed.max().unwrap_or(0);
        let sizes =
            |(shape, plan): &(BatchShape, Plan)| (shape.tokens, plan.leased().sizes().to_vec());
        self.held.of_prompts = planned.iter().map(sizes).collect();
        // The largest first, so that the other one finds room.
        let all = self.planned(self.wanted(BatchShape::decode(self.states.slots()).padded()))?;
        self.held.one_each = all.leased().sizes().to_vec();
        self.reserve_decoding()?;
        let one = self.wanted(prompt(1));
        let first = self.resolve(one)?;
        let sample = if self.model.graph().logits().is_some() {
            let kernels = self.kernels.declaring();
            Some(kernels.sample_pipeline(self.model.config().vocab)?)
        } else {
            None
        };
        // Nobody wants the logits of a prompt that goes on; those of one that ends, or of every slot, are usual too.
        let logits = View::bytes(self.states.slots(), self.model.config().vocab);
        self.usual = needed.saturating_add(needed / 8).saturating_add(logits);
        let of_prompts = planned.iter().flat_map(|(_, plan)| plan.pipelines());
        plan::compile(&gpu, first.pipelines().chain(of_prompts).chain(&sample))?;
        // What a token or a short prompt hands back.
        let read = planned.iter().filter(|(shape, _)| shape.tokens <= SMALL);
        let read = read.map(|(shape, plan)| plan.results().bytes(*shape)).max();
        drop(self.readbacks.take(&gpu, read.unwrap_or(0))?);
        let key = (one, self.blends.number());
        self.plans.insert(key, Arc::new(first));
        self.held.bytes = self.arena.bytes();
        self.meter.warmed_up(start.elapsed());
        // Now, since a program need not end in an orderly way.
        if let Err(error) = gpu.save_pipelines() {
            tracing::warn!("compiled pipelines are not kept: {error}");
        }
        Ok(())
    }

    /// The plan of a chunk within a prompt, of as many tokens as there is memory for, as far as that is known; none where it is
    /// a short one.
    fn plan_chunk(&mut self) -> Result<Option<(BatchShape, Plan)>> {
        let gpu = self.kernels.gpu().clone();
        let mut settled = false;
        while self.chunk > SMALL {
            let shape = within_prompt(self.chunk);
            let plan = self.planned(shape)?;
            let needed = plan.leased().needed();
            if gpu.memory().available().is_none_or(|free| needed <= free) {
                return Ok(Some((shape, plan)));
            }
            if !settled {
                // What was on its way may still have its memory.
                gpu.finish()?;
                settled = true;
                continue;
            }
            tracing::debug!(chunk = self.chunk, needed, "too little memory");
            self.shorten_chunks(self.chunk / 2);
        }
        Ok(None)
    }

    /// From now on prompts are cut into chunks of `tokens` tokens at most.
    fn shorten_chunks(&mut self, tokens: usize) {
        self.chunk = self.chunk.min(tokens);
        self.longest_chunk = self.chunk;
    }

    /// `shape` without the rows of logits that this part of a model does not make.
    fn wanted(&self, shape: BatchShape) -> BatchShape {
        let logits = self.model.graph().logits();
        BatchShape {
            outputs: logits.map_or(0, |_| shape.outputs),
            ..shape
        }
    }

    /// Memory for a plan that is made later, in buffers of these `sizes`.
    fn reserve(&self, sizes: &[u64]) -> Result<Leased> {
        let lease = self.arena.lease(&self.pool);
        lease.take_all("activation", sizes)?;
        Ok(lease.leased())
    }

    /// Memory for a token of each sequence, if it is not there and there is room for it.
    fn reserve_decoding(&mut self) -> Result<()> {
        if self.held.decoding.needed() == 0 {
            let decoding = self.reserve(&self.held.one_each);
            self.held.decoding = if_there_is_room(decoding)?.unwrap_or_default();
        }
        Ok(())
    }

    /// Plans keep the weights that they have bound: those of blends that are gone go too.
    pub(super) fn drop_stale_plans(&mut self) {
        let blends = &self.blends;
        self.plans.retain(|key, _| blends.has_number(key.1));
        self.prepared
            .made
            .retain(|(key, _)| blends.has_number(key.1));
    }
}
