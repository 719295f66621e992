//! One batch on its way: tables and inputs in, the dispatches of its plan, results out.

use super::{GpuExecutor, layout::BatchShape};
use crate::{
    Adapter, Batch, Executor, Result,
    adapter::Recipe,
    batch::Tables,
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
        let plan = self.plan(BatchShape::of(&tables))?;
        let gpu = self.kernels.gpu().clone();
        let bytes = plan.results().bytes();
        self.readback(bytes)?;
        self.meter.begin();
        let stage = tracing::trace_span!("record").entered();
        plan.write_tables(&gpu, &tables)?;
        plan.inputs().write(&gpu, carried)?;
        let before = self.unread.take();
        let mut dispatches = plan.dispatches();
        let busy = before
            .as_ref()
            .is_some_and(|(_, tokens)| *tokens > LONG_STEP);
        if !busy && !self.meter.is_timing() && tables.tokens.len() > LONG_STEP {
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
        self.meter.dispatch(&mut recorder, dispatches, 1)?;
        if let Some(readback) = &self.readback {
            plan.results().read(&mut recorder, readback);
        }
        self.meter.recorded();
        drop(stage);
        let stage = tracing::trace_span!("submit").entered();
        let submission = recorder.submit()?;
        self.meter.submitted()?;
        drop(stage);
        let _stage = tracing::trace_span!("wait").entered();
        match &self.readback {
            Some(readback) if bytes > 0 => readback.view(&gpu, &submission, bytes, |raw| {
                plan.results().take(raw, carried);
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

impl BatchShape {
    /// The shape of a batch.
    pub(super) fn of(tables: &Tables) -> Self {
        Self {
            tokens: tables.tokens.len(),
            spans: tables.spans.len(),
            outputs: tables.outputs.len(),
        }
    }
}
