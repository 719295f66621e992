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

    /// A readable file that holds no adapter of this model.
    #[error("{file}: {what}")]
    Adapter {
        /// The file.
        file: String,
        /// What does not fit, and what to do.
        what: String,
    },

    /// A readable file that holds no state of this model, or a state that cannot be saved.
    #[error("{file}: {what}")]
    State {
        /// The file.
        file: String,
        /// What does not fit, and what to do.
        what: String,
    },

    /// A file cannot be written.
    #[error("cannot write to {file}: {source}")]
    Write {
        /// The file.
        file: String,
        /// What the operating system said.
        source: std::io::Error,
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

    /// A model could not run.
    #[error(transparent)]
    Run(#[from] rwkv_sched::Error),

    /// A context in which no token is counted for the perplexity.
    #[error("a context of {context} is too small to count anything: give at least {least}")]
    Context {
        /// Tokens a chunk.
        context: usize,
        /// The smallest that can be measured.
        least: usize,
    },

    /// A text too short for its perplexity.
    #[error(
        "the text has {tokens} tokens, and measuring it needs {needs} ({chunks} × {context}): give a longer text or a smaller context"
    )]
    ShortText {
        /// Tokens of the text.
        tokens: usize,
        /// The fewest that can be measured.
        needs: usize,
        /// Chunks that these are.
        chunks: usize,
        /// Tokens a chunk.
        context: usize,
    },

    /// A model that gives no probabilities.
    #[error(
        "the model gives token {token} no finite probability: its weights overflow or hold values that are no numbers"
    )]
    NoProbability {
        /// The token that was to be predicted.
        token: u32,
    },
}
