//! One batch on its way: tables and inputs in, the dispatches of its plan, results out.

use super::{
    GpuExecutor,
    blend::{if_there_is_room, out_of_memory},
    copies,
    plan::Plan,
};
use crate::{
    Batch, BatchShape, Executor, Result, SlotId,
    batch::Tables,
    part::{Begun, Carried, Drawing, PartExecutor, StateCopies},
};
use rwkv_gpu::{Recorder, Submission};
use std::sync::Arc;

/// Steps of more tokens are submitted in parts, of which the first has so many dispatches and each further one three times
/// the one before: the GPU needs longer for a part than the host to record the next one.
const LONG_STEP: usize = 64;
const FIRST: usize = 16;

impl PartExecutor for GpuExecutor {
    fn begin_part(&mut self, batch: &Batch, carried: &Carried) -> Result<Begun> {
        let tables = self.tables(batch)?;
        let shape = BatchShape::of(&tables);
        if self.may_run(shape) {
            match self.ready(shape) {
                Err(error) if shape.tokens > 1 && out_of_memory(&error) => {
                    tracing::debug!(?shape, "no room: {error}");
                }
                plan => return self.begin(&tables, &*plan?, carried),
            }
        }
        self.begin_pieces(batch, shape, carried)
    }

    fn prepare_drawing(&mut self, drawing: &Drawing<'_>) -> Result<bool> {
        self.prepare_draws(drawing)
    }

    fn begin_drawing(&mut self, group: usize, batch: &Batch, carried: &Carried) -> Result<Begun> {
        self.begin_draw(group, batch, carried)
    }

    fn state_copies(&mut self, slots: &[SlotId]) -> Result<Option<StateCopies>> {
        let copies = if_there_is_room(copies::StateCopies::new(&self.pool, &self.states, slots))?;
        Ok(copies.map(StateCopies::Gpu))
    }

    fn copy_states(&mut self, copies: &mut StateCopies) -> Result<()> {
        if let StateCopies::Gpu(copies) = copies {
            let mut recorder = self.kernels.gpu().recorder("copies of states");
            copies.fill(&mut recorder, &self.states)?;
            recorder.submit()?;
        }
        Ok(())
    }

    fn put_back(&mut self, copies: &StateCopies) -> Result<()> {
        if let StateCopies::Gpu(copies) = copies {
            let mut recorder = self.kernels.gpu().recorder("states go back");
            copies.put_back(&mut recorder, &self.states)?;
            recorder.submit()?;
        }
        Ok(())
    }
}

impl GpuExecutor {
    /// A batch as the kernels read it, without the rows of logits that this part does not make.
    pub(super) fn tables(&self, batch: &Batch) -> Result<Tables> {
        let mut tables = batch.tables(self.model.config().vocab, self.slots())?;
        if self.model.graph().logits().is_none() {
            tables.outputs.clear();
        }
        Ok(tables)
    }

    /// The plan for a batch of `shape`, and a place for its inputs and results: nothing that [`begin`](Self::begin) needs can be missing
    /// then.
    fn ready(&mut self, shape: BatchShape) -> Result<Arc<Plan>> {
        let plan = self.plan(shape.padded())?;
        let bytes = plan.results().bytes(shape);
        drop(self.readbacks.take(self.kernels.gpu(), bytes)?);
        plan.inputs().reserve(&mut self.upload)?;
        Ok(plan)
    }

    /// As [`begin_part`](PartExecutor::begin_part) by `plan`.
    pub(super) fn begin(
        &mut self,
        tables: &Tables,
        plan: &Plan,
        carried: &Carried,
    ) -> Result<Begun> {
        let shape = BatchShape::of(tables);
        let gpu = self.kernels.gpu().clone();
        let bytes = plan.results().bytes(shape);
        let readback = self.readbacks.take(&gpu, bytes)?;
        let rows = self.rows_on_host(tables)?;
        let (submission, before) = self.launch(plan, tables, [&rows, carried], |recorder| {
            if let Some(readback) = &readback {
                plan.results().read(recorder, shape, readback);
            }
        })?;
        let timing = self.meter.is_timing();
        if !timing {
            let _stage = tracing::trace_span!("prepare").entered();
            let mut prepared = std::mem::take(&mut self.prepared);
            prepared.record(self);
            self.prepared = prepared;
        }
        let wait = self.meter.waits(tables.tokens.len());
        if let Some(readback) = readback {
            let results = plan.results().layout(shape);
            return Ok(Box::new(move |carried| {
                let _stage = tracing::trace_span!("wait").entered();
                results.take(readback.left(&gpu, &submission, bytes)?, carried);
                wait.finished();
                Ok(Vec::new())
            }));
        }
        let _stage = tracing::trace_span!("wait").entered();
        if timing {
            gpu.wait(&submission)?;
        } else {
            // The host records a prompt's next chunk while the GPU has this one, and is never further ahead.
            if let Some(before) = before {
                gpu.wait(&before)?;
            }
            self.unread = Some((submission, tables.tokens.len()));
        }
        wait.finished();
        Ok(Box::new(|_| Ok(Vec::new())))
    }

    /// Submits the step of a batch by its plan, and what `after` records with it. The batch before it comes along, if nobody has
    /// waited for that.
    pub(super) fn launch(
        &mut self,
        plan: &Plan,
        tables: &Tables,
        carried: [&Carried; 2],
        after: impl FnOnce(&mut Recorder),
    ) -> Result<(Submission, Option<Submission>)> {
        let gpu = self.kernels.gpu();
        self.meter.begin();
        let stage = tracing::trace_span!("record").entered();
        plan.write_tables(gpu, tables)?;
        let mut recorder = gpu.recorder("step");
        let staged = plan
            .inputs()
            .stage(gpu, &mut self.upload, &mut recorder, carried)?;
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
                self.meter.dispatch(&mut recorder, first, 1)?;
                std::mem::replace(&mut recorder, gpu.recorder("step")).submit()?;
                (dispatches, part) = (rest, 3 * part);
            }
        }
        let mut recordings = Vec::new();
        if let Some(ready) = ready {
            if staged.is_some() {
                let inputs = std::mem::replace(&mut recorder, gpu.recorder("step"));
                recordings.push(inputs.finish()?);
            }
            recordings.push(ready);
        }
        if !dispatches.is_empty() {
            self.meter.dispatch(&mut recorder, dispatches, 1)?;
        }
        after(&mut recorder);
        recordings.push(recorder.finish()?);
        self.meter.recorded();
        drop(stage);
        let _stage = tracing::trace_span!("submit").entered();
        let submission = gpu.submit(recordings)?;
        if let Some(staged) = staged {
            self.upload.submitted(staged, &submission);
        }
        self.meter.submitted()?;
        Ok((submission, before.map(|(before, _)| before)))
    }

    /// Rows of its tokens from tables that are on the host.
    pub(super) fn rows_on_host(&self, tables: &Tables) -> Result<Carried> {
        let mut rows = Carried::new();
        if !self.host_tables.is_empty() {
            let tokens: Vec<u32> = tables.tokens.iter().map(|token| token.id).collect();
            self.host_tables.look_up(&self.model, &tokens, &mut rows)?;
        }
        Ok(rows)
    }
}
