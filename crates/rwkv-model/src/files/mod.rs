//! Checkpoint files: names → (format, shape, bytes), and metadata.
//!
//! A [`Checkpoint`] is a memory-mapped safetensors or GGUF file, recognised by its content. Opening one reads the
//! header and nothing else: the memory it takes grows with the number of tensors, not with their bytes, and long
//! arrays of the metadata (a vocabulary) stay in the file too. Everything that a header says is checked against the
//! file before it is believed, so that what this module hands out is consistent, whoever wrote the file.
//!
//! What a name means to a model, and whether a matrix is transposed, is not known here.
//!
//! To write: [`GgufWriter`] and [`SafetensorsWriter`]. Both plan first and stream afterwards.
//!
//! ```
//! use rwkv_kernels::Format;
//! use rwkv_model::files::{Checkpoint, GgufWriter};
//!
//! let mut plan = GgufWriter::new();
//! plan.set("general.architecture", "rwkv7")?.set("rwkv7.block_count", 12u32)?;
//! plan.tensor("output_norm.weight", Format::F32, &[2])?;
//! let mut body = plan.begin(Vec::new())?;
//! body.write("output_norm.weight", &[0; 8])?;
//!
//! let checkpoint = Checkpoint::from_vec("example", body.finish()?)?;
//! assert_eq!(checkpoint.metadata().u64("rwkv7.block_count"), Some(12));
//! assert_eq!(checkpoint.tensor("output_norm.weight")?.shape, [2]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod body;
mod bytes;
mod error;
mod gguf;
mod metadata;
mod recognise;
mod safetensors;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use rwkv_kernels::Format;

use bytes::Bytes;
use metadata::Entry;

pub use body::{Body, WriteError};
pub use error::FileError;
pub use gguf::{Array, Field, GgufWriter, ValueKind};
pub use metadata::{Metadata, Value};
pub use safetensors::SafetensorsWriter;

/// The kinds of file that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Container {
    /// `.safetensors`, `.st`.
    Safetensors,
    /// `.gguf`, version 2 or 3.
    Gguf,
}

impl fmt::Display for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Container::Safetensors => "safetensors",
            Container::Gguf => "GGUF",
        })
    }
}

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TensorType {
    /// A weight format that the kernels know.
    Format(Format),
    /// Any other, by the name that its container gives it, in lower case. Its tensors are listed, but
    /// [`TensorView::format`] refuses them.
    Other(&'static str),
}

impl From<Format> for TensorType {
    fn from(format: Format) -> Self {
        Self::Format(format)
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TensorType::Format(format) => format.fmt(f),
            TensorType::Other(name) => f.write_str(name),
        }
    }
}

/// An open checkpoint file. A clone is another handle of the same one.
#[derive(Clone)]
pub struct Checkpoint {
    inner: Arc<Inner>,
}

struct Inner {
    source: String,
    container: Container,
    bytes: Bytes,
    tensors: BTreeMap<String, Tensor>,
    metadata: Metadata,
}

/// What a header says of one tensor, checked.
struct Tensor {
    kind: TensorType,
    /// Outermost first; [`elements`] is not `None`.
    shape: Vec<usize>,
    /// Within the file; exactly as long as kind and shape demand.
    range: Range<usize>,
}

/// What a header holds.
struct Contents {
    tensors: BTreeMap<String, Tensor>,
    metadata: BTreeMap<String, Entry>,
}

/// One tensor of a file.
#[derive(Clone, Copy)]
pub struct TensorView<'a> {
    /// Its name in the file.
    pub name: &'a str,
    /// The type of its elements.
    pub kind: TensorType,
    /// Its dimensions, outermost first: a matrix is `[rows, cols]`, and a row is contiguous. Dimensions of 1 are kept
    /// as the file has them. The product of any of them fits a `usize`.
    pub shape: &'a [usize],
    /// Its elements: exactly as many bytes as `kind` and `shape` demand. They need not be aligned.
    pub bytes: &'a [u8],
    source: &'a str,
}

impl TensorView<'_> {
    /// The weight format, or [`FileError::TensorType`] where the elements are of a type that we cannot compute with.
    pub fn format(&self) -> Result<Format, FileError> {
        match self.kind {
            TensorType::Format(format) => Ok(format),
            TensorType::Other(kind) => Err(FileError::TensorType {
                file: self.source.to_owned(),
                tensor: self.name.to_owned(),
                kind,
            }),
        }
    }
}

