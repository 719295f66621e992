//! Decoding with the sampler on the GPU: steps are submitted before the tokens of those before them are known to the host.
//!
//! The sampling kernel writes each token where the next step's embedding reads it, so nothing waits for the host, which
//! reads the tokens a few steps behind. When the caller stops, the states have run ahead of it: they go back to a copy
//! that was made on the way, and the few tokens since are fed again, by the same kernels.
//!
//! Where tables of tokens are on the host, each step waits for the token of the one before: only sampling stays on the GPU.

use super::{
    GpuExecutor,
    blend::if_there_is_room,
    copies::StateCopies,
    meter::Meter,
    plan::Plan,
    prepare::Prepared,
    samplers::{Samplers, chosen, ring_bytes, unread},
};
use crate::{
    BatchShape, Counted, Decoding, Executor, OnTokens, Result, SlotId, TokenId, Wanted,
    batch::Tables, decode::batch, part::Carried,
};
use rwkv_gpu::{Dispatch, Readback, Recorder, Recording, Submission};
use std::{
    collections::VecDeque,
    ops::ControlFlow,
    time::{Duration, Instant},
};

/// Steps that are submitted before the first of them is read, at most, and where they are slow: twice what one submission
/// has, so that the next one is there when it ends.
const AHEAD: usize = 16;
const LEAST_AHEAD: usize = 4;

/// Steps of one submission at most, and about how long they take together: a GPU rests for some 20 µs between two
/// submissions, and who reads along should not see tokens in bursts.
const TOGETHER: usize = 8;
const BURST: Duration = Duration::from_millis(4);

/// Steps between copies of the states.
const BETWEEN_COPIES: usize = 64;

/// Copies of the slots' states, the two newest.
struct Copies(Vec<Copy>);

struct Copy {
    states: StateCopies,
    /// The step that it was made before.
    made: Option<usize>,
}

impl Copies {
    /// Room for those that so many steps make, two at most.
    fn new(executor: &GpuExecutor, slots: &[SlotId], steps: usize) -> Result<Self> {
        let room = |_| {
            let states = StateCopies::new(&executor.pool, &executor.states, slots)?;
            Ok(Copy { states, made: None })
        };
        let some = steps.div_ceil(BETWEEN_COPIES).clamp(1, 2);
        Ok(Self((0..some).map(room).collect::<Result<_>>()?))
    }
}

/// Steps on their way.
struct Submitted {
    submission: Submission,
    /// Its number, which tells the readback buffer, and its steps.
    number: usize,
    steps: std::ops::Range<usize>,
}

/// A decoding on its way.
struct Run<'a> {
    executor: &'a GpuExecutor,
    meter: &'a mut Meter,
    /// The plan's, and the sampler's.
    dispatches: Vec<Dispatch>,
    /// The plan's for the first step, if they were recorded before.
    first: Option<Recording>,
    samplers: Samplers,
    readbacks: &'a [Readback],
    copies: Copies,
    /// Submissions that were not read, and tokens of those that were.
    waiting: VecDeque<Submitted>,
    ready: VecDeque<Vec<u32>>,
    submissions: usize,
    submitted: usize,
    read: usize,
    begun: Instant,
}

