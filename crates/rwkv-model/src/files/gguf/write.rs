//! Writing GGUF version 3.
//!
//! A file is planned, then streamed: a [`GgufWriter`] collects metadata and the tensors' names, types and shapes;
//! [`begin`](GgufWriter::begin) writes the header to any [`Write`], and the [`Body`] that it returns takes the
//! tensors' bytes in the planned order, in pieces of any size. No tensor is ever held in memory.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::io::Write;

use super::super::body::{Body, Planned, WriteError, pad};
use super::super::{Metadata, TensorType, Value, elements};
use super::types::GgmlType;
use super::{ALIGNMENT, ALIGNMENT_KEY, ALIGNMENTS, LONGEST_NAME, MAGIC, ValueKind};

const VERSION: u32 = 3;
/// ggml keeps 64 bytes for a tensor's name, the last of them 0, and four dimensions: longer ones would not load there.
const LONGEST_TENSOR_NAME: usize = 63;
const MOST_DIMS: usize = 4;

/// A metadata value to write, with the width that other programs expect of its key (they refuse a `u64` block count).
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Field<'a> {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    /// Should be UTF-8, except for tokens.
    String(Cow<'a, [u8]>),
    /// Elements that are all of one kind, which even an empty array has.
    Array(ValueKind, Vec<Field<'a>>),
}

macro_rules! fields_from {
    ($($kind:ident($from:ty)),*) => {$(
        impl From<$from> for Field<'_> {
            fn from(value: $from) -> Self {
                Field::$kind(value)
            }
        }
    )*};
}

fields_from!(
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool)
);

impl<'a> From<&'a str> for Field<'a> {
    fn from(text: &'a str) -> Self {
        Field::String(Cow::Borrowed(text.as_bytes()))
    }
}

impl<'a> Field<'a> {
    /// An array of strings, such as tokens.
    pub fn strings<S: AsRef<[u8]> + ?Sized + 'a>(strings: impl IntoIterator<Item = &'a S>) -> Self {
        let strings = strings
            .into_iter()
            .map(|text| Field::String(Cow::Borrowed(text.as_ref())));
        Field::Array(ValueKind::String, strings.collect())
    }

    /// An array of 32-bit integers, such as token types.
    pub fn integers(numbers: impl IntoIterator<Item = i32>) -> Self {
        Field::Array(
            ValueKind::I32,
            numbers.into_iter().map(Field::I32).collect(),
        )
    }

    /// The kind of value that this is in the file.
    pub fn kind(&self) -> ValueKind {
        match self {
            Field::U8(_) => ValueKind::U8,
            Field::I8(_) => ValueKind::I8,
            Field::U16(_) => ValueKind::U16,
            Field::I16(_) => ValueKind::I16,
            Field::U32(_) => ValueKind::U32,
            Field::I32(_) => ValueKind::I32,
            Field::U64(_) => ValueKind::U64,
            Field::I64(_) => ValueKind::I64,
            Field::F32(_) => ValueKind::F32,
            Field::F64(_) => ValueKind::F64,
            Field::Bool(_) => ValueKind::Bool,
            Field::String(_) => ValueKind::String,
            Field::Array(..) => ValueKind::Array,
        }
    }

    /// Appends the value to `out`; `false` where an array has elements of another kind than it says.
    fn encode(&self, out: &mut Vec<u8>) -> bool {
        match self {
            Field::U8(value) => out.extend(value.to_le_bytes()),
            Field::I8(value) => out.extend(value.to_le_bytes()),
            Field::U16(value) => out.extend(value.to_le_bytes()),
            Field::I16(value) => out.extend(value.to_le_bytes()),
            Field::U32(value) => out.extend(value.to_le_bytes()),
            Field::I32(value) => out.extend(value.to_le_bytes()),
            Field::U64(value) => out.extend(value.to_le_bytes()),
            Field::I64(value) => out.extend(value.to_le_bytes()),
            Field::F32(value) => out.extend(value.to_le_bytes()),
            Field::F64(value) => out.extend(value.to_le_bytes()),
            Field::Bool(value) => out.push(u8::from(*value)),
            Field::String(bytes) => string(out, bytes),
            Field::Array(kind, items) => {
                out.extend(kind.id().to_le_bytes());
                out.extend((items.len() as u64).to_le_bytes());
                return items
                    .iter()
                    .all(|item| item.kind() == *kind && item.encode(out));
            }
        }
        true
    }
}

fn string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u64).to_le_bytes());
    out.extend(bytes);
}

/// The plan of a GGUF file.
pub struct GgufWriter {
    keys: BTreeSet<String>,
    names: BTreeSet<String>,
    /// Encoded keys and values.
    metadata: Vec<u8>,
    tensors: Vec<Planned>,
    /// For each tensor: the encoded row of the tensor table, but for the offset, which the alignment decides.
    rows: Vec<Vec<u8>>,
    alignment: u64,
}

impl Default for GgufWriter {
    fn default() -> Self {
        Self::new()
    }
}

impl GgufWriter {
    /// A file with no metadata and no tensors.
    pub fn new() -> Self {
        Self {
            keys: BTreeSet::new(),
            names: BTreeSet::new(),
            metadata: Vec::new(),
            tensors: Vec::new(),
            rows: Vec::new(),
            alignment: ALIGNMENT,
        }
    }

