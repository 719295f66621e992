//! The last part of a model that draws tokens where the logits are: the micro-batches of a decoding go through it in turns.

use super::{
    GpuExecutor,
    blend::if_there_is_room,
    plan::Plan,
    samplers::{Samplers, Sampling, unread},
};
use crate::{
    Batch, BatchShape, Executor, Result, Wanted,
    decode::batch,
    part::{Begun, Carried, Drawing},
};
use rwkv_gpu::Dispatch;
use std::sync::Arc;

/// What a micro-batch of a decoding needs, step after step.
pub(super) struct Draws {
    plan: Arc<Plan>,
    samplers: Samplers,
    _sampling: Sampling,
    /// The plan's, and the sampler's.
    dispatches: Vec<Dispatch>,
    /// Steps that were begun.
    steps: u64,
}

impl GpuExecutor {
    /// As [`PartExecutor::prepare_drawing`](crate::part::PartExecutor::prepare_drawing).
    pub(super) fn prepare_draws(&mut self, drawing: &Drawing<'_>) -> Result<bool> {
        self.draws.clear();
        let mut draws = Vec::new();
        for group in drawing.groups {
            let tables =
                batch(group, Wanted::Last).tables(self.model.config().vocab, self.slots())?;
            let Some(plan) = if_there_is_room(self.plan(BatchShape::of(&tables).padded()))? else {
                return Ok(false);
            };
            let samplers = Samplers::new(self, group, drawing.steps, None);
            let Some(samplers) = if_there_is_room(samplers)?.flatten() else {
                return Ok(false);
            };
            let Some(sampling) = if_there_is_room(samplers.draw_all(self, &plan, group.len()))?
            else {
                return Ok(false);
            };
            let inputs = plan.inputs().reserve(&mut self.upload);
            if if_there_is_room(inputs)?.is_none() {
                return Ok(false);
            }
            samplers.count(self.kernels.gpu(), drawing.counted)?;
            draws.push(Draws {
                dispatches: sampling.after(&plan),
                plan,
                samplers,
                _sampling: sampling,
                steps: 0,
            });
        }
        self.draws = draws;
        Ok(true)
    }

    /// As [`PartExecutor::begin_drawing`](crate::part::PartExecutor::begin_drawing).
    pub(super) fn begin_draw(
        &mut self,
        group: usize,
        batch: &Batch,
        carried: &Carried,
    ) -> Result<Begun> {
        let tables = batch.tables(self.model.config().vocab, self.slots())?;
        let gpu = self.kernels.gpu().clone();
        let rows = self.rows_on_host(&tables)?;
        let draws = self.draws.get_mut(group).ok_or_else(unread)?;
        let (ids, bytes) = draws.samplers.ring();
        let readback = self.readbacks.take(&gpu, bytes)?.ok_or_else(unread)?;
        self.unread = None;
        self.meter.plan(true);
        self.meter.begin();
        let stage = tracing::trace_span!("record").entered();
        draws.plan.write_tables(&gpu, &tables)?;
        let mut recorder = gpu.recorder("step");
        let staged =
            draws
                .plan
                .inputs()
                .stage(&gpu, &mut self.upload, &mut recorder, [&rows, carried])?;
        let timing = self.meter.is_timing();
        let ready = draws.plan.take_recording().filter(|_| !timing);
        self.meter.prepared(ready.is_some());
        let mut dispatches = &draws.dispatches[..];
        let mut recordings = Vec::new();
        if let (Some(ready), Some((sampler, before))) = (ready, dispatches.split_last()) {
            if staged.is_some() {
                let inputs = std::mem::replace(&mut recorder, gpu.recorder("step"));
                recordings.push(inputs.finish()?);
            }
            recordings.push(ready);
            self.meter.launch(before.len());
            dispatches = std::slice::from_ref(sampler);
        }
        self.meter.dispatch(&mut recorder, dispatches, 1)?;
        recorder.read(ids, 0, bytes, &readback);
        recordings.push(recorder.finish()?);
        self.meter.recorded();
        drop(stage);
        let stage = tracing::trace_span!("submit").entered();
        let submission = gpu.submit(recordings)?;
        if let Some(staged) = staged {
            self.upload.submitted(staged, &submission);
        }
        self.meter.submitted()?;
        drop(stage);
        // The next step is as this one.
        if !timing
            && !draws.plan.has_recording()
            && let Err(error) = draws.plan.prepare(&gpu)
        {
            tracing::debug!("a step was not prepared: {error}");
        }
        let wait = self.meter.waits(tables.tokens.len());
        let (rows, step) = (draws.samplers.rows().clone(), draws.steps);
        draws.steps += 1;
        Ok(Box::new(move |_| {
            let ring: Vec<u32> =
                readback.view(&gpu, &submission, bytes, bytemuck::pod_collect_to_vec)?;
            wait.finished();
            rows.words(&ring, step)
        }))
    }
}
