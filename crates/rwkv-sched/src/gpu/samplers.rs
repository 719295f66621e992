//! The sampling kernel after a plan's kernels: it writes the tokens of a step into a ring, for the host, and where the next
//! step's embedding reads them.

use super::{GpuExecutor, plan::Plan};
use crate::{Counted, Decoding, Error, Result, TokenId};
use rwkv_gpu::{Binding, BufferKind, Dispatch, Gpu};
use rwkv_kernels::{
    View,
    ops::Sample,
    sampling::{
        Chosen, Draw, DrawSettings, NONE, SamplingError, bias_words, counted_words, memory_words,
    },
};
use rwkv_mem::Pooled;
use std::sync::Arc;

/// Rows of the ring of tokens: more than are on their way.
const RING: usize = 32;

/// A buffer or a copy that must be there is not.
pub(super) fn unread() -> Error {
    Error::Config {
        problem: "tokens that were sampled cannot be read: this is a mistake in this program"
            .to_owned(),
    }
}

/// Bytes of the ring of tokens of so many sequences.
pub(super) fn ring_bytes(sequences: usize) -> u64 {
    (sequences * 4 * RING) as u64
}

/// A buffer, and the bytes of it that are in use.
type Part = (Pooled, u64);

/// What the sampling kernel reads and keeps of some sequences.
pub(super) struct Samplers {
    settings: Part,
    biases: Part,
    counted: Part,
    memory: Part,
    /// Different tokens that each sequence can say.
    capacity: usize,
    vocab: usize,
    /// The ring of tokens.
    ids: Part,
    rows: RingRows,
}

/// A launch of the sampling kernel over the rows of a step's logits.
pub(super) struct Sampling {
    sample: Dispatch,
    _draws: Part,
}

/// Where the tokens of each step lie in the ring.
#[derive(Clone)]
pub(super) struct RingRows {
    /// The number of each sequence's draw in step 0.
    first: Arc<[u64]>,
}

impl RingRows {
    /// The sampler's words of a step, of those that the ring still has.
    pub(super) fn words(&self, ring: &[u32], step: u64) -> Result<Vec<u32>> {
        let columns = self.first.len();
        let word = |(column, first): (usize, &u64)| {
            let row = first.wrapping_add(step) % RING as u64;
            let row = usize::try_from(row).unwrap_or_default();
            let word = ring.get(row * columns + column);
            word.copied().ok_or_else(unread)
        };
        self.first.iter().enumerate().map(word).collect()
    }
}

/// The token that a word of the sampler says.
///
/// # Errors
/// [`Error::Sampling`] for logits that nothing can be chosen from.
pub(crate) fn token_of(word: u32, vocab: usize) -> Result<TokenId> {
    match Chosen::from(word) {
        Chosen::Token(token) => Ok(token),
        Chosen::NothingPossible => Err(SamplingError::NothingPossible(vocab).into()),
        other => Err(Error::Config {
            problem: format!("the sampler on the GPU failed ({other:?}): a logit is no number"),
        }),
    }
}

impl Samplers {
    /// Those of `sequences` for up to `draws` draws of each; [`count`](Self::count) is still to come. `begins` says whose draw
    /// number 0 is in step 0, and not in step 1; none says all. None where a sampler's memory does not fit the kernel's.
    pub(super) fn new(
        executor: &GpuExecutor,
        sequences: &[Decoding],
        draws: usize,
        begins: Option<&[bool]>,
    ) -> Result<Option<Self>> {
        let vocab = executor.model.config().vocab;
        let said = sequences.iter().map(|s| s.sampler.counts().len()).max();
        let capacity = said.unwrap_or(0).saturating_add(draws).min(vocab).max(1);
        let (mut settings, mut biases, mut memory) = (vec![], vec![], vec![]);
        for (number, sequence) in sequences.iter().enumerate() {
            let params = sequence.sampler.params();
            let first = u32::try_from(biases.len()).unwrap_or(u32::MAX);
            settings.push(DrawSettings::new(params, vocab, first)?);
            biases.extend(bias_words(params));
            let Some(words) = sequence.sampler.to_memory(capacity) else {
                return Ok(None);
            };
            memory.extend(words);
            memory.resize((number + 1) * memory_words(capacity), 0);
        }
        biases.push([0; 2]);
        let filled = |label, bytes| filled(executor, label, bytes);
        let room = |label, bytes| -> Result<Part> {
            let buffer = executor.pool.take(BufferKind::Storage, label, bytes)?;
            Ok((buffer, bytes))
        };
        let first = sequences.iter().enumerate().map(|(number, sequence)| {
            let later = begins.is_some_and(|begins| begins.get(number) == Some(&false));
            sequence.sampler.step().wrapping_sub(u64::from(later))
        });
        Ok(Some(Self {
            settings: filled("sampler settings", bytemuck::cast_slice(&settings))?,
            biases: filled("logit biases", bytemuck::cast_slice(&biases))?,
            memory: filled("sampler memory", bytemuck::cast_slice(&memory))?,
            counted: room("counted tokens", (vocab.div_ceil(32) * 4) as u64)?,
            ids: room("sampled tokens", ring_bytes(sequences.len()))?,
            capacity,
            vocab,
            rows: RingRows {
                first: first.collect(),
            },
        }))
    }

