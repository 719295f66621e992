//! What can go wrong between a file and a model.

use crate::{export::ExportError, files::FileError, tokenizer::TokenizerError};

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),

    /// The model cannot be written.
    #[error(transparent)]
    Export(#[from] ExportError),

    /// The vocabulary cannot be read, or a text not encoded.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),

    /// The vocabulary inside a model file cannot be read.
    #[error("{file}: {source}")]
    Vocabulary {
        /// The file.
        file: String,
        /// What is wrong.
        source: TokenizerError,
    },

    /// The tensors do not make a model.
    #[error("{file}: {source}")]
    Model {
        /// The file.
        file: String,
        /// What does not fit.
        source: rwkv_sched::Error,
    },

    /// A readable file that holds something else than a model we know.
    #[error("{file}: {what}")]
    NotAModel {
        /// The file.
        file: String,
        /// What it holds, and what to do.
        what: String,
    },

    /// A model of a kind that is recognised and not supported.
    #[error("{file}: not supported: {what}")]
    Unsupported {
        /// The file.
        file: String,
        /// The kind.
        what: String,
    },

    /// No vocabulary belongs to the model.
    #[error(
        "{file}: no tokenizer is known for a vocabulary of {vocab} tokens; name one with --tokenizer FILE|world|bytes"
    )]
    NoTokenizer {
        /// The file.
        file: String,
        /// Tokens of the vocabulary.
        vocab: usize,
    },

    /// A vocabulary with more tokens than the model.
    #[error(
        "the tokenizer {tokenizer} has {tokens} tokens, but {file} has only {vocab}; choose another with --tokenizer"
    )]
    TokenizerTooLarge {
        /// The tokenizer.
        tokenizer: String,
        /// Its tokens.
        tokens: usize,
        /// The file.
        file: String,
        /// The model's tokens.
        vocab: usize,
    },

    /// An executor refused.
    #[error(transparent)]
    Run(#[from] rwkv_sched::Error),

    /// A text that has nothing to measure.
    #[error(
        "the text has {tokens} tokens, where at least {needed} are needed: give a longer one or a smaller context"
    )]
    TextTooShort {
        /// What it has.
        tokens: usize,
        /// What the measure needs.
        needed: usize,
    },

    /// Logits that are no numbers.
    #[error(
        "a logit is not finite: the model's weights overflow or hold values that are no numbers"
    )]
    NotANumber,
}
