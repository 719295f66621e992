//! GGUF, versions 2 and 3: header, metadata, tensor table, padding, then tensors at aligned offsets.
//!
//! Source: `docs/gguf.md` of the ggml project. Version 1 had 32-bit lengths; version 3 differs from 2 in that
//! big-endian files exist, which begin with the same letters and are refused here.

mod cursor;
mod types;
mod value;
mod write;

use std::collections::BTreeMap;
use std::collections::btree_map;

use super::error::{Fault, quoted};
use super::metadata::{Entry, Value};
use super::{Contents, Tensor, elements};
use cursor::Cursor;
use types::GgmlType;

pub(super) use value::decode;
pub use value::{Array, ValueKind};
pub use write::{Field, GgufWriter};

const MAGIC: [u8; 4] = *b"GGUF";
const ALIGNMENT_KEY: &str = "general.alignment";
/// Where the file does not say.
const ALIGNMENT: u64 = 32;
/// What we believe: the format asks for a multiple of 8, and pages larger than 1 MiB are of no use to a file.
const ALIGNMENTS: std::ops::RangeInclusive<u64> = 8..=1 << 20;
/// ggml itself stops at 4.
const MOST_DIMS: u32 = 8;
/// The longest key that the format allows, in bytes, and here the longest name of a tensor too.
const LONGEST_NAME: u64 = 65_535;

/// The fewest bytes that a key and its value can take, and a row of the tensor table.
const SMALLEST_PAIR: u64 = 8 + 4 + 1;
const SMALLEST_TENSOR: u64 = 8 + 4 + 4 + 8;

/// A row of the tensor table, with the dimensions checked but not yet the place.
struct Row {
    name: String,
    ggml: &'static GgmlType,
    /// Outermost first.
    shape: Vec<usize>,
    /// In bytes, from the start of the data.
    offset: u64,
    bytes: u64,
}

pub(super) fn read(bytes: &[u8]) -> Result<Contents, Fault> {
    let mut cursor = Cursor::new(bytes);
    cursor.take(MAGIC.len() as u64)?;
    version(cursor.u32()?)?;
    // Each count is checked against what is left of the file when it is read, and never sizes an allocation.
    let tensor_count = cursor.count(SMALLEST_TENSOR)?;
    let pair_count = cursor.count(SMALLEST_PAIR)?;

    let mut metadata = BTreeMap::new();
    let mut alignment = ALIGNMENT;
    for _ in 0..pair_count {
        let key = name(&mut cursor, "key")?;
        let kind = value::kind(&mut cursor)?;
        let start = cursor.at();
        let value = value::value(&mut cursor, kind, 0)?;
        if key == ALIGNMENT_KEY {
            alignment = read_alignment(value)?;
        }
        match metadata.entry(key) {
            btree_map::Entry::Occupied(twice) => {
                return Err(Fault::Damaged(format!(
                    "the metadata has the key {} twice",
                    quoted(twice.key())
                )));
            }
            btree_map::Entry::Vacant(free) => free.insert(Entry::Encoded {
                kind,
                range: start..cursor.at(),
            }),
        };
    }
    let mut rows = Vec::new();
    for _ in 0..tensor_count {
        rows.push(row(&mut cursor, alignment)?);
    }
    let tensors = place(rows, cursor.at() as u64, alignment, bytes.len() as u64)?;
    Ok(Contents {
        tensors,
        metadata,
        copies: Vec::new(),
    })
}

fn version(version: u32) -> Result<(), Fault> {
    match version {
        2 | 3 => Ok(()),
        1 => Err(Fault::Version(
            "GGUF version 1 is not read; convert the original checkpoint again, to version 3"
                .to_owned(),
        )),
        _ if (1..=3).contains(&version.swap_bytes()) => Err(Fault::Version(
            "big-endian GGUF is not read; convert the file to little-endian".to_owned(),
        )),
        _ => Err(Fault::Version(format!(
            "GGUF version {version} is not known, only 2 and 3 are; update this program or convert the file"
        ))),
    }
}

fn read_alignment(value: Value<'_>) -> Result<u64, Fault> {
    match value {
        Value::U64(alignment) if alignment.is_power_of_two() && ALIGNMENTS.contains(&alignment) => {
            Ok(alignment)
        }
        other => {
            let (least, most) = (ALIGNMENTS.start(), ALIGNMENTS.end());
            let found = match other {
                Value::U64(number) => number.to_string(),
                _ => "not an unsigned number".to_owned(),
            };
            Err(Fault::Damaged(format!(
                "{ALIGNMENT_KEY} is {found}, not a power of two from {least} to {most}"
            )))
        }
    }
}

