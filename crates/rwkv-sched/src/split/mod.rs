//! A model whose layers are on several devices.
//!
//! Each device runs its part of the graph. What passes from one to a later one are the values that this reads: the residual
//! stream, in RWKV-7 the first layer's value, and in RWKV-7a the normed embedding. A layer's weights and states are only
//! where it runs.
//!
//! A batch is cut into micro-batches that follow each other through the devices, so that all work at once: tokens of a prompt
//! go on where those before them have left the states, on every device in the same order.

mod circulate;
mod cut;
mod pipeline;
#[cfg(test)]
mod tests;

use crate::{
    Adapter, Batch, BlendProgress, Counted, Decoding, Device, Error, Executor, ExecutorStats,
    LoadOptions, LoadProgress, Logits, Model, ModelConfig, OnTokens, Placement, Result, SlotId,
    State, StepTimes, ValueId, Wanted, WeightReads,
    adapter::Recipe,
    cpu::CHUNK,
    executor::load_part,
    gpu::check_memory,
    part::{Begun, PartExecutor, StateCopies},
};
use pipeline::{Begin, Ends, Job};
use rwkv_gpu::Timing;
use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

/// Runs a model on the devices of a [`Placement`], all at once where there is work for all.
pub struct SplitExecutor {
    model: Model,
    name: String,
    stages: Vec<Stage>,
    slots: usize,
    /// Micro-batches of a batch, where somebody has said how many.
    micro_batches: Option<usize>,
    /// What sequences begin with, where it is not what the model says.
    initial: Option<State>,
}

/// Some layers, where they run.
struct Stage {
    model: Model,
    executor: Box<dyn PartExecutor>,
    /// What later stages read.
    later: HashSet<ValueId>,
    /// Of the states of each group of a decoding, to go back to.
    copies: Vec<[StateCopies; 2]>,
}

/// Adapters with their strengths.
type Blend = [(Arc<Adapter>, f32)];

impl Stage {
    /// What `blend` is to these layers, nothing if it changes none of their weights; and how many it changes.
    fn own<'a>(&self, blend: &'a Blend, recipe: &Recipe) -> Result<(&'a Blend, usize)> {
        Ok(match recipe.changed(&self.model)?.len() {
            0 => (&[], 0),
            changed => (blend, changed),
        })
    }
}

impl Begin for Stage {
    fn begin(&mut self, job: &mut Job) -> Result<Begun> {
        let copies = job
            .copies
            .and_then(|(group, which)| self.copies.get_mut(group)?.get_mut(which));
        if let Some(copies) = copies {
            self.executor.copy_states(copies)?;
        }
        let last = self.model.graph().logits().is_some();
        let begun = match job.drawing.filter(|_| last) {
            Some(group) => self.executor.begin_drawing(group, &job.batch, &job.carried),
            None => self.executor.begin_part(&job.batch, &job.carried),
        };
        job.carried.retain(|id, _| self.later.contains(id));
        begun
    }
}

