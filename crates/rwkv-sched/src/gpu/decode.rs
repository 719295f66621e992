//! Decoding with the sampler on the GPU: steps are submitted before the tokens of those before them are known to the host.
//!
//! The sampling kernel writes each token where the next step's embedding reads it, so nothing waits for the host, which
//! reads the tokens a few steps behind. When the caller stops, the states have run ahead of it: they go back to a copy
//! that was made on the way, and the tokens of the up to 63 steps since are fed again, by the same kernels.
//!
//! Where tables of tokens are on the host, each step waits for the token of the one before: only sampling stays on the GPU.

use super::{
    GpuExecutor,
    copies::StateCopies,
    meter::Meter,
    samplers::{Samplers, Sampling, token_of, unread},
};
use crate::{Result, SlotId, TokenId};
use rwkv_gpu::{Dispatch, Readback, Recorder, Recording, Submission};
use std::{
    collections::VecDeque,
    ops::Range,
    time::{Duration, Instant},
};

/// Steps that are submitted before the first of them is read, at most, and where they are slow: twice what one submission
/// has, so that the next one is there when it ends.
pub(super) const AHEAD: usize = 16;
const LEAST_AHEAD: usize = 4;

/// Steps of one submission at most, and about how long they take together: a GPU rests for some 20 µs between two
/// submissions, and who reads along should not see tokens in bursts.
const TOGETHER: usize = 8;
const BURST: Duration = Duration::from_millis(4);

/// Steps between copies of the states.
const BETWEEN_COPIES: usize = 64;

/// Copies of the slots' states, the two newest.
pub(super) struct Copies(Vec<Copy>);

struct Copy {
    states: StateCopies,
    /// The step that it was made before.
    made: Option<usize>,
}

impl Copies {
    /// Room for those that so many steps make, two at most.
    pub(super) fn new(executor: &GpuExecutor, slots: &[SlotId], steps: usize) -> Result<Self> {
        let room = |_| {
            let states = StateCopies::new(&executor.pool, &executor.states, slots)?;
            Ok(Copy { states, made: None })
        };
        let some = steps.div_ceil(BETWEEN_COPIES).clamp(1, 2);
        Ok(Self((0..some).map(room).collect::<Result<_>>()?))
    }

    /// The newest that was made before `step` or earlier, and before which step.
    pub(super) fn newest(&self, step: usize) -> Option<(usize, &StateCopies)> {
        let made = self.0.iter();
        let made = made.filter_map(|copy| Some((copy.made?, &copy.states)));
        let seen = made.filter(|(made, _)| *made <= step);
        seen.max_by_key(|(made, _)| *made)
    }
}

/// Draws from what a chunk of prompts has left: a step of its own before those that decode.
pub(super) struct Beginning {
    pub(super) sampling: Sampling,
    /// Of each sequence, whether it gets its token there.
    pub(super) who: Vec<bool>,
}

/// Steps on their way.
struct Submitted {
    submission: Submission,
    /// Its number, which tells the readback buffer, and its steps.
    number: usize,
    steps: Range<usize>,
}

/// A decoding on its way.
pub(super) struct Run<'a> {
    pub(super) executor: &'a GpuExecutor,
    pub(super) meter: &'a mut Meter,
    /// What step 0 is, if it is no step that decodes.
    pub(super) beginning: Option<Beginning>,
    /// Tokens of what was submitted before, until it is known to be done.
    pub(super) chunk: Option<usize>,
    /// So many sequences have steps that decode, the first ones.
    pub(super) going_on: usize,
    /// The plan's, and the sampler's, of such a step.
    pub(super) dispatches: Vec<Dispatch>,
    /// The plan's for the first step that decodes, if they were recorded before.
    pub(super) first: Option<Recording>,
    pub(super) samplers: Samplers,
    pub(super) readbacks: &'a [Readback],
    pub(super) copies: Copies,
    pub(super) progress: Progress,
}

/// How far a decoding is.
pub(super) struct Progress {
    /// Submissions that were not read, and words of those that were.
    waiting: VecDeque<Submitted>,
    ready: VecDeque<Vec<u32>>,
    submissions: usize,
    submitted: usize,
    read: usize,
    /// When the first step that decodes began, as far as the host knows.
    begun: Instant,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            waiting: VecDeque::new(),
            ready: VecDeque::new(),
            submissions: 0,
            submitted: 0,
            read: 0,
            begun: Instant::now(),
        }
    }
}