impl Run<'_> {
    /// How many steps the next submission should have, and how many may be on their way: one of each where the host has to
    /// bring rows of the last token. One in the first submission, so that the first token is soon there.
    fn ahead(&self) -> (usize, usize) {
        if !self.executor.host_tables.is_empty() {
            return (1, 1);
        }
        let together = self.together();
        (together, (2 * together).clamp(LEAST_AHEAD, AHEAD))
    }

    fn together(&self) -> usize {
        if self.read == 0 || self.meter.is_timing() {
            return 1;
        }
        let one = self.begun.elapsed().as_nanos() / self.read as u128;
        let fit = BURST.as_nanos() / one.max(1);
        usize::try_from(fit).unwrap_or(TOGETHER).clamp(1, TOGETHER)
    }

    /// Submits `steps` steps: in one pass, since a pass and a copy between two steps cost them some 10 µs.
    fn submit(&mut self, steps: usize) -> Result<()> {
        let gpu = self.executor.kernels.gpu();
        let mut recordings = Vec::new();
        let mut recorder = gpu.recorder("steps");
        self.meter.begin();
        let steps = self.submitted..self.submitted + steps;
        let mut from = steps.start;
        while from < steps.end {
            if from.is_multiple_of(BETWEEN_COPIES) {
                self.copy_states(&mut recorder, from)?;
            }
            let mut to = (from + 1).next_multiple_of(BETWEEN_COPIES).min(steps.end);
            let mut dispatches = &self.dispatches[..];
            if let (Some(ready), Some((sample, before))) =
                (self.first.take(), dispatches.split_last())
            {
                let copies = std::mem::replace(&mut recorder, gpu.recorder("steps"));
                recordings.extend([copies.finish()?, ready]);
                self.meter.launch(before.len());
                (dispatches, to) = (std::slice::from_ref(sample), from + 1);
            }
            self.meter.dispatch(&mut recorder, dispatches, to - from)?;
            from = to;
        }
        let number = self.submissions;
        let Some(readback) = self.readbacks.get(number % (AHEAD + 1)) else {
            return Err(unread());
        };
        let (ids, bytes) = self.samplers.ring();
        recorder.read(ids, 0, bytes, readback);
        recordings.push(recorder.finish()?);
        self.meter.recorded();
        self.waiting.push_back(Submitted {
            submission: gpu.submit(recordings)?,
            number,
            steps: steps.clone(),
        });
        self.meter.submitted()?;
        self.submissions += 1;
        self.submitted = steps.end;
        Ok(())
    }

    /// Keeps what the states are before `step`.
    fn copy_states(&mut self, recorder: &mut Recorder, step: usize) -> Result<()> {
        let which = step / BETWEEN_COPIES % self.copies.0.len().max(1);
        if let Some(copy) = self.copies.0.get_mut(which) {
            copy.states.fill(recorder, &self.executor.states)?;
            copy.made = Some(step);
        }
        Ok(())
    }

    /// The tokens of the oldest step that was not read.
    fn tokens(&mut self) -> Result<Vec<TokenId>> {
        self.meter.begin();
        if self.ready.is_empty() {
            self.wait()?;
        }
        let Some(words) = self.ready.pop_front() else {
            return Err(unread());
        };
        self.meter.finished(words.len());
        self.read += 1;
        chosen(&words, self.executor.model.config().vocab)
    }

    /// Reads what the oldest submission made.
    fn wait(&mut self) -> Result<()> {
        let gpu = self.executor.kernels.gpu();
        let Some(oldest) = self.waiting.pop_front() else {
            return Err(unread());
        };
        let Some(readback) = self.readbacks.get(oldest.number % (AHEAD + 1)) else {
            return Err(unread());
        };
        let (_, bytes) = self.samplers.ring();
        let ring: Vec<u32> =
            readback.view(gpu, &oldest.submission, bytes, bytemuck::pod_collect_to_vec)?;
        for step in oldest.steps {
            let words = self.samplers.rows().words(&ring, step as u64)?;
            self.ready.push_back(words);
        }
        Ok(())
    }
}

