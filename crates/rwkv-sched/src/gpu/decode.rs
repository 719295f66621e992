//! Decoding with the sampler on the GPU: steps are submitted before the tokens of those before them are known to the host.
//!
//! The sampling kernel writes each token where the next step's embedding reads it, so nothing waits for the host, which
//! reads the tokens a few steps behind. When the caller stops, the states have run ahead of it: they go back to a copy
//! that was made on the way, and the few tokens since are fed again, by the same kernels.
//!
//! Where tables of tokens are on the host, each step waits for the token of the one before: only sampling stays on the GPU.

use super::{GpuExecutor, blend::out_of_memory, meter::Meter, plan::Plan, prepare::Prepared};
use crate::{
    BatchShape, Decoding, Error, Executor, OnTokens, Result, SlotId, TokenId, Wanted,
    batch::Tables, decode::batch, part::Carried,
};
use rwkv_gpu::{Binding, BufferKind, Dispatch, Readback, Recorder, Recording, Submission};
use rwkv_kernels::{
    View,
    ops::Sample,
    sampling::{
        Chosen, Draw, DrawSettings, SamplingError, bias_words, counted_words, memory_words,
    },
};
use rwkv_mem::{Pool, Pooled};
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

/// Rows of the ring of tokens: more than are on their way.
const RING: usize = 32;

/// A buffer or a copy that must be there is not.
fn unread() -> Error {
    Error::Config {
        problem: "tokens that were sampled cannot be read: this is a mistake in this program"
            .to_owned(),
    }
}

/// Bytes of the ring of tokens of so many sequences.
fn ring_bytes(sequences: usize) -> u64 {
    (sequences * 4 * RING) as u64
}

/// What the sampling kernel reads and keeps.
struct Samplers {
    sample: Dispatch,
    /// With their sizes; the last one is the ring of tokens.
    buffers: Vec<(Pooled, u64)>,
}

impl Samplers {
    /// None where a sampler's memory does not fit the kernel's.
    fn new(
        executor: &GpuExecutor,
        plan: &Plan,
        sequences: &[Decoding],
        steps: usize,
        counted: &dyn Fn(TokenId) -> bool,
    ) -> Result<Option<Self>> {
        let (kernels, vocab) = (&executor.kernels, executor.model.config().vocab);
        let gpu = kernels.gpu();
        let Some((logits, offset)) = plan.results().first() else {
            return Ok(None);
        };
        let said = sequences.iter().map(|s| s.sampler.counts().len()).max();
        let capacity = said.unwrap_or(0).saturating_add(steps).min(vocab).max(1);
        let (mut draws, mut settings, mut biases, mut memory) = (vec![], vec![], vec![], vec![]);
        for (index, sequence) in (0u32..).zip(sequences) {
            let params = sequence.sampler.params();
            let first = u32::try_from(biases.len()).unwrap_or(u32::MAX);
            draws.push(Draw {
                slot: index,
                token: index,
                column: index,
                padding: 0,
            });
            settings.push(DrawSettings::new(params, vocab, first)?);
            biases.extend(bias_words(params));
            let Some(words) = sequence.sampler.to_memory(capacity) else {
                return Ok(None);
            };
            memory.extend(words);
            memory.resize((index as usize + 1) * memory_words(capacity), 0);
        }
        biases.push([0; 2]);
        let counted = counted_words(vocab, counted);
        let contents: [(&str, &[u8]); 5] = [
            ("draws", bytemuck::cast_slice(&draws)),
            ("sampler settings", bytemuck::cast_slice(&settings)),
            ("logit biases", bytemuck::cast_slice(&biases)),
            ("counted tokens", bytemuck::cast_slice(&counted)),
            ("sampler memory", bytemuck::cast_slice(&memory)),
        ];
        let mut buffers = Vec::new();
        for (label, bytes) in contents {
            let size = bytes.len() as u64;
            let buffer = executor.pool.take(BufferKind::Storage, label, size)?;
            gpu.write(&buffer, 0, bytes)?;
            buffers.push((buffer, size));
        }
        let bytes = ring_bytes(sequences.len());
        let ids = executor
            .pool
            .take(BufferKind::Storage, "sampled tokens", bytes)?;
        buffers.push((ids, bytes));
        let [draws, settings, biases, counted, memory, ids] = &buffers[..] else {
            return Ok(None);
        };
        let sample = kernels.sample(&Sample {
            logits: View {
                buffer: logits,
                offset,
                rows: sequences.len(),
                width: vocab,
            },
            draws: part(draws),
            settings: part(settings),
            biases: part(biases),
            counted: part(counted),
            memory: part(memory),
            capacity,
            tokens: plan.tokens(),
            ids: part(ids),
            steps: RING,
            columns: sequences.len(),
        })?;
        Ok(Some(Self { sample, buffers }))
    }
}

fn part((buffer, size): &(Pooled, u64)) -> Binding<'_> {
    Binding {
        buffer,
        offset: 0,
        size: Some(*size),
    }
}

/// Copies of the slots' states, the two newest.
struct Copies {
    /// By sequence.
    buffers: [Vec<Pooled>; 2],
    /// The step that each was made before.
    made: [Option<usize>; 2],
}

