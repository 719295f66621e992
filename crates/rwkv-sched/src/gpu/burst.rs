//! A chunk of prompts and the decoding after it, submitted without waiting for the host in between: the sampler draws the first
//! tokens of the prompts that end, and writes them where the first step that decodes reads them. Where there are no prompts, the
//! first step that decodes is the chunk.
//!
//! All memory is taken before anything is submitted. Then the chunk is submitted first, so that the GPU has something to do while the
//! host makes the rest ready.

use super::{
    GpuExecutor,
    blend::if_there_is_room,
    decode::{AHEAD, Beginning, Copies, Progress, Run},
    meter::Meter,
    plan::Plan,
    prepare::Prepared,
    samplers::{Samplers, Sampling, ring_bytes, unread},
};
use crate::{
    Batch, BatchShape, Burst, Decoding, Executor, OnDrawn, Result, SlotId, TokenId, Wanted,
    batch::Tables, decode::batch, part::Carried,
};
use rwkv_gpu::Readback;
use std::{collections::VecDeque, sync::Arc};

/// What is there before anything is submitted: all that takes memory.
struct Ready {
    chunk: (Arc<Plan>, Tables),
    /// What is drawn from the chunk, if anything is.
    beginning: Option<Beginning>,
    /// The steps that decode, if there are any.
    next: Option<Next>,
    samplers: Samplers,
    copies: Copies,
}

/// Steps that decode.
struct Next {
    plan: Arc<Plan>,
    /// Where they are not the chunk's.
    tables: Option<Tables>,
    sampling: Sampling,
}

/// What is asked for.
struct Asked<'a> {
    /// The chunk, and who begins with each of its rows of logits.
    prompts: &'a Batch,
    begins: Vec<Option<usize>>,
    /// Whether it is a step that decodes, as all others.
    decodes: bool,
    /// Steps after it.
    steps: usize,
}

/// What an executor lends while steps are on their way.
struct Lent<'a> {
    meter: &'a mut Meter,
    prepared: &'a mut Prepared,
    readbacks: &'a [Readback],
}

impl GpuExecutor {
    /// As [`Executor::burst`]; says whether it did, or left everything as it was for the host to do.
    pub(super) fn burst_ahead(&mut self, burst: &mut Burst<'_>, take: OnDrawn<'_>) -> Result<bool> {
        let decodes = burst.prompts.spans.is_empty();
        let going_on = burst.stepping().len();
        let steps = if going_on > 0 { burst.steps } else { 0 };
        let own;
        let asked = if decodes {
            own = batch(burst.stepping(), Wanted::Last);
            Asked {
                prompts: &own,
                begins: (0..going_on).map(Some).collect(),
                decodes,
                steps: steps.saturating_sub(1),
            }
        } else {
            Asked {
                prompts: burst.prompts,
                begins: burst.begins(),
                decodes,
                steps,
            }
        };
        if steps == 0 && (decodes || asked.begins.iter().all(Option::is_none)) {
            return Ok(false);
        }
        let ready = self.make_ready(burst, &asked);
        let Some(ready) = if_there_is_room(ready)?.flatten() else {
            return Ok(false);
        };
        let (plan, tables) = &ready.chunk;
        let rows = self.rows_on_host(tables)?;
        self.launch(plan, tables, [&rows, &Carried::new()], |_| ())?;
        let chunk = tables.tokens.len();
        let decoding = ready.next.as_ref().map(|next| next.plan.clone());
        let mut meter = std::mem::take(&mut self.meter);
        let mut prepared = std::mem::take(&mut self.prepared);
        let readbacks = std::mem::take(&mut self.token_readbacks);
        let lent = Lent {
            meter: &mut meter,
            prepared: &mut prepared,
            readbacks: &readbacks,
        };
        let done = self.run_ahead(ready, (chunk, &asked), lent, burst, take);
        self.meter = meter;
        self.prepared = prepared;
        self.token_readbacks = readbacks;
        // What the caller has not seen is undone; what it has seen since the copy is fed again, by the same plan: it is there.
        let (vocab, slots) = (self.model.config().vocab, self.slots());
        for tokens in done? {
            let mut again = burst.stepping().to_vec();
            for (sequence, token) in again.iter_mut().zip(tokens) {
                sequence.token = token;
            }
            let tables = batch(&again, Wanted::None).tables(vocab, slots)?;
            let plan = decoding.as_ref().ok_or_else(unread)?;
            self.begin(&tables, plan, &Carried::new())?(&mut Carried::new())?;
        }
        Ok(true)
    }

