//! What can be wrong with a vocabulary or with a text.

use std::io;
use std::path::PathBuf;

use super::token_list::{MAX_ID, MAX_TOKEN_BYTES};

/// Why a tokenizer could not be made, or a text not be encoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The vocabulary file could not be read.
    #[error("cannot read the vocabulary file {}: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        reason: io::Error,
    },
    /// A line of a vocabulary file is not `ID literal LENGTH`, or contradicts another.
    #[error("{file}, line {line}: {problem} (a vocabulary file has one `ID 'text' LENGTH` a line)")]
    VocabLine {
        /// Name of the file.
        file: String,
        /// Counted from 1.
        line: usize,
        /// What is wrong there.
        problem: TokenProblem,
    },
    /// A token of a GGUF file is malformed, or contradicts another.
    #[error(
        "GGUF vocabulary, token {id}: {problem} (convert the model again, or name another vocabulary)"
    )]
    GgufToken {
        /// Place in `tokenizer.ggml.tokens`.
        id: usize,
        /// What is wrong there.
        problem: TokenProblem,
    },
    /// `tokenizer.ggml.token_type` does not go with `tokenizer.ggml.tokens`.
    #[error(
        "GGUF vocabulary: {tokens} tokens but {types} token types (convert the model again, or name another vocabulary)"
    )]
    GgufTypes {
        /// Length of `tokenizer.ggml.tokens`.
        tokens: usize,
        /// Length of `tokenizer.ggml.token_type`.
        types: usize,
    },
    /// There is no token at all.
    #[error("vocabulary {name} has no tokens: is the file complete?")]
    NoTokens {
        /// Name of the vocabulary.
        name: String,
    },
    /// The vocabulary has no token for a piece of text.
    #[error(
        "cannot encode byte 0x{byte:02x} at offset {at}: no token of vocabulary {name} matches there (choose a vocabulary that has all 256 bytes)"
    )]
    NoMatch {
        /// Name of the vocabulary.
        name: String,
        /// Offset in the text, in bytes.
        at: usize,
        /// The byte there.
        byte: u8,
    },
    /// The file is far larger than any vocabulary.
    #[error("{}: larger than {limit} MiB, so no vocabulary: check the path", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The largest that is read, in MiB.
        limit: u64,
    },
    /// A `tokenizer.json` is malformed, or uses what is not supported.
    #[error(
        "{file}: not a tokenizer.json that can be used: {problem} (download it again, or name another vocabulary)"
    )]
    Json {
        /// Name of the file.
        file: String,
        /// What is wrong.
        problem: String,
    },
    /// A text is not UTF-8, and the tokenizer takes nothing else.
    #[error(
        "cannot encode byte 0x{byte:02x} at offset {at}: the text is not UTF-8 there, and the tokenizer {name} encodes only UTF-8 (convert the text)"
    )]
    NotUtf8 {
        /// Name of the tokenizer.
        name: String,
        /// Offset in the text, in bytes.
        at: usize,
        /// The byte there.
        byte: u8,
    },
    /// A `tokenizer.json` cannot encode a text.
    #[error("the tokenizer {name} cannot encode the text: {problem} (choose another vocabulary)")]
    Encode {
        /// Name of the tokenizer.
        name: String,
        /// What it says.
        problem: String,
    },
    /// The vocabulary inside the program does not unpack.
    #[error(
        "the embedded World vocabulary is damaged ({reason}): build or download the program again"
    )]
    Embedded {
        /// What does not fit.
        reason: String,
    },
}

/// What is wrong with one token of a vocabulary.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenProblem {
    /// There are no two spaces to split at.
    #[error("the line has no three fields")]
    Fields,
    /// The id is not a number, or outside the range that a vocabulary can have.
    #[error("the id is not a number from 1 to {MAX_ID} (0 is the end of a text)")]
    Id,
    /// The length is not a number.
    #[error("the length is not a number")]
    Length,
    /// The length given is not that of the token.
    #[error("the token has {actual} bytes, its length says {declared}")]
    WrongLength {
        /// As the line has it.
        declared: usize,
        /// Bytes that the literal stands for.
        actual: usize,
    },
    /// The literal cannot be read.
    #[error("{0}")]
    Literal(LiteralError),
    /// A token without bytes can never match.
    #[error("the token is empty")]
    Empty,
    /// A token is longer than any real one: the work of encoding a byte is bounded by this.
    #[error("the token is longer than {MAX_TOKEN_BYTES} bytes")]
    TooLong,
    /// The vocabulary is larger than any real one.
    #[error("the vocabulary is too large here (at most {MAX_ID} tokens)")]
    TooMany,
    /// The id was given before.
    #[error("id {id} was given before")]
    RepeatedId {
        /// The id.
        id: u32,
    },
    /// Another id has the same bytes.
    #[error("token {other} has the same bytes")]
    RepeatedText {
        /// That id.
        other: u32,
    },
    /// A GGUF token type that the format does not define.
    #[error("{0} is no token type")]
    Type(i64),
    /// A GGUF token of type byte is not one byte.
    #[error("the token is of type byte but not one byte, such as <0x0A>")]
    NotAByte,
}

/// Why a Python literal could not be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LiteralError {
    /// No quotes around it, or more inside.
    #[error("the text is not one Python string in single or double quotes")]
    Quotes,
    /// An escape that is cut short, or that Python does not have in this kind of literal.
    #[error("the text has a bad escape after byte {at}")]
    Escape {
        /// Bytes of the token before the escape.
        at: usize,
    },
    /// A string that is not UTF-8, or a bytes literal that is not ASCII.
    #[error("the text has bytes that must be written as escapes")]
    RawBytes,
}