impl Copies {
    fn new(pool: &Pool, bytes: u64, sequences: usize) -> Result<Self> {
        let all = || -> Result<Vec<Pooled>> {
            let one = |_| Ok(pool.take(BufferKind::Storage, "copy of a state", bytes)?);
            (0..sequences).map(one).collect()
        };
        Ok(Self {
            buffers: [all()?, all()?],
            made: [None; 2],
        })
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
    slots: Vec<SlotId>,
    /// Draws before the first one here.
    first_draw: Vec<u64>,
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
        let (Some((ids, bytes)), Some(readback)) = (
            self.samplers.buffers.last(),
            self.readbacks.get(number % (AHEAD + 1)),
        ) else {
            return Err(unread());
        };
        recorder.read(ids, 0, *bytes, readback);
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
        let which = step / BETWEEN_COPIES % 2;
        for (slot, buffer) in self.slots.iter().zip(&self.copies.buffers[which]) {
            self.executor.states.copy_out(recorder, *slot, buffer)?;
        }
        self.copies.made[which] = Some(step);
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
        self.meter.finished(self.slots.len());
        self.read += 1;
        let vocab = self.executor.model.config().vocab;
        let token = |word| match Chosen::from(word) {
            Chosen::Token(token) => Ok(token),
            Chosen::NothingPossible => Err(SamplingError::NothingPossible(vocab).into()),
            other => Err(Error::Config {
                problem: format!("the sampler on the GPU failed ({other:?}): a logit is no number"),
            }),
        };
        words.into_iter().map(token).collect()
    }

    /// Reads what the oldest submission made.
    fn wait(&mut self) -> Result<()> {
        let gpu = self.executor.kernels.gpu();
        let oldest = self.waiting.pop_front();
        let (Some(oldest), Some((_, bytes))) = (oldest, self.samplers.buffers.last()) else {
            return Err(unread());
        };
        let Some(readback) = self.readbacks.get(oldest.number % (AHEAD + 1)) else {
            return Err(unread());
        };
        let ring: Vec<u32> = readback.view(
            gpu,
            &oldest.submission,
            *bytes,
            bytemuck::pod_collect_to_vec,
        )?;
        for step in oldest.steps {
            let row = |first: &u64| {
                let row = (first + step as u64) % RING as u64;
                usize::try_from(row).unwrap_or_default()
            };
            let columns = self.first_draw.iter().enumerate();
            let words = columns.map(|(column, first)| {
                let word = ring.get(row(first) * self.slots.len() + column);
                word.copied().ok_or(unread())
            });
            self.ready.push_back(words.collect::<Result<_>>()?);
        }
        Ok(())
    }
}

/// What was made, or nothing where the GPU's memory does not suffice: the host samples then, with what there is already.
fn if_there_is_room<T>(made: Result<T>) -> Result<Option<T>> {
    match made {
        Err(error) if out_of_memory(&error) => {
            tracing::debug!("no room to decode ahead: {error}");
            Ok(None)
        }
        other => other.map(Some),
    }
}

impl GpuExecutor {
    /// As [`Executor::decode`]; says whether it did, or left everything as it was for the host to do.
    pub(super) fn decode_ahead(
        &mut self,
        sequences: &mut [Decoding],
        steps: usize,
        counted: &dyn Fn(TokenId) -> bool,
        take: OnTokens<'_>,
    ) -> Result<bool> {
        let tables =
            batch(sequences, Wanted::Last).tables(self.model.config().vocab, self.slots())?;
        let plan = self.plan(BatchShape::of(&tables).padded())?;
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
        plan.inputs().write(self.kernels.gpu(), &rows)
    }

    /// The tokens that are to be fed once more, step by step; none where the sampler's kernel does not serve, or where there
    /// is no memory for running ahead.
    fn run_ahead(
        &self,
        (meter, prepared, readbacks): (&mut Meter, &mut Prepared, &[Readback]),
        plan: &Plan,
        (sequences, steps): (&mut [Decoding], usize),
        counted: &dyn Fn(TokenId) -> bool,
        take: OnTokens<'_>,
        tables: &Tables,
    ) -> Result<Option<Vec<Vec<TokenId>>>> {
        let gpu = self.kernels.gpu();
        let samplers = if_there_is_room(Samplers::new(self, plan, sequences, steps, counted))?;
        let Some(samplers) = samplers.flatten() else {
            return Ok(None);
        };
        let state_bytes = self.model.state_layout().bytes();
        // What does not run ahead has nothing to undo.
        let copied = if self.runs_ahead() {
            sequences.len()
        } else {
            0
        };
        let copies = Copies::new(&self.pool, state_bytes, copied);
        let Some(copies) = if_there_is_room(copies)? else {
            return Ok(None);
        };
        plan.write_tables(gpu, tables)?;
        let timing = meter.is_timing();
        let first = plan.take_recording().filter(|_| !timing);
        meter.prepared(first.is_some());
        let mut run = Run {
            executor: self,
            meter,
            dispatches: plan
                .dispatches()
                .iter()
                .chain([&samplers.sample])
                .cloned()
                .collect(),
            first,
            samplers,
            readbacks,
            slots: sequences.iter().map(|s| s.slot).collect(),
            first_draw: sequences.iter().map(|s| s.sampler.step()).collect(),
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
        let made = run.copies.made.iter().zip(&run.copies.buffers);
        let made = made.filter_map(|(step, buffers)| Some(((*step)?, buffers)));
        let seen = made.filter(|(step, _)| *step <= run.read);
        let Some((step, buffers)) = seen.max_by_key(|(step, _)| *step) else {
            return Err(unread());
        };
        let mut recorder = gpu.recorder("states go back");
        for (slot, buffer) in run.slots.iter().zip(buffers) {
            self.states.copy_in(&mut recorder, *slot, buffer)?;
        }
        recorder.submit()?;
        Ok(Some(fed.split_off(step)))
    }
}