    /// Plans, and memory for all that runs ahead; none where the sampler's kernel does not serve.
    fn make_ready(&mut self, burst: &Burst<'_>, asked: &Asked<'_>) -> Result<Option<Ready>> {
        let (vocab, slots) = (self.model.config().vocab, self.slots());
        let sequences = &*burst.sequences;
        let going_on = burst.stepping().len();
        let tables = asked.prompts.tables(vocab, slots)?;
        let shape = BatchShape::of(&tables);
        if !self.may_run(shape) {
            return Ok(None);
        }
        let plan = self.plan(shape.padded())?;
        let next = match (asked.steps, asked.decodes) {
            (0, _) => None,
            (_, true) => Some((plan.clone(), None)),
            (_, false) => {
                let steps = batch(burst.stepping(), Wanted::Last).tables(vocab, slots)?;
                Some((self.plan(BatchShape::of(&steps).padded())?, Some(steps)))
            }
        };
        let numbers = 0..sequences.len();
        let who: Vec<bool> = numbers.map(|n| asked.begins.contains(&Some(n))).collect();
        let who = who.contains(&true).then_some(who);
        let draws = asked.steps + usize::from(who.is_some());
        let samplers = Samplers::new(self, sequences, draws, who.as_deref())?;
        let Some(samplers) = samplers else {
            return Ok(None);
        };
        let beginning = match who {
            Some(who) => {
                let next = next.as_ref().map(|(plan, _)| (&**plan, going_on));
                let sampling = samplers.draw(self, (&plan, &asked.begins), next)?;
                Some(Beginning { sampling, who })
            }
            None => None,
        };
        let next = match next {
            Some((plan, tables)) => Some(Next {
                sampling: samplers.draw_all(self, &plan, going_on)?,
                plan,
                tables,
            }),
            None => None,
        };
        // What does not run ahead has nothing to undo.
        let undone = burst.may_stop && self.runs_ahead() && draws > 1;
        let undone = burst.stepping().iter().filter(|_| undone);
        let undone: Vec<SlotId> = undone.map(|s| s.slot).collect();
        let copies = Copies::new(self, &undone, asked.steps)?;
        self.make_readbacks(ring_bytes(sequences.len()))?;
        Ok(Some(Ready {
            chunk: (plan, tables),
            beginning,
            next,
            samplers,
            copies,
        }))
    }

    /// Buffers in which rings of tokens come back, of so many bytes at least.
    fn make_readbacks(&mut self, bytes: u64) -> Result<()> {
        let known = &self.token_readbacks;
        if known.len() <= AHEAD || known.iter().any(|r| r.capacity() < bytes) {
            let gpu = self.kernels.gpu();
            let bytes = bytes.next_power_of_two().max(64);
            let one = |_| Ok(Readback::new(gpu, "sampled tokens", bytes)?);
            self.token_readbacks = (0..=AHEAD).map(one).collect::<Result<_>>()?;
        }
        Ok(())
    }

    /// Writes what the next step reads of tables on the host.
    fn bring_rows(&self, plan: &Plan, sequences: &[Decoding]) -> Result<()> {
        if self.host_tables.is_empty() {
            return Ok(());
        }
        let tokens: Vec<TokenId> = sequences.iter().map(|s| s.token).collect();
        let mut rows = Carried::new();
        self.host_tables.look_up(&self.model, &tokens, &mut rows)?;
        plan.inputs()
            .write(self.kernels.gpu(), [&rows, &Carried::new()])
    }

    /// The tokens that are to be fed once more, step by step.
    fn run_ahead(
        &self,
        ready: Ready,
        (chunk, asked): (usize, &Asked<'_>),
        lent: Lent<'_>,
        burst: &mut Burst<'_>,
        take: OnDrawn<'_>,
    ) -> Result<Vec<Vec<TokenId>>> {
        let gpu = self.kernels.gpu();
        let Ready {
            beginning,
            next,
            samplers,
            copies,
            ..
        } = ready;
        let Lent {
            meter,
            prepared,
            readbacks,
        } = lent;
        samplers.count(gpu, burst.counted)?;
        let timing = meter.is_timing();
        let (mut dispatches, mut first) = (Vec::new(), None);
        if let Some(Next {
            plan,
            tables,
            sampling,
        }) = &next
        {
            dispatches = sampling.after(plan);
            if let Some(tables) = tables {
                plan.write_tables(gpu, tables)?;
                if !timing {
                    prepared.record_next(self, plan);
                }
                first = plan.take_recording().filter(|_| !timing);
                meter.prepared(first.is_some());
            }
        }
        let mut run = Run {
            executor: self,
            meter,
            beginning,
            chunk: Some(chunk),
            going_on: burst.stepping().len(),
            dispatches,
            first,
            samplers,
            readbacks,
            copies,
            progress: Progress::default(),
        };
        let mut all = asked.steps + run.first_step();
        // What was fed at each step since the newest copy of the states, if there are copies.
        let mut fed = VecDeque::new();
        while run.read() < all {
            loop {
                let due = run.due(all - run.submitted());
                if due == 0 {
                    break;
                }
                if let (Some(next), true) = (&next, run.submitted() >= run.first_step()) {
                    self.bring_rows(&next.plan, burst.stepping())?;
                }
                run.submit(due)?;
            }
            // Now, while the GPU has several steps before it.
            if run.read() == 0 && !timing {
                prepared.record(self);
            }
            if let Some((step, _)) = run.copies.newest(run.read()) {
                keep_last(&mut fed, run.read() - step);
                fed.push_back(burst.stepping().iter().map(|s| s.token).collect());
            }
            let drawn = run.tokens()?;
            for (sequence, token) in burst.sequences.iter_mut().zip(&drawn) {
                if let Some(token) = *token {
                    sequence.drew(token, burst.counted);
                }
            }
            if take(&drawn).is_break() {
                if burst.may_stop {
                    break;
                }
                // What is on its way is told, so that nothing need be undone.
                all = run.submitted();
            }
            // When the GPU has nothing to do, whoever asks for the next step has it recorded as soon.
            if run.is_under_way() && !timing {
                prepared.record_expected(self);
            }
        }
        if run.submitted() == run.read() {
            return Ok(Vec::new());
        }
        let Some((step, copies)) = run.copies.newest(run.read()) else {
            return Err(unread());
        };
        let mut recorder = gpu.recorder("states go back");
        copies.put_back(&mut recorder, &self.states)?;
        recorder.submit()?;
        keep_last(&mut fed, run.read() - step);
        Ok(fed.into())
    }
}

fn keep_last(fed: &mut VecDeque<Vec<TokenId>>, steps: usize) {
    fed.drain(..fed.len().saturating_sub(steps));
}
