//! GGUF's typed values.

use super::super::error::Fault;
use super::super::metadata::Value;
use super::cursor::Cursor;

/// How deep arrays of arrays may go. Nothing in use goes past 1.
const DEEPEST: u32 = 4;

/// The type of a value, with the number that stands for it in a file (`gguf_metadata_value_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names say it")]
#[repr(u32)]
pub enum ValueKind {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    String = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl ValueKind {
    /// Every kind, at the place of its number.
    pub(super) const ALL: [ValueKind; 13] = [
        ValueKind::U8,
        ValueKind::I8,
        ValueKind::U16,
        ValueKind::I16,
        ValueKind::U32,
        ValueKind::I32,
        ValueKind::F32,
        ValueKind::Bool,
        ValueKind::String,
        ValueKind::Array,
        ValueKind::U64,
        ValueKind::I64,
        ValueKind::F64,
    ];

    /// The number that stands for this kind in a file.
    pub(super) fn id(self) -> u32 {
        self as u32
    }

    /// Bytes of one value, or `None` where they vary.
    fn bytes(self) -> Option<u64> {
        match self {
            ValueKind::U8 | ValueKind::I8 | ValueKind::Bool => Some(1),
            ValueKind::U16 | ValueKind::I16 => Some(2),
            ValueKind::U32 | ValueKind::I32 | ValueKind::F32 => Some(4),
            ValueKind::U64 | ValueKind::I64 | ValueKind::F64 => Some(8),
            ValueKind::String | ValueKind::Array => None,
        }
    }

    /// The fewest bytes that one value can have.
    fn smallest(self) -> u64 {
        match self {
            ValueKind::String => 8,
            ValueKind::Array => 12,
            other => other.bytes().unwrap_or(1),
        }
    }
}

/// An array of a GGUF file's metadata, decoded as it is read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Array<'a> {
    kind: ValueKind,
    len: usize,
    /// Its elements, and nothing else.
    bytes: &'a [u8],
    /// How many arrays it is inside of.
    depth: u32,
}

impl<'a> Array<'a> {
    /// The type of the elements.
    pub fn kind(&self) -> ValueKind {
        self.kind
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Value<'a>> + use<'a> {
        let (kind, depth) = (self.kind, self.depth);
        self.walk(Value::Bool(false), move |cursor| {
            value(cursor, kind, depth + 1)
        })
    }

    /// The elements as bytes, where they are strings.
    pub fn strings(&self) -> Option<impl ExactSizeIterator<Item = &'a [u8]> + use<'a>> {
        (self.kind == ValueKind::String).then(|| self.walk(Default::default(), Cursor::string))
    }

    /// Reads every element with `read`. They were all read when the file was opened, so that it fails only where the
    /// file changed since; they are `lost` then.
    fn walk<T: Copy, R>(self, lost: T, read: R) -> impl ExactSizeIterator<Item = T> + use<'a, T, R>
    where
        R: Fn(&mut Cursor<'a>) -> Result<T, Fault>,
    {
        let mut cursor = Cursor::new(self.bytes);
        (0..self.len).map(move |_| read(&mut cursor).unwrap_or(lost))
    }
}

/// Reads one value of `kind` that is inside of `depth` arrays, checking all of it: elements of arrays too.
pub(super) fn value<'a>(
    cursor: &mut Cursor<'a>,
    kind: ValueKind,
    depth: u32,
) -> Result<Value<'a>, Fault> {
    Ok(match kind {
        ValueKind::U8 => Value::U64(u8::from_le_bytes(cursor.array()?).into()),
        ValueKind::U16 => Value::U64(u16::from_le_bytes(cursor.array()?).into()),
        ValueKind::U32 => Value::U64(u32::from_le_bytes(cursor.array()?).into()),
        ValueKind::U64 => Value::U64(u64::from_le_bytes(cursor.array()?)),
        ValueKind::I8 => Value::I64(i8::from_le_bytes(cursor.array()?).into()),
        ValueKind::I16 => Value::I64(i16::from_le_bytes(cursor.array()?).into()),
        ValueKind::I32 => Value::I64(i32::from_le_bytes(cursor.array()?).into()),
        ValueKind::I64 => Value::I64(i64::from_le_bytes(cursor.array()?)),
        ValueKind::F32 => Value::F64(f32::from_le_bytes(cursor.array()?).into()),
        ValueKind::F64 => Value::F64(f64::from_le_bytes(cursor.array()?)),
        ValueKind::Bool => match cursor.array()? {
            [0] => Value::Bool(false),
            [1] => Value::Bool(true),
            [other] => {
                return Err(Fault::Damaged(format!(
                    "a boolean of the metadata is {other}"
                )));
            }
        },
        ValueKind::String => {
            let bytes = cursor.string()?;
            std::str::from_utf8(bytes).map_or(Value::Bytes(bytes), Value::String)
        }
        ValueKind::Array => Value::Array(array(cursor, depth)?),
    })
}

fn array<'a>(cursor: &mut Cursor<'a>, depth: u32) -> Result<Array<'a>, Fault> {
    if depth >= DEEPEST {
        return Err(Fault::Damaged(format!(
            "an array of the metadata is nested deeper than {DEEPEST}"
        )));
    }
    let kind = kind(cursor)?;
    let len = cursor.count(kind.smallest())?;
    let start = cursor.clone();
    match kind.bytes() {
        // Booleans are looked at one by one; other numbers of fixed width are all valid.
        Some(width) if kind != ValueKind::Bool => {
            cursor.take(width.saturating_mul(len as u64))?;
        }
        _ => {
            for _ in 0..len {
                value(cursor, kind, depth + 1)?;
            }
        }
    }
    let bytes = start.clone().take((cursor.at() - start.at()) as u64)?;
    Ok(Array {
        kind,
        len,
        bytes,
        depth,
    })
}

/// Reads the number of a kind.
pub(super) fn kind(cursor: &mut Cursor<'_>) -> Result<ValueKind, Fault> {
    let id = cursor.u32()?;
    let known = usize::try_from(id)
        .ok()
        .and_then(|at| ValueKind::ALL.get(at));
    known
        .copied()
        .ok_or_else(|| Fault::Damaged(format!("the metadata has a value of the unknown type {id}")))
}

/// The value that `bytes` are.
pub(in super::super) fn decode(bytes: &[u8], kind: ValueKind) -> Option<Value<'_>> {
    value(&mut Cursor::new(bytes), kind, 0).ok()
}