impl Run<'_> {
    /// Steps whose tokens were read.
    pub(super) fn read(&self) -> usize {
        self.progress.read
    }

    /// Steps that were submitted.
    pub(super) fn submitted(&self) -> usize {
        self.progress.submitted
    }

    /// Whether the GPU may have something to do.
    pub(super) fn is_under_way(&self) -> bool {
        !self.progress.waiting.is_empty()
    }

    /// The number of the first step that decodes.
    pub(super) fn first_step(&self) -> usize {
        usize::from(self.beginning.is_some())
    }

    /// How many of `left` steps are to be submitted now, together; 0 where enough are on their way: one after the other where the
    /// host has to bring rows of the last token. One in the first submissions, so that the first tokens are soon there.
    pub(super) fn due(&self, left: usize) -> usize {
        let (together, ahead) = if self.executor.host_tables.is_empty() {
            let together = self.together();
            (together, (2 * together).clamp(LEAST_AHEAD, AHEAD))
        } else {
            (1, 1)
        };
        let due = together.min(left);
        let under_way = self.progress.submitted - self.progress.read;
        if under_way + due > ahead { 0 } else { due }
    }

    fn together(&self) -> usize {
        let decoded = self.progress.read.saturating_sub(self.first_step());
        if decoded == 0 || self.meter.is_timing() {
            return 1;
        }
        let one = self.progress.begun.elapsed().as_nanos() / decoded as u128;
        let fit = BURST.as_nanos() / one.max(1);
        usize::try_from(fit).unwrap_or(TOGETHER).clamp(1, TOGETHER)
    }

    /// Submits `steps` steps.
    pub(super) fn submit(&mut self, steps: usize) -> Result<()> {
        let gpu = self.executor.kernels.gpu();
        let mut recordings = Vec::new();
        let mut recorder = gpu.recorder("steps");
        self.meter.begin();
        let steps = self.progress.submitted..self.progress.submitted + steps;
        match &self.beginning {
            Some(beginning) if steps.start == 0 => {
                let sample = std::slice::from_ref(beginning.sampling.dispatch());
                self.meter.dispatch(&mut recorder, sample, 1)?;
                self.record(1..steps.end, &mut recorder, &mut recordings)?;
            }
            _ => self.record(steps.clone(), &mut recorder, &mut recordings)?,
        }
        let number = self.progress.submissions;
        let Some(readback) = self.readbacks.get(number % (AHEAD + 1)) else {
            return Err(unread());
        };
        let (ids, bytes) = self.samplers.ring();
        recorder.read(ids, 0, bytes, readback);
        recordings.push(recorder.finish()?);
        self.meter.recorded();
        self.progress.waiting.push_back(Submitted {
            submission: gpu.submit(recordings)?,
            number,
            steps: steps.clone(),
        });
        self.meter.submitted()?;
        self.progress.submissions += 1;
        self.progress.submitted = steps.end;
        Ok(())
    }

    /// Records steps that decode: in one pass, since a pass and a copy between two steps cost them some 10 µs.
    fn record(
        &mut self,
        steps: Range<usize>,
        recorder: &mut Recorder,
        recordings: &mut Vec<Recording>,
    ) -> Result<()> {
        let gpu = self.executor.kernels.gpu();
        let first = self.first_step();
        let mut from = steps.start;
        while from < steps.end {
            let decoded = from - first;
            if decoded.is_multiple_of(BETWEEN_COPIES) {
                self.copy_states(recorder, from, decoded / BETWEEN_COPIES)?;
            }
            let mut times = BETWEEN_COPIES - decoded % BETWEEN_COPIES;
            let mut dispatches = &self.dispatches[..];
            if let (Some(ready), Some((sample, before))) =
                (self.first.take(), dispatches.split_last())
            {
                let copies = std::mem::replace(recorder, gpu.recorder("steps"));
                recordings.extend([copies.finish()?, ready]);
                self.meter.launch(before.len());
                (dispatches, times) = (std::slice::from_ref(sample), 1);
            }
            times = times.min(steps.end - from);
            self.meter.dispatch(recorder, dispatches, times)?;
            from += times;
        }
        Ok(())
    }

    /// Keeps what the states are before `step`.
    fn copy_states(&mut self, recorder: &mut Recorder, step: usize, number: usize) -> Result<()> {
        let which = number % self.copies.0.len().max(1);
        if let Some(copy) = self.copies.0.get_mut(which) {
            copy.states.fill(recorder, &self.executor.states)?;
            copy.made = Some(step);
        }
        Ok(())
    }

    /// The tokens of the oldest step that was not read: one for each sequence that has one there.
    pub(super) fn tokens(&mut self) -> Result<Vec<Option<TokenId>>> {
        self.meter.begin();
        if self.progress.ready.is_empty() {
            self.wait()?;
        }
        let Some(words) = self.progress.ready.pop_front() else {
            return Err(unread());
        };
        if let Some(tokens) = self.chunk.take() {
            self.meter.finished(tokens);
        }
        let vocab = self.executor.model.config().vocab;
        let beginning = self.beginning.as_ref().filter(|_| self.progress.read == 0);
        if beginning.is_none() {
            self.meter.finished(self.going_on);
        }
        let drawn = words.iter().enumerate().map(|(number, word)| {
            let drawn = match beginning {
                Some(beginning) => beginning.who.get(number) == Some(&true),
                None => number < self.going_on,
            };
            drawn.then(|| token_of(*word, vocab)).transpose()
        });
        let drawn = drawn.collect();
        self.progress.read += 1;
        if self.progress.read == self.first_step() {
            self.progress.begun = Instant::now();
        }
        drawn
    }

    /// Reads what the oldest submission made.
    fn wait(&mut self) -> Result<()> {
        let gpu = self.executor.kernels.gpu();
        let Some(oldest) = self.progress.waiting.pop_front() else {
            return Err(unread());
        };
        let Some(readback) = self.readbacks.get(oldest.number % (AHEAD + 1)) else {
            return Err(unread());
        };
        let (_, bytes) = self.samplers.ring();
        let ring: Vec<u32> =
            readback.view(gpu, &oldest.submission, bytes, bytemuck::pod_collect_to_vec)?;
        tracing::trace!(steps = oldest.steps.len(), "read");
        for step in oldest.steps {
            let words = self.samplers.rows().words(&ring, step as u64)?;
            self.progress.ready.push_back(words);
        }
        Ok(())
    }
}
