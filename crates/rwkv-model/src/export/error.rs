//! What can go wrong when a model is written.

use crate::files::WriteError;
use rwkv_sched::Version;
use std::{io, path::Path};

/// Why a model cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The name of the output does not tell its kind.
    #[error("{file}: the output's name must end in .gguf, .safetensors or .st")]
    Extension {
        /// The output.
        file: String,
    },

    /// The output is the input.
    #[error("{file} is both input and output; give the output another name")]
    SameFile {
        /// The file.
        file: String,
    },

    /// A version without a GGUF architecture.
    #[error("GGUF has no architecture for {version}; write a .safetensors file instead")]
    NoArchitecture {
        /// The version.
        version: Version,
    },

    /// A weight type that the container cannot hold.
    #[error("{container} cannot hold {weight_type}; {advice}")]
    WrongContainer {
        /// The weight type.
        weight_type: String,
        /// The container.
        container: &'static str,
        /// What to do.
        advice: &'static str,
    },

    /// A vocabulary for a file that has no place for one.
    #[error("a safetensors file holds no vocabulary; leave --tokenizer out, or write a .gguf file")]
    NoVocabulary,

    /// A tokenizer that the file has no name for.
    #[error(
        "GGUF's `rwkv` vocabulary always takes the longest token, which {tokenizer} does not; name another with \
         --tokenizer, or write a .safetensors file instead"
    )]
    OtherTokenizer {
        /// The tokenizer's name.
        tokenizer: String,
    },

    /// An initial state for a file that has no place for one.
    #[error(
        "the model has an initial state (time_state), which GGUF cannot hold; write a .safetensors file instead"
    )]
    InitialState,

    /// A value that the format cannot hold.
    #[error(
        "tensor {tensor} holds {value}, which is outside f16's range of ±65504; choose a type with scales, such as \
         q8_0 or int8, or keep the tensor's own type with `convert`"
    )]
    OutsideF16 {
        /// The tensor.
        tensor: String,
        /// The value.
        value: f32,
    },

    /// A tensor that is missing, does not fit or cannot be packed.
    #[error(transparent)]
    Tensor(rwkv_sched::Error),

    /// The container refuses.
    #[error(transparent)]
    Write(WriteError),

    /// The file system refuses.
    #[error("cannot write {file}: {source}")]
    Io {
        /// The output.
        file: String,
        /// What the operating system said.
        source: io::Error,
    },

    /// A model to be made up that cannot be.
    #[error("`{text}` is no model to make up: {problem}")]
    Spec {
        /// As it was written.
        text: String,
        /// What is wrong.
        problem: String,
    },

    /// The caller asked to stop; nothing is left.
    #[error("interrupted; nothing was written")]
    Interrupted,
}

impl ExportError {
    pub(super) fn io(path: &Path, source: io::Error) -> Self {
        Self::Io {
            file: path.display().to_string(),
            source,
        }
    }
}

impl From<rwkv_sched::Error> for ExportError {
    fn from(error: rwkv_sched::Error) -> Self {
        match error {
            rwkv_sched::Error::Kernel(rwkv_kernels::Error::OutsideF16 { tensor, value }) => {
                Self::OutsideF16 { tensor, value }
            }
            other => Self::Tensor(other),
        }
    }
}

impl From<WriteError> for ExportError {
    fn from(error: WriteError) -> Self {
        Self::Write(error)
    }
}