impl SplitExecutor {
    /// Loads each device's layers, and no others. `options` are those of every device; blends are bounded on each.
    ///
    /// # Errors
    /// [`Error::Placement`] for a placement of another model, and what loading on one device says. No device has anything
    /// where it is known that one has too little memory for one of its parts.
    pub fn new(
        model: &Model,
        placement: &Placement,
        options: &LoadOptions,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Self> {
        let layers = model.config().layers;
        if placement.layers() != layers {
            let problem = format!("the model has {layers} layers, not {}", placement.layers());
            return Err(Error::Placement { problem });
        }
        let parts = placement.stages().iter();
        let parts: Vec<_> = parts
            .map(|(layers, device)| (model.part(layers.clone()), device))
            .collect();
        // Longer chunks than the CPU takes would only hold memory on the others.
        let mut chunk = usize::MAX;
        for (part, device) in &parts {
            match device {
                Device::Cpu => chunk = CHUNK,
                Device::Gpu(gpu) => _ = check_memory(part, gpu, options)?,
            }
        }
        let mut stages = Vec::new();
        let mut names = Vec::new();
        let read = |(part, _): &(Model, &Device)| part.graph().inputs().collect::<Vec<_>>();
        let mut later: VecDeque<Vec<ValueId>> = parts.iter().map(read).collect();
        for (part, device) in parts {
            later.pop_front();
            let executor = match load_part(&part, device, options, chunk, progress) {
                Ok(executor) => executor,
                Err(error) => {
                    // What the others have taken is free once their GPUs are done.
                    drop(stages);
                    for (_, device) in placement.stages() {
                        if let Device::Gpu(gpu) = device {
                            let _ = gpu.finish();
                        }
                    }
                    return Err(error);
                }
            };
            let layers = part.layers().len();
            let what = match (names.is_empty(), layers) {
                (true, 1) => " layer",
                (true, _) => " layers",
                (false, _) => "",
            };
            names.push(format!("{layers}{what} on {}", executor.device()));
            stages.push(Stage {
                model: part,
                executor,
                later: later.iter().flatten().copied().collect(),
                copies: Vec::new(),
            });
        }
        Ok(Self {
            model: model.clone(),
            name: names.join(", "),
            stages,
            slots: options.slots,
            micro_batches: options.micro_batches,
            initial: None,
        })
    }

    /// Into how many groups so many sequences are cut that decode together.
    fn at_once(&self, sequences: usize) -> usize {
        let wanted = self.micro_batches.unwrap_or(self.stages.len());
        wanted.clamp(1, sequences.max(1))
    }

    /// A batch in micro-batches.
    fn micro_batches(&self, batch: &Batch) -> Vec<Batch> {
        // A step of one token for each slot is nowhere too long.
        let most = self.chunk().max(self.slots);
        let best = cut::parts(batch, self.stages.len(), most);
        let least = batch.tokens().div_ceil(most);
        let parts = self.micro_batches.map_or(best, |wanted| wanted.max(least));
        batch.cut(parts)
    }

    /// Runs micro-batches one after the other through the stages; their logits together.
    fn run_parts(&mut self, parts: &[Batch]) -> Result<Logits> {
        let model = &self.model;
        // More than the stages and what lies between them have room for.
        let on_their_way = 4 * self.stages.len();
        pipeline::run(&mut self.stages, parts.len(), |mut ends| {
            let mut logits = Logits::none(model);
            let mut take = |ends: &mut Ends<'_>| -> Result<()> {
                logits.append(Logits::of(model, ends.take()?.carried));
                Ok(())
            };
            for (given, batch) in parts.iter().enumerate() {
                // What is done holds all that its stages have made.
                if given >= on_their_way {
                    take(&mut ends)?;
                }
                ends.give(Job {
                    batch: batch.clone(),
                    ..Job::default()
                });
            }
            for _ in 0..parts.len().min(on_their_way) {
                take(&mut ends)?;
            }
            Ok(logits)
        })
    }

    fn executors(&self) -> impl Iterator<Item = &dyn PartExecutor> {
        self.stages.iter().map(|stage| stage.executor.as_ref())
    }

    fn check_slot(&self, slot: SlotId) -> Result<()> {
        let slots = self.slots;
        if (slot.0 as usize) < slots {
            return Ok(());
        }
        Err(Error::SlotRange { slot, slots })
    }

    /// Sets what sequences begin with on every device.
    fn begin_with(&mut self, state: Option<&State>) -> Result<()> {
        for stage in &mut self.stages {
            let part = state.map(|state| state.part(stage.model.layers()));
            stage.executor.set_initial_state(part.as_ref())?;
        }
        Ok(())
    }

    /// Computes up to `tensors` tensors of a blend, device by device.
    fn prepare(&mut self, blend: &Blend, tensors: usize) -> Result<BlendProgress> {
        let recipe = Recipe::new(blend)?;
        let total = recipe.changed(&self.model)?.len();
        let (mut done, mut left, mut ready) = (0, tensors.max(1), true);
        for stage in &mut self.stages {
            let (own, changed) = stage.own(blend, &recipe)?;
            let progress = stage.executor.prepare_adapters(own, left)?;
            if progress.total == 0 {
                done += changed;
                continue;
            }
            ready = false;
            done += progress.done;
            // Those of earlier calls count as well: rather too few than too many.
            left = left.saturating_sub(progress.done);
            if left == 0 || !progress.is_done() {
                break;
            }
        }
        Ok(if ready {
            BlendProgress { done: 0, total: 0 }
        } else {
            BlendProgress { done, total }
        })
    }
}

impl Executor for SplitExecutor {
    fn config(&self) -> &ModelConfig {
        self.model.config()
    }

    fn device(&self) -> &str {
        &self.name
    }

    fn slots(&self) -> usize {
        self.slots
    }

    fn chunk(&self) -> usize {
        let chunks = self.executors().map(Executor::chunk);
        chunks.min().unwrap_or(1)
    }

