//! The plans of an executor: made when a batch shape comes, the first ones when a model is loaded, and let go of where they
//! hold too much.

use super::{
    GpuExecutor,
    blend::{self, ActiveWeights},
    plan::{self, Plan},
};
use crate::{BatchShape, Result};
use quick_cache::unsync::Cache;
use rwkv_gpu::Gpu;
use rwkv_kernels::{Kernels, View};
use std::{sync::Arc, time::Instant};

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

    /// The plan for batches of this shape, to which they are padded, made on first use.
    pub(super) fn plan(&mut self, shape: BatchShape) -> Result<Arc<Plan>> {
        let key = (shape, self.blends.number());
        self.prepared.observe(&key);
        for (key, plan) in std::mem::take(&mut self.prepared.made) {
            self.take_in(key, plan)?;
        }
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
        self.take_in(key, Arc::new(plan))
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
    pub(super) fn resolve(&self, shape: BatchShape) -> Result<Plan> {
        self.resolve_by(&self.kernels.declaring(), shape)
    }

    /// The same by `kernels`.
    pub(super) fn resolve_by(&self, kernels: &Kernels, shape: BatchShape) -> Result<Plan> {
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
    pub(super) fn warm_up(&mut self) -> Result<()> {
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
                self.longest_chunk = self.chunk;
                let shorter = Some(within_prompt(self.chunk));
                shapes.extend(shorter.filter(|shape| shape.tokens > SMALL));
            }
        }
        let sample = if logits {
            let kernels = self.kernels.declaring();
            Some(kernels.sample_pipeline(self.model.config().vocab)?)
        } else {
            None
        };
        let needed = plans.iter().map(|(_, plan)| plan.leased().needed());
        let needed = needed.max().unwrap_or(0);
        // Nobody wants the logits of a prompt that goes on; those of one that ends, or of every slot, are usual too.
        let logits = View::bytes(self.states.slots(), self.model.config().vocab);
        self.usual = needed.saturating_add(needed / 8).saturating_add(logits);
        let pipelines = plans.iter().flat_map(|(_, plan)| plan.pipelines());
        plan::compile(&gpu, pipelines.chain(&sample))?;
        // What a token or a short prompt hands back.
        let read = plans.iter().filter(|(shape, _)| shape.tokens <= SMALL);
        let read = read.map(|(shape, plan)| plan.results().bytes(*shape)).max();
        drop(self.readbacks.take(&gpu, read.unwrap_or(0))?);
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

    /// Plans keep the weights that they have bound: those of blends that are gone go too.
    pub(super) fn drop_stale_plans(&mut self) {
        let blends = &self.blends;
        self.plans.retain(|key, _| blends.has_number(key.1));
        self.prepared
            .made
            .retain(|(key, _)| blends.has_number(key.1));
    }
}
