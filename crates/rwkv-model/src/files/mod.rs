//! Checkpoint files: names → (format, shape, bytes), and metadata.
//!
//! A [`Checkpoint`] is a memory-mapped safetensors, PyTorch or GGUF file, recognised by its content, or a folder of such
//! files with Hugging Face's `config.json`. Opening one reads the header and nothing else: the memory it takes grows
//! with the number of tensors, not with their bytes, and long arrays of the metadata (a vocabulary) stay in the file
//! too. (The exception are PyTorch's tensors whose elements are not in order, which are copied.) Everything that a
//! header says is checked against the file before it is believed, so that what this module hands out is consistent,
//! whoever wrote the file; and no program inside a PyTorch file is run.
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
mod folder;
mod gguf;
pub mod hugging_face;
mod metadata;
mod pytorch;
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

pub(crate) use bytes::Access;
use bytes::Bytes;
use folder::Part;
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
    /// `.pth`, `.pt`, `.bin` of PyTorch 1.6 or later: a zip archive.
    Pytorch,
    /// Any of the others but GGUF with a `config.json`, or in shards: what Hugging Face's models are saved as.
    HuggingFace,
}

impl fmt::Display for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Container::Safetensors => "safetensors",
            Container::Gguf => "GGUF",
            Container::Pytorch => "PyTorch",
            Container::HuggingFace => "Hugging Face",
        })
    }
}

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TensorType {
    /// A weight format that the kernels know.
    Format(Format),
    /// Compressed sparse rows with f16 values: [`TensorView::csr`] has the parts, and [`TensorView::format`] refuses
    /// them.
    Csr,
    /// Any other, by the name that its container gives it, in lower case. Its tensors are listed, but
    /// [`TensorView::format`] refuses them.
    Other(&'static str),
}

/// What a tensor of compressed sparse rows is called.
const CSR: &str = "csr";

impl From<Format> for TensorType {
    fn from(format: Format) -> Self {
        Self::Format(format)
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TensorType::Format(format) => format.fmt(f),
            TensorType::Csr => f.write_str(CSR),
            TensorType::Other(name) => f.write_str(name),
        }
    }
}

/// An open checkpoint: one file, or several that belong together. A clone is another handle of the same one.
#[derive(Clone)]
pub struct Checkpoint {
    inner: Arc<Inner>,
}

struct Inner {
    source: String,
    container: Container,
    /// Files, and copies of what is not in order in them. [`Tensor::region`] counts these.
    regions: Vec<Bytes>,
    /// Bytes of the files.
    len: u64,
    tensors: BTreeMap<String, Tensor>,
    metadata: Metadata,
}

/// What a header says of one tensor, checked.
struct Tensor {
    kind: TensorType,
    /// Outermost first; [`elements`] is not `None`.
    shape: Vec<usize>,
    /// Which piece of memory has its bytes: 0 for the file, 1 for [`Contents::copies`]; more where there are more files.
    region: usize,
    /// Within the region; exactly as long as kind and shape demand. Of compressed sparse rows, their values.
    range: Range<usize>,
    /// The other parts of compressed sparse rows, which few tensors are.
    csr: Option<Box<CsrRanges>>,
}

/// Where a tensor's bytes are, for whoever reads them often: finding a name takes its time.
#[derive(Default)]
pub(crate) struct Location {
    region: usize,
    range: Range<usize>,
}

/// Where the parts of compressed sparse rows are that are not their values, in the same region. Their lengths agree with
/// each other, with the values' and with the shape.
struct CsrRanges {
    columns: Range<usize>,
    column_bytes: usize,
    row_offsets: Range<usize>,
}

/// What a header holds.
struct Contents {
    tensors: BTreeMap<String, Tensor>,
    metadata: BTreeMap<String, Entry>,
    /// Tensors that the file has in another order.
    copies: Vec<u8>,
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
    /// Its elements: exactly as many bytes as `kind` and `shape` demand. They need not be aligned. Of compressed sparse
    /// rows, their values.
    pub bytes: &'a [u8],
    /// The parts of compressed sparse rows.
    pub csr: Option<CsrView<'a>>,
    source: &'a str,
}

/// The parts of compressed sparse rows, little endian, as long as they must be to belong together. What they say (that
/// offsets and columns ascend, say) is not checked. They need not be aligned.
#[derive(Clone, Copy)]
pub struct CsrView<'a> {
    /// F16, one an entry.
    pub values: &'a [u8],
    /// One an entry.
    pub columns: &'a [u8],
    /// Bytes of a column: 2 or 4.
    pub column_bytes: usize,
    /// Where the entries of each row begin, and where the last one's end: U32, one more than there are rows.
    pub row_offsets: &'a [u8],
}

