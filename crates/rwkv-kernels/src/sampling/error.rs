//! What can be wrong with parameters and logits.

use thiserror::Error;

/// Why a sampler could not be made, or could not choose a token.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum SamplingError {
    /// A parameter lies outside its range.
    #[error("sampling parameter {name} is {value}: it must be {expected}")]
    Parameter {
        /// The field of [`SamplerParams`](super::SamplerParams).
        name: &'static str,
        /// What it was.
        value: f32,
        /// What it may be.
        expected: &'static str,
    },
    /// A bias that is NaN or `+inf`.
    #[error(
        "logit_bias of token {token} is {bias}: give a finite number, or -inf to ban the token"
    )]
    Bias {
        /// The token that the bias is for.
        token: u32,
        /// The bias.
        bias: f32,
    },
    /// Two biases for one token.
    #[error("logit_bias names token {token} more than once: give each token one bias")]
    RepeatedBias {
        /// The token.
        token: u32,
    },
    /// A bias for a token that the model does not have.
    #[error(
        "logit_bias names token {token}, but the model has {vocabulary} tokens: use ids below that"
    )]
    BiasOutsideVocabulary {
        /// The token.
        token: u32,
        /// Number of logits.
        vocabulary: usize,
    },
    /// An order that is not one of [`SamplerOrder`](super::SamplerOrder)'s names.
    #[error("sampler order {0:?} is not known: use \"reference\" or \"temperature-first\"")]
    UnknownOrder(String),
    /// The slice of logits was empty, or longer than token ids can count.
    #[error(
        "cannot choose a token from {0} logits: pass one logit for each token of the vocabulary"
    )]
    VocabularySize(usize),
    /// A logit was NaN or `+inf`.
    #[error(
        "the logit of token {token} is {logit}: the model's output is broken, check its weights and data types"
    )]
    Logit {
        /// The first such token.
        token: u32,
        /// Its logit.
        logit: f32,
    },
    /// Every logit is `-inf`, in the model's output or after the biases.
    #[error("every one of the {0} tokens is ruled out (-inf): ban fewer tokens with logit_bias")]
    NothingPossible(usize),
}