    fn device_bytes(&self) -> u64 {
        self.executors().map(Executor::device_bytes).sum()
    }

    fn blend_bytes(&self) -> u64 {
        self.executors().map(Executor::blend_bytes).sum()
    }

    fn run(&mut self, batch: &Batch) -> Result<Logits> {
        // What cannot run is refused before any device has changed a state.
        batch.tables(self.model.config().vocab, self.slots)?;
        let parts = self.micro_batches(batch);
        self.run_parts(&parts)
    }

    fn decode(
        &mut self,
        sequences: &mut [Decoding],
        steps: usize,
        counted: Counted<'_>,
        take: OnTokens<'_>,
    ) -> Result<()> {
        if steps == 0 {
            return Ok(());
        }
        let first = crate::decode::batch(sequences, Wanted::Last);
        first.tables(self.model.config().vocab, self.slots)?;
        self.circulate(sequences, steps, counted, take)
    }

    /// Groups of sequences may be a step ahead, but for a single one.
    fn runs_ahead(&self) -> bool {
        self.micro_batches != Some(1) && self.slots > 1
    }

    fn stages(&self) -> usize {
        self.stages.len()
    }

    fn reset(&mut self, slot: SlotId) -> Result<()> {
        self.check_slot(slot)?;
        let mut stages = self.stages.iter_mut();
        stages.try_for_each(|stage| stage.executor.reset(slot))
    }

    fn set_initial_state(&mut self, state: Option<&State>) -> Result<()> {
        if let Some(state) = state {
            state.check(self.model.state_layout())?;
        }
        if let Err(error) = self.begin_with(state) {
            // The caller is told of the first failure.
            let before = self.initial.clone();
            let _ = self.begin_with(before.as_ref());
            return Err(error);
        }
        self.initial = state.cloned();
        Ok(())
    }

    fn state(&mut self, slot: SlotId) -> Result<State> {
        self.check_slot(slot)?;
        let mut state = State {
            wkv: Vec::new(),
            shift: Vec::new(),
        };
        for stage in &mut self.stages {
            let part = stage.executor.state(slot)?;
            state.wkv.extend(part.wkv);
            state.shift.extend(part.shift);
        }
        Ok(state)
    }

    fn set_state(&mut self, slot: SlotId, state: &State) -> Result<()> {
        self.check_slot(slot)?;
        state.check(self.model.state_layout())?;
        for stage in &mut self.stages {
            let part = state.part(stage.model.layers());
            stage.executor.set_state(slot, &part)?;
        }
        Ok(())
    }

    fn prepare_adapters(&mut self, blend: &Blend, tensors: usize) -> Result<BlendProgress> {
        self.prepare(blend, tensors).inspect_err(|_| {
            // A device that fails has dropped what it had; the others may have theirs. What fails here has failed before.
            let _ = self.forget_adapters(blend);
        })
    }

    fn set_adapters(&mut self, blend: &Blend) -> Result<()> {
        // On all devices before any of them switches.
        self.prepare_adapters(blend, usize::MAX)?;
        let recipe = Recipe::new(blend)?;
        for stage in &mut self.stages {
            let (own, _) = stage.own(blend, &recipe)?;
            stage.executor.set_adapters(own)?;
        }
        Ok(())
    }

    fn forget_adapters(&mut self, blend: &Blend) -> Result<()> {
        let mut stages = self.stages.iter_mut();
        stages.try_for_each(|stage| stage.executor.forget_adapters(blend))
    }

    fn weight_reads(&self) -> WeightReads {
        self.executors().map(Executor::weight_reads).sum()
    }

    fn stats(&self) -> ExecutorStats {
        let stats = self.executors().map(Executor::stats);
        stats.reduce(ExecutorStats::beside).unwrap_or_default()
    }

    fn set_timing(&mut self, timing: Timing) -> Result<bool> {
        let mut any = false;
        for stage in &mut self.stages {
            any |= stage.executor.set_timing(timing)?;
        }
        Ok(any)
    }

    /// As if one device's clock had gone on where the one before stopped.
    fn take_times(&mut self) -> Vec<StepTimes> {
        let times = self.stages.iter_mut().map(|s| s.executor.take_times());
        let joined = times.reduce(|mut steps, others| {
            steps.resize(steps.len().max(others.len()), StepTimes::default());
            for (step, other) in steps.iter_mut().zip(others) {
                step.append(other);
            }
            steps
        });
        joined.unwrap_or_default()
    }
}
