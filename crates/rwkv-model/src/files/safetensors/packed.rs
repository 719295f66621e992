//! Blocks inside a safetensors file, which has no type for them: tensors of bytes, and metadata that says what they
//! are. `docs/formats.md` describes it.

use super::super::error::{Fault, quoted};
use super::super::{Tensor, TensorType};
use rwkv_kernels::{
    Format,
    formats::{Block, Family},
};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// The key in `__metadata__`.
pub(super) const KEY: &str = "rwkv.packed";

/// The version of the description that this program writes and reads.
const VERSION: u64 = 1;

/// The family and block size of a format that is kept as bytes.
fn family(format: Format) -> Option<(Family, Block)> {
    Family::ALL.into_iter().find_map(|family| {
        let block = Block::ALL
            .into_iter()
            .find(|block| family.format(*block) == format)?;
        Some((family, block))
    })
}

/// Whether `format` is kept as bytes.
pub(super) fn is_packed(format: Format) -> bool {
    family(format).is_some()
}

/// The description of matrices `(name, format, [rows, cols])`, or `None` for none.
pub(super) fn describe<'a>(
    matrices: impl Iterator<Item = (&'a str, Format, [usize; 2])>,
) -> Option<String> {
    let mut tensors = Map::new();
    for (name, format, shape) in matrices {
        if let Some((family, block)) = family(format) {
            let entry =
                json!({ "format": family.name(), "block": block.elements(), "shape": shape });
            tensors.insert(name.to_owned(), entry);
        }
    }
    (!tensors.is_empty()).then(|| json!({ "version": VERSION, "tensors": tensors }).to_string())
}

/// Gives the tensors that `text` describes the format and shape that it says, if they fit their bytes.
pub(super) fn apply(text: &str, tensors: &mut BTreeMap<String, Tensor>) -> Result<(), Fault> {
    let damaged = |what: String| Fault::Damaged(format!("the metadata {KEY} {what}"));
    let description: Value = serde_json::from_str(text)
        .map_err(|error| damaged(format!("is no JSON: {}", quoted(&error.to_string()))))?;
    match description.get("version").and_then(Value::as_u64) {
        Some(VERSION) => {}
        Some(version) => {
            return Err(Fault::Version(format!(
                "the metadata {KEY} has version {version}, only {VERSION} is known; update this program or quantize \
                 the original again"
            )));
        }
        None => return Err(damaged("has no version".to_owned())),
    }
    let entries = description
        .get("tensors")
        .and_then(Value::as_object)
        .ok_or_else(|| damaged("has no tensors".to_owned()))?;
    for (name, entry) in entries {
        let wrong = |what: &str| damaged(format!("says of tensor {} {what}", quoted(name)));
        let tensor = tensors
            .get_mut(name)
            .ok_or_else(|| wrong("something, but there is none"))?;
        let format = format(entry).ok_or_else(|| wrong("a format that is not known"))?;
        let [rows, cols] = shape(entry).ok_or_else(|| wrong("a shape that is no matrix"))?;
        let row_bytes = format
            .row_bytes(cols)
            .ok_or_else(|| wrong("a width of no whole blocks"))?;
        if tensor.kind != TensorType::Other("u8") || tensor.shape != [rows, row_bytes] {
            return Err(wrong("a shape that its bytes do not have"));
        }
        // Rows of no bytes would let any number of rows through, whose product with the width must fit a usize.
        if super::elements(&[rows, cols]).is_none() {
            return Err(wrong("a shape that is too large"));
        }
        tensor.kind = TensorType::Format(format);
        tensor.shape = vec![rows, cols];
    }
    Ok(())
}

fn format(entry: &Value) -> Option<Format> {
    let name = entry.get("format")?.as_str()?;
    let elements = entry.get("block")?.as_u64()?;
    let family = Family::ALL
        .into_iter()
        .find(|family| family.name() == name)?;
    let block = Block::ALL
        .into_iter()
        .find(|block| block.elements() as u64 == elements)?;
    Some(family.format(block))
}

pub(super) fn shape(entry: &Value) -> Option<[usize; 2]> {
    match entry.get("shape")?.as_array()?.as_slice() {
        [rows, cols] => {
            let number = |value: &Value| usize::try_from(value.as_u64()?).ok();
            Some([number(rows)?, number(cols)?])
        }
        _ => None,
    }
}
