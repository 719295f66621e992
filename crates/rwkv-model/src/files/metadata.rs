//! What a checkpoint file says about itself: keys and typed values.

use std::collections::BTreeMap;
use std::ops::Range;

use super::bytes::Bytes;
use super::gguf::{self, Array, ValueKind};

/// The metadata of a file: `__metadata__` of safetensors, where every value is a string, the typed keys and values of
/// GGUF, or the numbers and short texts among the tensors of a PyTorch file. A Hugging Face folder has the values of its
/// `config.json` too, under `config.KEY`.
///
/// The typed accessors answer `None` where the key is missing *or* holds something of another type; [`get`](Self::get)
/// tells these apart. A string that spells a number or a boolean counts as one, for safetensors has no other way.
/// Strings and arrays of GGUF are ranges of the file: nothing is copied until it is asked for.
#[derive(Clone)]
pub struct Metadata {
    bytes: Bytes,
    entries: BTreeMap<String, Entry>,
}

/// A value, where it lies.
#[derive(Clone)]
pub(super) enum Entry {
    /// Taken out of JSON or a pickle.
    Text(String),
    /// Encoded, somewhere in a GGUF file.
    Encoded {
        /// Its type.
        kind: ValueKind,
        /// Its bytes in the file, which were decoded once already.
        range: Range<usize>,
    },
}

/// A value, with the widths of GGUF's number types forgotten.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Value<'a> {
    /// An unsigned integer of 8 to 64 bits.
    U64(u64),
    /// A signed integer of 8 to 64 bits.
    I64(i64),
    /// A float of 32 or 64 bits.
    F64(f64),
    /// A boolean.
    Bool(bool),
    /// A string.
    String(&'a str),
    /// A string that is not UTF-8, as a token's bytes may be.
    Bytes(&'a [u8]),
    /// An array, whose elements are all of one type.
    Array(Array<'a>),
}

impl Metadata {
    pub(super) fn new(bytes: Bytes, entries: BTreeMap<String, Entry>) -> Self {
        Self { bytes, entries }
    }

    /// The keys, sorted.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<Value<'_>> {
        match self.entries.get(key)? {
            Entry::Text(text) => Some(Value::String(text)),
            Entry::Encoded { kind, range } => gguf::decode(self.bytes.get(range.clone())?, *kind),
        }
    }

    /// The value of `key` as it is encoded in GGUF, or its text.
    pub(super) fn encoded(&self, key: &str) -> Option<Result<(ValueKind, &[u8]), &str>> {
        match self.entries.get(key)? {
            Entry::Text(text) => Some(Err(text)),
            Entry::Encoded { kind, range } => Some(Ok((*kind, self.bytes.get(range.clone())?))),
        }
    }

    /// A string.
    pub fn string(&self, key: &str) -> Option<&str> {
        match self.get(key)? {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// An integer that is not negative.
    pub fn u64(&self, key: &str) -> Option<u64> {
        match self.get(key)? {
            Value::U64(number) => Some(number),
            Value::I64(number) => u64::try_from(number).ok(),
            Value::String(text) => text.trim().parse().ok(),
            _ => None,
        }
    }

    /// A number. An integer past 2^53 is rounded.
    pub fn f64(&self, key: &str) -> Option<f64> {
        match self.get(key)? {
            Value::U64(number) => Some(number as f64),
            Value::I64(number) => Some(number as f64),
            Value::F64(number) => Some(number),
            Value::String(text) => text.trim().parse().ok(),
            _ => None,
        }
    }

    /// A boolean; as text, `true` or `false` in any case.
    pub fn bool(&self, key: &str) -> Option<bool> {
        match self.get(key)? {
            Value::Bool(truth) => Some(truth),
            Value::String(text) => text.trim().to_ascii_lowercase().parse().ok(),
            _ => None,
        }
    }

    /// An array of strings, as bytes of the file: `tokenizer.ggml.tokens` need not be UTF-8.
    pub fn strings(&self, key: &str) -> Option<impl ExactSizeIterator<Item = &[u8]>> {
        match self.get(key)? {
            Value::Array(array) => array.strings(),
            _ => None,
        }
    }

    /// An array of integers, such as `tokenizer.ggml.token_type`. `None` also where one does not fit an `i64`.
    pub fn integers(&self, key: &str) -> Option<Vec<i64>> {
        let Value::Array(array) = self.get(key)? else {
            return None;
        };
        array
            .iter()
            .map(|value| match value {
                Value::U64(number) => i64::try_from(number).ok(),
                Value::I64(number) => Some(number),
                _ => None,
            })
            .collect()
    }
}