impl fmt::Debug for TensorView<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} {} {:?}, {} bytes",
            self.name,
            self.kind,
            self.shape,
            self.bytes.len()
        )
    }
}

impl Checkpoint {
    /// Maps the file at `path` and reads its header.
    ///
    /// The file must not change while it is open, here or in any other process. Where one overwrites it, tensors have
    /// wrong values; where one shortens it, touching what is gone ends this process (`SIGBUS` on Unix, an in-page
    /// error on Windows; Windows refuses to shorten a mapped file). So replace checkpoints by renaming a new file
    /// over the old one: the mapping keeps the old one. The same end comes from a disk or network that fails later.
    ///
    /// # Errors
    ///
    /// Any [`FileError`] but the two that concern one tensor.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let source = path.display().to_string();
        let bytes = Bytes::map(path, &source)?;
        Self::read(source, bytes)
    }

    /// Reads the header of a file that is compiled into the program (`include_bytes!`); messages call it `name`.
    pub fn from_static(name: &'static str, bytes: &'static [u8]) -> Result<Self, FileError> {
        Self::read(name.to_owned(), Bytes::Static(bytes))
    }

    /// Reads the header of a file that is in memory; messages call it `name`.
    pub fn from_vec(name: &str, bytes: Vec<u8>) -> Result<Self, FileError> {
        Self::read(name.to_owned(), Bytes::Owned(Arc::new(bytes)))
    }

    fn read(source: String, bytes: Bytes) -> Result<Self, FileError> {
        if bytes.is_empty() {
            return Err(FileError::Empty { file: source });
        }
        let container = match recognise::recognise(&bytes) {
            Ok(container) => container,
            Err((found, advice)) => {
                return Err(FileError::Unrecognised {
                    file: source,
                    found,
                    advice,
                });
            }
        };
        let contents = match container {
            Container::Safetensors => safetensors::read(&bytes),
            Container::Gguf => gguf::read(&bytes),
        };
        let Contents { tensors, metadata } =
            contents.map_err(|fault| fault.of(&source, bytes.len() as u64))?;
        let metadata = Metadata::new(bytes.clone(), metadata);
        Ok(Self {
            inner: Arc::new(Inner {
                source,
                container,
                bytes,
                tensors,
                metadata,
            }),
        })
    }

    /// The kind of file.
    pub fn container(&self) -> Container {
        self.inner.container
    }

    /// What to call the file in messages: its path as it was given, or its name.
    pub fn source(&self) -> &str {
        &self.inner.source
    }

    /// The length of the file in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.inner.bytes.len() as u64
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.inner.tensors.keys().map(String::as_str)
    }

    /// All tensors, sorted by name.
    pub fn tensors(&self) -> impl Iterator<Item = TensorView<'_>> {
        self.inner
            .tensors
            .iter()
            .filter_map(|(name, tensor)| self.view(name, tensor))
    }

    /// The tensor called `name`, of whatever type.
    pub fn get(&self, name: &str) -> Option<TensorView<'_>> {
        let (name, tensor) = self.inner.tensors.get_key_value(name)?;
        self.view(name, tensor)
    }

    /// The tensor called `name`, of whatever type, or [`FileError::NoTensor`].
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>, FileError> {
        self.get(name).ok_or_else(|| FileError::NoTensor {
            file: self.inner.source.clone(),
            tensor: name.to_owned(),
        })
    }

    /// What the file says about itself.
    pub fn metadata(&self) -> &Metadata {
        &self.inner.metadata
    }

    fn view<'a>(&'a self, name: &'a str, tensor: &'a Tensor) -> Option<TensorView<'a>> {
        let bytes = self.inner.bytes.get(tensor.range.clone())?;
        Some(TensorView {
            name,
            kind: tensor.kind,
            shape: &tensor.shape,
            bytes,
            source: &self.inner.source,
        })
    }
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({}, {} tensors)",
            self.inner.source,
            self.inner.container,
            self.inner.tensors.len()
        )
    }
}

/// The number of elements of a tensor, counting 0 as 1, or `None` where some product of dimensions overflows: with a 0
/// among them, the plain product would depend on its order.
fn elements(shape: &[usize]) -> Option<usize> {
    shape
        .iter()
        .try_fold(1usize, |product, &n| product.checked_mul(n.max(1)))
}
