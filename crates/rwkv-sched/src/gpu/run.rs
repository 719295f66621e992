//! One batch on its way: tables and inputs in, the dispatches of its plan, results out.

use super::GpuExecutor;
use crate::{
    Adapter, Batch, BatchShape, Executor, Result,
    adapter::Recipe,
    part::{Carried, PartExecutor},
};
use std::sync::Arc;

/// Steps of more tokens are submitted in parts, of which the first has so many dispatches and each further one three times
/// the one before: the GPU needs longer for a part than the host to record the next one.
const LONG_STEP: usize = 64;
const FIRST: usize = 16;

impl PartExecutor for GpuExecutor {
    fn run_part(&mut self, batch: &Batch, carried: &mut Carried) -> Result<()> {
        let mut tables = batch.tables(self.model.config().vocab, self.slots())?;
        if self.model.graph().logits().is_none() {
            tables.outputs.clear();
        }
        let shape = BatchShape::of(&tables);
        let plan = self.plan(shape.padded())?;
        let gpu = self.kernels.gpu().clone();
        let bytes = plan.results().bytes(shape);
        self.readback(bytes)?;
        self.meter.begin();
        let stage = tracing::trace_span!("record").entered();
        plan.write_tables(&gpu, &tables)?;
        if !self.host_tables.is_empty() {
            let tokens: Vec<u32> = tables.tokens.iter().map(|token| token.id).collect();
            self.host_tables.look_up(&self.model, &tokens, carried)?;
        }
        plan.inputs().write(&gpu, carried)?;
        let before = self.unread.take();
        let timing = self.meter.is_timing();
        let ready = plan.take_recording().filter(|_| !timing);
        self.meter.prepared(ready.is_some());
        let mut dispatches = plan.dispatches();
        if ready.is_some() {
            self.meter.launch(dispatches.len());
            dispatches = &[];
        }
        let busy = before
            .as_ref()
            .is_some_and(|(_, tokens)| *tokens > LONG_STEP);
        if !busy && !timing && tables.tokens.len() > LONG_STEP {
            // The GPU begins while the rest is recorded, which takes the host less time.
            let mut part = FIRST;
            while dispatches.len() > 2 * part {
                let (first, rest) = dispatches.split_at(part);
                let mut recorder = gpu.recorder("step");
                self.meter.dispatch(&mut recorder, first, 1)?;
                recorder.submit()?;
                (dispatches, part) = (rest, 3 * part);
            }
        }
        let mut recorder = gpu.recorder("step");
        if !dispatches.is_empty() {
            self.meter.dispatch(&mut recorder, dispatches, 1)?;
        }
        if let Some(readback) = &self.readback {
            plan.results().read(&mut recorder, shape, readback);
        }
        let rest = recorder.finish()?;
        self.meter.recorded();
        drop(stage);
        let stage = tracing::trace_span!("submit").entered();
        let submission = gpu.submit(ready.into_iter().chain([rest]))?;
        self.meter.submitted()?;
        drop(stage);
        if !timing {
            let _stage = tracing::trace_span!("prepare").entered();
            let mut prepared = std::mem::take(&mut self.prepared);
            prepared.record(self);
            self.prepared = prepared;
        }
        let _stage = tracing::trace_span!("wait").entered();
        match &self.readback {
            Some(readback) if bytes > 0 => readback.view(&gpu, &submission, bytes, |raw| {
                plan.results().take(raw, shape, carried);
            })?,
            _ if self.meter.is_timing() => gpu.wait(&submission)?,
            // The host records a prompt's next chunk while the GPU has this one, and is never further ahead.
            _ => {
                if let Some((before, _)) = before {
                    gpu.wait(&before)?;
                }
                self.unread = Some((submission, tables.tokens.len()));
            }
        }
        self.meter.finished(tables.tokens.len());
        Ok(())
    }

    fn forget_adapters(&mut self, blend: &[(Arc<Adapter>, f32)]) -> Result<()> {
        self.blends.forget_one(&Recipe::new(blend)?);
        self.drop_stale_plans();
        Ok(())
    }
}