/// Reads the name of a `what`, which must be UTF-8 and not too long to copy.
fn name(cursor: &mut Cursor<'_>, what: &str) -> Result<String, Fault> {
    let bytes = cursor.string()?;
    if bytes.len() as u64 > LONGEST_NAME {
        return Err(Fault::Damaged(format!(
            "the name of a {what} has {} bytes",
            bytes.len()
        )));
    }
    let name = std::str::from_utf8(bytes)
        .map_err(|_| Fault::Damaged(format!("the name of a {what} is not UTF-8")))?;
    Ok(name.to_owned())
}

fn row(cursor: &mut Cursor<'_>, alignment: u64) -> Result<Row, Fault> {
    let name = name(cursor, "tensor")?;
    let damaged = |what: String| Fault::Damaged(format!("tensor {} {what}", quoted(&name)));
    let dims = cursor.u32()?;
    if dims > MOST_DIMS {
        return Err(damaged(format!(
            "has {dims} dimensions, more than {MOST_DIMS}"
        )));
    }
    let mut shape = Vec::new();
    for _ in 0..dims {
        let n = cursor.u64()?;
        shape.push(usize::try_from(n).map_err(|_| damaged(format!("has a dimension of {n}")))?);
    }
    let id = cursor.u32()?;
    let offset = cursor.u64()?;
    let ggml = GgmlType::from_id(id).ok_or_else(|| {
        damaged(format!(
            "has the type number {id}, which is not known to this program"
        ))
    })?;
    if elements(&shape).is_none() {
        return Err(damaged(format!("is too large: {shape:?}")));
    }
    // Stored innermost first.
    let cols = shape.first().map_or(1, |&n| n as u64);
    let rows = shape.iter().skip(1).map(|&n| n as u64).product();
    shape.reverse();
    let bytes = ggml.bytes(rows, cols).ok_or_else(|| {
        damaged(format!(
            "of shape {shape:?} is no whole number of blocks of {}",
            ggml.name
        ))
    })?;
    if !offset.is_multiple_of(alignment) {
        return Err(damaged(format!(
            "starts at {offset}, which is not a multiple of {alignment}"
        )));
    }
    Ok(Row {
        name,
        ggml,
        shape,
        offset,
        bytes,
    })
}

/// Gives every tensor its range of a file of `has` bytes whose header ends at `header_end`.
fn place(
    mut rows: Vec<Row>,
    header_end: u64,
    alignment: u64,
    has: u64,
) -> Result<BTreeMap<String, Tensor>, Fault> {
    let start = header_end
        .checked_next_multiple_of(alignment)
        .unwrap_or(u64::MAX);
    let mut tensors = BTreeMap::new();
    rows.sort_by_key(|row| (row.offset, row.bytes));
    // The furthest first, so that an error tells how long the whole file should be.
    let needs = rows
        .iter()
        .map(|row| start.saturating_add(row.offset).saturating_add(row.bytes))
        .max();
    if let Some(needs) = needs.filter(|&needs| needs > has) {
        return Err(Fault::Truncated { needs });
    }
    // None of the sums below overflows: they are at most `has`.
    let mut free = 0;
    for Row {
        name,
        ggml,
        shape,
        offset,
        bytes,
    } in rows
    {
        if offset < free && bytes > 0 {
            return Err(Fault::Damaged(format!(
                "tensor {} lies over another one",
                quoted(&name)
            )));
        }
        free = free.max(offset + bytes);
        let at = |place: u64| usize::try_from(place).map_err(|_| Fault::Truncated { needs: place });
        let range = at(start + offset)?..at(start + offset + bytes)?;
        match tensors.entry(name) {
            btree_map::Entry::Occupied(twice) => {
                return Err(Fault::Damaged(format!(
                    "tensor {} is there twice",
                    quoted(twice.key())
                )));
            }
            btree_map::Entry::Vacant(free) => free.insert(Tensor {
                kind: ggml.kind(),
                shape,
                region: 0,
                range,
                csr: None,
            }),
        };
    }
    Ok(tensors)
}