impl CsrView<'_> {
    /// How many elements are kept.
    pub fn entries(&self) -> u64 {
        self.values.len() as u64 / 2
    }

    /// Bytes of all parts.
    pub fn len_bytes(&self) -> u64 {
        (self.values.len() + self.columns.len() + self.row_offsets.len()) as u64
    }
}

impl TensorView<'_> {
    /// The weight format, or [`FileError::TensorType`] where the elements are of a type that we cannot compute with.
    pub fn format(&self) -> Result<Format, FileError> {
        let refused = |kind| {
            Err(FileError::TensorType {
                file: self.source.to_owned(),
                tensor: self.name.to_owned(),
                kind,
            })
        };
        match self.kind {
            TensorType::Format(format) => Ok(format),
            TensorType::Csr => refused(CSR),
            TensorType::Other(kind) => refused(kind),
        }
    }

    /// Bytes in the file, of all parts.
    pub fn len_bytes(&self) -> u64 {
        match self.csr {
            Some(csr) => csr.len_bytes(),
            None => self.bytes.len() as u64,
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
    /// Maps the file at `path` and reads its header, or all files of the folder at `path`.
    ///
    /// In a folder, one of these is taken, in this order: `model.safetensors`, the shards that
    /// `model.safetensors.index.json` names, `pytorch_model.bin`, the shards of `pytorch_model.bin.index.json`, else the
    /// one file that ends in `.pth`, `.safetensors`, `.st` or `.gguf`. The path of an index or of `config.json` stands
    /// for its folder.
    ///
    /// What `config.json` says comes with a folder, and with a file whose tensors have Hugging Face's names, as
    /// metadata under `config.KEY`: see [`hugging_face::parse_config`].
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
        folder::open(path)
    }

    /// Reads the header of a file that is compiled into the program (`include_bytes!`); messages call it `name`.
    pub fn from_static(name: &'static str, bytes: &'static [u8]) -> Result<Self, FileError> {
        Ok(Part::read(name, Bytes::Static(bytes))?.alone(name.to_owned()))
    }

    /// Reads the header of a file that is in memory; messages call it `name`.
    pub fn from_vec(name: &str, bytes: Vec<u8>) -> Result<Self, FileError> {
        Ok(Part::read(name, Bytes::from(bytes))?.alone(name.to_owned()))
    }

    fn new(
        source: String,
        container: Container,
        regions: Vec<Bytes>,
        len: u64,
        tensors: BTreeMap<String, Tensor>,
        metadata: Metadata,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                source,
                container,
                regions,
                len,
                tensors,
                metadata,
            }),
        }
    }

    /// The kind of file.
    pub fn container(&self) -> Container {
        self.inner.container
    }

    /// What to call the file in messages: its path as it was given, or its name.
    pub fn source(&self) -> &str {
        &self.inner.source
    }

    /// The length of the file in bytes, or of all files with tensors.
    pub fn len_bytes(&self) -> u64 {
        self.inner.len
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

    /// Where the bytes of the tensor called `name` are.
    pub(crate) fn locate(&self, name: &str) -> Option<Location> {
        let tensor = self.inner.tensors.get(name)?;
        Some(Location {
            region: tensor.region,
            range: tensor.range.clone(),
        })
    }

    /// The bytes that lie there.
    pub(crate) fn bytes_at(&self, location: &Location) -> Option<&[u8]> {
        let region = self.inner.regions.get(location.region)?;
        region.get(location.range.clone())
    }

    /// Tells the system how the bytes `part` of the tensor called `name` will be used, all of them if it ends later. It
    /// returns at once, and nothing that is read depends on it.
    pub(crate) fn advise(&self, name: &str, part: Range<usize>, access: Access) {
        let Some(tensor) = self.inner.tensors.get(name) else {
            return;
        };
        let Some(region) = self.inner.regions.get(tensor.region) else {
            return;
        };
        let Range { start, end } = tensor.range;
        let values =
            start.saturating_add(part.start).min(end)..start.saturating_add(part.end).min(end);
        region.advise(values, access);
        if let Some(csr) = &tensor.csr {
            region.advise(csr.columns.clone(), access);
        }
    }

    /// What the file says about itself.
    pub fn metadata(&self) -> &Metadata {
        &self.inner.metadata
    }

    fn view<'a>(&'a self, name: &'a str, tensor: &'a Tensor) -> Option<TensorView<'a>> {
        let region = self.inner.regions.get(tensor.region)?;
        let bytes = region.get(tensor.range.clone())?;
        let csr = match &tensor.csr {
            None => None,
            Some(ranges) => Some(CsrView {
                values: bytes,
                columns: region.get(ranges.columns.clone())?,
                column_bytes: ranges.column_bytes,
                row_offsets: region.get(ranges.row_offsets.clone())?,
            }),
        };
        Some(TensorView {
            name,
            kind: tensor.kind,
            shape: &tensor.shape,
            bytes,
            csr,
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
