//! The sampling kernel after a plan's kernels: it writes the tokens of a step into a ring, for the host, and where the next
//! step's embedding reads them.

use super::{GpuExecutor, plan::Plan};
use crate::{Counted, Decoding, Error, Result, TokenId};
use rwkv_gpu::{Binding, BufferKind, Dispatch};
use rwkv_kernels::{
    View,
    ops::Sample,
    sampling::{
        Chosen, Draw, DrawSettings, SamplingError, bias_words, counted_words, memory_words,
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

/// What the sampling kernel reads and keeps.
pub(super) struct Samplers {
    sample: Dispatch,
    /// What it reads and remembers.
    _held: Vec<(Pooled, u64)>,
    /// The ring of tokens.
    ids: (Pooled, u64),
    rows: RingRows,
}

/// Where the tokens of each step lie in the ring.
#[derive(Clone)]
pub(super) struct RingRows {
    /// Draws before the first one here, of each sequence.
    first: Arc<[u64]>,
}

impl RingRows {
    /// The sampler's words of a step, of those that the ring still has.
    pub(super) fn words(&self, ring: &[u32], step: u64) -> Result<Vec<u32>> {
        let columns = self.first.len();
        let word = |(column, first): (usize, &u64)| {
            let row = usize::try_from((first + step) % RING as u64).unwrap_or_default();
            let word = ring.get(row * columns + column);
            word.copied().ok_or_else(unread)
        };
        self.first.iter().enumerate().map(word).collect()
    }
}

/// The tokens that words of the sampler say.
///
/// # Errors
/// [`Error::Sampling`] for logits that nothing can be chosen from.
pub(crate) fn chosen(words: &[u32], vocab: usize) -> Result<Vec<TokenId>> {
    let token = |word: &u32| match Chosen::from(*word) {
        Chosen::Token(token) => Ok(token),
        Chosen::NothingPossible => Err(SamplingError::NothingPossible(vocab).into()),
        other => Err(Error::Config {
            problem: format!("the sampler on the GPU failed ({other:?}): a logit is no number"),
        }),
    };
    words.iter().map(token).collect()
}

impl Samplers {
    /// None where a sampler's memory does not fit the kernel's.
    pub(super) fn new(
        executor: &GpuExecutor,
        plan: &Plan,
        sequences: &[Decoding],
        steps: usize,
        counted: Counted<'_>,
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
        let ids = (ids, bytes);
        let [draws, settings, biases, counted, memory] = &buffers[..] else {
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
            ids: part(&ids),
            steps: RING,
            columns: sequences.len(),
        })?;
        let first = sequences.iter().map(|s| s.sampler.step());
        Ok(Some(Self {
            sample,
            _held: buffers,
            ids,
            rows: RingRows {
                first: first.collect(),
            },
        }))
    }

    /// The dispatches of `plan`, and the sampler's after them.
    pub(super) fn after(&self, plan: &Plan) -> Vec<Dispatch> {
        let all = plan.dispatches().iter().chain([&self.sample]);
        all.cloned().collect()
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

fn part((buffer, size): &(Pooled, u64)) -> Binding<'_> {
    Binding {
        buffer,
        offset: 0,
        size: Some(*size),
    }
}
