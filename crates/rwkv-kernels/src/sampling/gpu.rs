//! What the sampling kernel reads and keeps: settings and memory of each sequence, and what it answers.

use super::{
    Sampler, SamplerOrder, SamplerParams, SamplingError,
    penalties::{Occurrences, Seen},
    ranking::{inverse, min_p_gap},
};
use bytemuck::{Pod, Zeroable};

/// In [`Draw::slot`]: the row is not sampled. In [`Draw::token`]: the id goes nowhere.
pub const NONE: u32 = u32::MAX;

/// The words of a failed draw, as in the WGSL.
const BROKEN: u32 = u32::MAX;
const NOTHING_POSSIBLE: u32 = u32::MAX - 1;
const MEMORY_FULL: u32 = u32::MAX - 2;

/// Words before the entries of a memory, and of an entry.
const HEADER: usize = 8;
const ENTRY: usize = 3;

/// What to do with one row of logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Draw {
    /// Whose settings and memory; [`NONE`], or any slot that there is not, leaves the row alone.
    pub slot: u32,
    /// The index in the batch's tokens whose id becomes the chosen one; [`NONE`] for nowhere.
    pub token: u32,
    /// The column of the ring of ids; a row whose column there is not is left alone.
    pub column: u32,
    /// For alignment.
    pub padding: u32,
}

/// The parameters of a sequence as the kernel reads them; they can change from step to step.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct DrawSettings {
    inverse: f32,
    filter_inverse: f32,
    widest: u32,
    top_p: f32,
    top_k: u32,
    presence: f32,
    frequency: f32,
    decay: f32,
    seed: [u32; 2],
    after_top_k: u32,
    first_bias: u32,
    biases: u32,
    padding: [u32; 3],
}

impl DrawSettings {
    /// `params`, whose biases (of [`bias_words`]) lie from number `first_bias` on in the table of all sequences.
    ///
    /// # Errors
    ///
    /// Those of [`SamplerParams::validate`], and for a bias outside the `vocabulary`.
    pub fn new(
        params: &SamplerParams,
        vocabulary: usize,
        first_bias: u32,
    ) -> Result<Self, SamplingError> {
        params.validate()?;
        let outside = |&&(token, _): &&(u32, f32)| token as usize >= vocabulary;
        if let Some(&(token, _)) = params.logit_bias.iter().find(outside) {
            return Err(SamplingError::BiasOutsideVocabulary { token, vocabulary });
        }
        let greedy = params.temperature == 0.0;
        let temperature_first = params.order == SamplerOrder::TemperatureFirst;
        let filter = if temperature_first {
            params.temperature
        } else {
            1.0
        };
        Ok(Self {
            inverse: if greedy {
                0.0
            } else {
                inverse(params.temperature)
            },
            filter_inverse: inverse(filter),
            widest: min_p_gap(params.min_p, filter).to_bits(),
            top_p: params.top_p,
            top_k: params.top_k,
            presence: params.presence_penalty,
            frequency: params.frequency_penalty,
            decay: params.penalty_decay,
            seed: words(params.seed),
            after_top_k: u32::from(temperature_first),
            first_bias,
            // No two are for one token.
            biases: u32::try_from(params.logit_bias.len()).unwrap_or(u32::MAX),
            padding: [0; 3],
        })
    }
}

/// The biases as the kernel reads them: a token, and the bits of what is added.
pub fn bias_words(params: &SamplerParams) -> impl Iterator<Item = [u32; 2]> {
    params
        .logit_bias
        .iter()
        .map(|(token, bias)| [*token, bias.to_bits()])
}

/// A bit for each token, 32 a word from the lowest bit on: whether [`Sampler::accept`] would be told to count it.
pub fn counted_words(vocabulary: usize, counted: impl Fn(u32) -> bool) -> Vec<u32> {
    let mut words = vec![0; vocabulary.div_ceil(32)];
    for (first, word) in (0..).step_by(32).zip(&mut words) {
        for bit in 0..32 {
            let token = first + bit;
            if (token as usize) < vocabulary && counted(token) {
                *word |= 1 << bit;
            }
        }
    }
    words
}