impl GpuExecutor {
    /// As [`Executor::decode`]; says whether it did, or left everything as it was for the host to do.
    pub(super) fn decode_ahead(
        &mut self,
        sequences: &mut [Decoding],
        steps: usize,
        counted: Counted<'_>,
        take: OnTokens<'_>,
    ) -> Result<bool> {
        let tables =
            batch(sequences, Wanted::Last).tables(self.model.config().vocab, self.slots())?;
        let Some(plan) = if_there_is_room(self.plan(BatchShape::of(&tables).padded()))? else {
            return Ok(false);
        };
        let mut readbacks = std::mem::take(&mut self.token_readbacks);
        let bytes = ring_bytes(sequences.len());
        if readbacks.len() <= AHEAD || readbacks.iter().any(|r| r.capacity() < bytes) {
            let gpu = self.kernels.gpu();
            let one = |_| {
                Ok(Readback::new(
                    gpu,
                    "sampled tokens",
                    bytes.next_power_of_two().max(64),
                )?)
            };
            let all = (0..=AHEAD).map(one).collect::<Result<_>>();
            let Some(made) = if_there_is_room(all)? else {
                return Ok(false);
            };
            readbacks = made;
        }
        let mut meter = std::mem::take(&mut self.meter);
        let mut prepared = std::mem::take(&mut self.prepared);
        let done = self.run_ahead(
            (&mut meter, &mut prepared, &readbacks),
            &plan,
            (sequences, steps),
            counted,
            take,
            &tables,
        );
        self.meter = meter;
        self.prepared = prepared;
        self.token_readbacks = readbacks;
        let Some(replay) = done? else {
            return Ok(false);
        };
        // What the caller has not seen is undone; what it has seen since the copy is fed again.
        for tokens in replay {
            let mut again = sequences.to_vec();
            for (sequence, token) in again.iter_mut().zip(tokens) {
                sequence.token = token;
            }
            self.run(&batch(&again, Wanted::None))?;
        }
        Ok(true)
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

    /// The tokens that are to be fed once more, step by step; none where the sampler's kernel does not serve, or where there
    /// is no memory for running ahead.
    fn run_ahead(
        &self,
        (meter, prepared, readbacks): (&mut Meter, &mut Prepared, &[Readback]),
        plan: &Plan,
        (sequences, steps): (&mut [Decoding], usize),
        counted: Counted<'_>,
        take: OnTokens<'_>,
        tables: &Tables,
    ) -> Result<Option<Vec<Vec<TokenId>>>> {
        let gpu = self.kernels.gpu();
        let samplers = if_there_is_room(Samplers::new(self, plan, sequences, steps, counted))?;
        let Some(samplers) = samplers.flatten() else {
            return Ok(None);
        };
        // What does not run ahead has nothing to undo.
        let undone = sequences.iter().filter(|_| self.runs_ahead() && steps > 1);
        let slots: Vec<SlotId> = undone.map(|s| s.slot).collect();
        let Some(copies) = if_there_is_room(Copies::new(self, &slots, steps))? else {
            return Ok(None);
        };
        plan.write_tables(gpu, tables)?;
        let timing = meter.is_timing();
        let first = plan.take_recording().filter(|_| !timing);
        meter.prepared(first.is_some());
        let mut run = Run {
            executor: self,
            meter,
            dispatches: samplers.after(plan),
            first,
            samplers,
            readbacks,
            copies,
            waiting: VecDeque::new(),
            ready: VecDeque::new(),
            submissions: 0,
            submitted: 0,
            read: 0,
            begun: Instant::now(),
        };
        // What was fed at each step.
        let mut fed: Vec<Vec<TokenId>> = Vec::new();
        while run.read < steps {
            loop {
                let (together, ahead) = run.ahead();
                let next = together.min(steps - run.submitted);
                if next == 0 || run.submitted - run.read + next > ahead {
                    break;
                }
                self.bring_rows(plan, sequences)?;
                run.submit(next)?;
            }
            // Now, while the GPU has several steps before it.
            if run.read == 0 && !timing {
                prepared.record(self);
            }
            fed.push(sequences.iter().map(|s| s.token).collect());
            let tokens = run.tokens()?;
            for (sequence, token) in sequences.iter_mut().zip(&tokens) {
                sequence.sampler.drawn(*token, counted(*token));
                sequence.token = *token;
            }
            if take(&tokens) == ControlFlow::Break(()) {
                break;
            }
            if !timing {
                prepared.record_expected(self);
            }
        }
        if run.submitted == run.read {
            return Ok(Some(Vec::new()));
        }
        // The newest copy that is not ahead of the caller.
        let made = run.copies.0.iter();
        let made = made.filter_map(|copy| Some((copy.made?, &copy.states)));
        let seen = made.filter(|(step, _)| *step <= run.read);
        let Some((step, copies)) = seen.max_by_key(|(step, _)| *step) else {
            return Err(unread());
        };
        let mut recorder = gpu.recorder("states go back");
        copies.put_back(&mut recorder, &self.states)?;
        recorder.submit()?;
        Ok(Some(fed.split_off(step)))
    }
}