    /// Which tokens the penalties count: it is asked of every token of the vocabulary, which takes a while.
    pub(super) fn count(&self, gpu: &Gpu, counted: Counted<'_>) -> Result<()> {
        let words = counted_words(self.vocab, counted);
        Ok(gpu.write(&self.counted.0, 0, bytemuck::cast_slice(&words))?)
    }

    /// Draws for the first `count` sequences from the logits of a step by `plan` that has a row for each of them, as the tokens of the
    /// next such step.
    pub(super) fn draw_all(
        &self,
        executor: &GpuExecutor,
        plan: &Plan,
        count: usize,
    ) -> Result<Sampling> {
        let all: Vec<_> = (0..count).map(Some).collect();
        self.draw(executor, (plan, &all), Some((plan, count)))
    }

    /// Draws from the rows of logits of a step by a plan for the sequences of these numbers, as tokens of the step that follows
    /// by the plan `next`, which has one for each of the first so many sequences.
    pub(super) fn draw(
        &self,
        executor: &GpuExecutor,
        (plan, rows): (&Plan, &[Option<usize>]),
        next: Option<(&Plan, usize)>,
    ) -> Result<Sampling> {
        let (buffer, offset) = plan.results().first().ok_or_else(unread)?;
        let (next, going_on) = next.unwrap_or((plan, 0));
        let place = |number: Option<usize>| {
            let place = number.and_then(|number| u32::try_from(number).ok());
            place.unwrap_or(NONE)
        };
        let draw = |number: &Option<usize>| Draw {
            slot: place(*number),
            token: place(number.filter(|number| *number < going_on)),
            column: place(*number),
            padding: 0,
        };
        let draws: Vec<Draw> = rows.iter().map(draw).collect();
        let draws = filled(executor, "draws", bytemuck::cast_slice(&draws))?;
        let sample = executor.kernels.sample(&Sample {
            logits: View {
                buffer,
                offset,
                rows: rows.len(),
                width: self.vocab,
            },
            draws: part(&draws),
            settings: part(&self.settings),
            biases: part(&self.biases),
            counted: part(&self.counted),
            memory: part(&self.memory),
            capacity: self.capacity,
            tokens: next.tokens(),
            ids: part(&self.ids),
            steps: RING,
            columns: self.rows.first.len(),
        })?;
        Ok(Sampling {
            sample,
            _draws: draws,
        })
    }

    /// The ring of tokens, and its bytes.
    pub(super) fn ring(&self) -> (&Pooled, u64) {
        let (ids, bytes) = &self.ids;
        (ids, *bytes)
    }

    /// Where a step's tokens lie in it.
    pub(super) fn rows(&self) -> &RingRows {
        &self.rows
    }
}

impl Sampling {
    /// The dispatches of `plan`, and the sampler's after them.
    pub(super) fn after(&self, plan: &Plan) -> Vec<Dispatch> {
        let all = plan.dispatches().iter().chain([&self.sample]);
        all.cloned().collect()
    }

    pub(super) fn dispatch(&self) -> &Dispatch {
        &self.sample
    }
}

fn filled(executor: &GpuExecutor, label: &str, bytes: &[u8]) -> Result<Part> {
    let size = bytes.len() as u64;
    let buffer = executor.pool.take(BufferKind::Storage, label, size)?;
    executor.kernels.gpu().write(&buffer, 0, bytes)?;
    Ok((buffer, size))
}

fn part((buffer, size): &Part) -> Binding<'_> {
    Binding {
        buffer,
        offset: 0,
        size: Some(*size),
    }
}