/// Words of the memory of a sequence that can say `capacity` different tokens.
pub fn memory_words(capacity: usize) -> usize {
    capacity.saturating_mul(ENTRY).saturating_add(HEADER)
}

/// A token that the kernel chose, or why it could not; after a failure the sequence stays as it was, and fails again
/// until its memory is written anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chosen {
    /// The token.
    Token(u32),
    /// A logit was NaN or `+inf`: [`SamplingError::Logit`].
    Broken,
    /// Every token is ruled out: [`SamplingError::NothingPossible`].
    NothingPossible,
    /// The sequence has said as many different tokens as its memory holds.
    MemoryFull,
}

impl From<u32> for Chosen {
    /// A word of the ring of ids.
    fn from(word: u32) -> Self {
        match word {
            BROKEN => Self::Broken,
            NOTHING_POSSIBLE => Self::NothingPossible,
            MEMORY_FULL => Self::MemoryFull,
            token => Self::Token(token),
        }
    }
}

impl Sampler {
    /// What the kernel must remember to go on as this sampler would: [`memory_words`] words, fewer where entries are
    /// not used yet. `None` when more tokens were said than `capacity`.
    pub fn to_memory(&self, capacity: usize) -> Option<Vec<u32>> {
        let (step, seen) = (words(self.step()), self.seen());
        let count = u32::try_from(seen.seen().len()).ok()?;
        if seen.seen().len() > capacity {
            return None;
        }
        let mut memory = vec![step[0], step[1], seen.accepted(), count, 0, 0, 0, 0];
        for entry in seen.seen() {
            memory.extend([entry.token, entry.count.to_bits(), entry.at]);
        }
        Some(memory)
    }

    /// Goes on where the kernel is, whose memory of the sequence this is. `false`, and nothing changes, when it is cut
    /// short.
    pub fn resume(&mut self, memory: &[u32]) -> bool {
        let [low, high, accepted, count, ..] = *memory else {
            return false;
        };
        let entries = memory.get(HEADER..).unwrap_or_default();
        let (entries, _) = entries.as_chunks::<ENTRY>();
        let Some(entries) = entries.get(..count as usize) else {
            return false;
        };
        let seen = entries.iter().map(|&[token, count, at]| Seen {
            token,
            count: f32::from_bits(count),
            at,
        });
        let step = u64::from(low) | u64::from(high) << 32;
        self.continue_from(step, Occurrences::restored(seen.collect(), accepted));
        true
    }
}

/// Low word, high word.
fn words(value: u64) -> [u32; 2] {
    [(value & 0xFFFF_FFFF) as u32, (value >> 32) as u32]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn memory_round_trips() {
        let mut sampler = Sampler::new(SamplerParams::default()).unwrap();
        for token in [9, 4, 9, 70_000, 0] {
            sampler.sample(&[0.0]).unwrap();
            sampler.accept(token, token != 4);
        }
        assert_eq!(sampler.to_memory(3), None);
        let mut memory = sampler.to_memory(4).unwrap();
        assert_eq!(memory.len(), memory_words(4));
        // The kernel appends, so entries may come in any order.
        memory[8..].rotate_left(6);
        let mut other = Sampler::new(SamplerParams::default()).unwrap();
        for cut in 0..memory.len() {
            assert!(!other.resume(&memory[..cut]), "{cut} words");
            assert_eq!(other.counts(), []);
        }
        assert!(other.resume(&memory));
        assert_eq!(other.counts(), sampler.counts());
        assert_eq!((other.step(), sampler.step()), (5, 5));
        other.accept(4, true);
        sampler.accept(4, true);
        assert_eq!(other.to_memory(9), sampler.to_memory(9));
    }

    #[test]
    fn counted_bits() {
        assert_eq!(counted_words(34, |token| token == 0 || token > 31), [1, 3]);
        assert_eq!(counted_words(0, |_| true), [0; 0]);
    }
}