    /// Sets `key`, once. `general.alignment` must be a `u32`, and also moves the tensors.
    pub fn set<'a>(
        &mut self,
        key: &str,
        value: impl Into<Field<'a>>,
    ) -> Result<&mut Self, WriteError> {
        let value = value.into();
        if key == ALIGNMENT_KEY {
            let alignment = match value {
                Field::U32(alignment) => u64::from(alignment),
                _ => 0,
            };
            self.set_alignment(alignment)?;
        }
        let mut encoded = Vec::new();
        if !value.encode(&mut encoded) {
            return Err(wrong_key(
                key,
                "is an array with elements of another kind than it says",
            ));
        }
        self.append(key, value.kind(), &encoded)
    }

    /// Copies `key` from another file, as it is there; a key that is not there is left out.
    pub fn copy(&mut self, from: &Metadata, key: &str) -> Result<&mut Self, WriteError> {
        match from.encoded(key) {
            None => Ok(self),
            Some(Err(text)) => self.set(key, text),
            Some(Ok((kind, encoded))) => {
                if let (ALIGNMENT_KEY, Some(Value::U64(alignment))) = (key, from.get(key)) {
                    self.set_alignment(alignment)?;
                }
                self.append(key, kind, encoded)
            }
        }
    }

    fn set_alignment(&mut self, alignment: u64) -> Result<(), WriteError> {
        if !alignment.is_power_of_two() || !ALIGNMENTS.contains(&alignment) {
            return Err(wrong_key(
                ALIGNMENT_KEY,
                "must be a u32, a power of two from 8 to 2^20",
            ));
        }
        self.alignment = alignment;
        Ok(())
    }

    fn append(
        &mut self,
        key: &str,
        kind: ValueKind,
        encoded: &[u8],
    ) -> Result<&mut Self, WriteError> {
        if key.is_empty() || key.len() as u64 > LONGEST_NAME {
            return Err(wrong_key(
                key,
                "has a key of no bytes, or of more than 65,535",
            ));
        }
        if !self.keys.insert(key.to_owned()) {
            return Err(wrong_key(key, "is set twice"));
        }
        string(&mut self.metadata, key.as_bytes());
        self.metadata.extend(kind.id().to_le_bytes());
        self.metadata.extend(encoded);
        Ok(self)
    }

    /// Plans the next tensor: its `name` (at most 63 bytes), its type, and its `shape`, outermost first, with at most
    /// four dimensions and rows (the innermost) of whole blocks.
    pub fn tensor(
        &mut self,
        name: &str,
        kind: impl Into<TensorType>,
        shape: &[usize],
    ) -> Result<&mut Self, WriteError> {
        let kind = kind.into();
        let wrong = |what: String| WriteError::Tensor {
            tensor: name.to_owned(),
            what,
        };
        if name.is_empty() || name.len() > LONGEST_TENSOR_NAME {
            return Err(wrong(format!(
                "has a name of no bytes, or of more than {LONGEST_TENSOR_NAME}"
            )));
        }
        if shape.len() > MOST_DIMS {
            return Err(wrong(format!(
                "has {} dimensions, more than {MOST_DIMS}",
                shape.len()
            )));
        }
        let ggml = GgmlType::of(kind)
            .ok_or_else(|| wrong(format!("has the type {kind}, which GGUF does not have")))?;
        let (cols, outer) = shape
            .split_last()
            .map_or((1, shape), |(&cols, outer)| (cols, outer));
        let bytes = elements(shape)
            .and_then(|_| ggml.bytes(outer.iter().map(|&n| n as u64).product(), cols as u64))
            .ok_or_else(|| {
                wrong(format!(
                    "of shape {shape:?} is too large, or no whole number of blocks of {kind}"
                ))
            })?;
        if !self.names.insert(name.to_owned()) {
            return Err(wrong("is planned twice".to_owned()));
        }
        let mut row = Vec::new();
        string(&mut row, name.as_bytes());
        // At most MOST_DIMS.
        row.extend(u32::try_from(shape.len()).unwrap_or(u32::MAX).to_le_bytes());
        for &n in shape.iter().rev() {
            row.extend((n as u64).to_le_bytes());
        }
        row.extend(ggml.id.to_le_bytes());
        self.rows.push(row);
        self.tensors.push(Planned {
            name: name.to_owned(),
            bytes,
        });
        Ok(self)
    }

    /// Writes the header and the padding after it. Give it a [`BufWriter`](std::io::BufWriter) where `out` is a file.
    pub fn begin<W: Write>(self, mut out: W) -> Result<Body<W>, WriteError> {
        let mut header = Vec::new();
        header.extend(MAGIC);
        header.extend(VERSION.to_le_bytes());
        header.extend((self.rows.len() as u64).to_le_bytes());
        header.extend((self.keys.len() as u64).to_le_bytes());
        header.extend(&self.metadata);
        let mut offset = 0u64;
        for (row, Planned { name, bytes }) in self.rows.iter().zip(&self.tensors) {
            header.extend(row);
            header.extend(offset.to_le_bytes());
            offset = offset
                .checked_add(*bytes)
                .and_then(|end| end.checked_next_multiple_of(self.alignment))
                .ok_or_else(|| WriteError::Tensor {
                    tensor: name.clone(),
                    what: "ends past 2^64 bytes".to_owned(),
                })?;
        }
        out.write_all(&header)?;
        pad(&mut out, header.len() as u64, self.alignment)?;
        Ok(Body::new(out, self.tensors, self.alignment))
    }
}

fn wrong_key(key: &str, what: &'static str) -> WriteError {
    WriteError::Metadata {
        key: key.to_owned(),
        what,
    }
}
