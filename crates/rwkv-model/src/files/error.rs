//! What can go wrong with a checkpoint file.

use std::io;

/// Longest part of a name from a file that a message repeats, in characters.
const QUOTED: usize = 100;

/// Why a checkpoint file, or something in it, cannot be read. Every message is one line that begins with the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// Nothing has this path.
    #[error("{file}: no such file; check the path")]
    NotFound {
        /// The path.
        file: String,
    },
    /// The path names a folder in which nothing looks like a checkpoint.
    #[error(
        "{file}: this is a folder without a checkpoint whose name is known (model.safetensors, pytorch_model.bin, their \
         .index.json, or one .pth, .safetensors, .st or .gguf file); give the path of the checkpoint itself"
    )]
    IsDirectory {
        /// The path.
        file: String,
    },
    /// The path names a folder with several checkpoints.
    #[error("{file}: this folder has several checkpoints ({names}); give the path of one")]
    Ambiguous {
        /// The path.
        file: String,
        /// The first of them, in quotes.
        names: String,
    },
    /// The path names a pipe, a socket or a device, which cannot be memory-mapped.
    #[error("{file}: not a regular file, so it cannot be memory-mapped; save it to a disk first")]
    NotRegular {
        /// The path.
        file: String,
    },
    /// The operating system refuses to let us read.
    #[error("{file}: permission denied; make the file and its folders readable for this user")]
    Denied {
        /// The path.
        file: String,
    },
    /// Any other error of the operating system.
    #[error("{file}: cannot open or map the file: {source}")]
    Io {
        /// The path.
        file: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// The file has no bytes.
    #[error("{file}: the file is empty; download or convert it again")]
    Empty {
        /// The path.
        file: String,
    },
    /// The content is of no kind that we read.
    #[error("{file}: this is {found}, not a safetensors, PyTorch or GGUF file; {advice}")]
    Unrecognised {
        /// The path.
        file: String,
        /// What the first bytes look like, with its article.
        found: &'static str,
        /// What to do about it.
        advice: &'static str,
    },
    /// The header speaks of bytes past the end of the file.
    #[error(
        "{file}: the header needs {needs} bytes, the file has {has}; the download may be incomplete"
    )]
    Truncated {
        /// The path.
        file: String,
        /// The smallest length in bytes that the part read so far allows.
        needs: u64,
        /// The length of the file in bytes.
        has: u64,
    },
    /// The header contradicts itself or its format.
    #[error(
        "{file}: {what}; the file is damaged or was not written correctly, download or convert it again"
    )]
    Damaged {
        /// The path.
        file: String,
        /// The contradiction.
        what: String,
    },
    /// A version of the container that we do not read.
    #[error("{file}: {what}")]
    Version {
        /// The path.
        file: String,
        /// Which version, and what to do.
        what: String,
    },
    /// Something in the file that other programs may read and we do not.
    #[error("{file}: {what}")]
    Unsupported {
        /// The path.
        file: String,
        /// What it is, and what to do.
        what: String,
    },
    /// The pickle of a PyTorch checkpoint asks for a function or class that tensors do not need. Nothing was run.
    #[error(
        "{file}: the pickle asks for {}, which a checkpoint does not need and which may run any program: refused; save \
         the tensors alone, or delete the file if you did not expect this",
        quoted(.global)
    )]
    Forbidden {
        /// The path.
        file: String,
        /// The module and the name in it, with a dot between.
        global: String,
    },
    /// A tensor was asked for that the file does not have.
    #[error("{file}: there is no tensor {}; the file holds another model, or a part of one", quoted(.tensor))]
    NoTensor {
        /// The path.
        file: String,
        /// The tensor's name.
        tensor: String,
    },
    /// A tensor's elements were asked for, and are of a type that we cannot compute with.
    #[error("{file}: tensor {} has type {kind}, which is not supported; convert the file to f16 or q8_0", quoted(.tensor))]
    TensorType {
        /// The path.
        file: String,
        /// The tensor's name.
        tensor: String,
        /// The type, as its container calls it.
        kind: &'static str,
    },
}

impl FileError {
    /// Names the common errors of opening `file`.
    pub(super) fn from_io(file: &str, source: io::Error) -> Self {
        let file = file.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound => Self::NotFound { file },
            io::ErrorKind::IsADirectory => Self::IsDirectory { file },
            io::ErrorKind::PermissionDenied => Self::Denied { file },
            _ => Self::Io { file, source },
        }
    }
}

/// An error inside a file, before anyone has said which file.
#[derive(Debug)]
pub(super) enum Fault {
    /// See [`FileError::Truncated`].
    Truncated {
        /// The smallest length in bytes that the part read so far allows.
        needs: u64,
    },
    /// See [`FileError::Damaged`].
    Damaged(String),
    /// See [`FileError::Version`].
    Version(String),
    /// See [`FileError::Unsupported`].
    Unsupported(String),
    /// See [`FileError::Forbidden`].
    Forbidden(String),
    /// See [`FileError::Unrecognised`].
    Unrecognised {
        /// What it is, with its article.
        found: &'static str,
        /// What to do about it.
        advice: &'static str,
    },
}

impl Fault {
    /// The error, for `file` of `has` bytes.
    pub(super) fn of(self, file: &str, has: u64) -> FileError {
        let file = file.to_owned();
        match self {
            Fault::Truncated { needs } => FileError::Truncated { file, needs, has },
            Fault::Damaged(what) => FileError::Damaged { file, what },
            Fault::Version(what) => FileError::Version { file, what },
            Fault::Unsupported(what) => FileError::Unsupported { file, what },
            Fault::Forbidden(global) => FileError::Forbidden { file, global },
            Fault::Unrecognised { found, advice } => FileError::Unrecognised {
                file,
                found,
                advice,
            },
        }
    }
}

/// A name that comes from a file, fit for one line on a terminal: quoted, control characters escaped, and cut.
pub(super) fn quoted(name: &str) -> String {
    let mut cut: String = name.chars().take(QUOTED).collect();
    if cut.len() < name.len() {
        cut.push('…');
    }
    format!("{cut:?}")
}
