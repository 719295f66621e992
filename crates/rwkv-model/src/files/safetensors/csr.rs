//! Compressed sparse rows inside a safetensors file: three tensors a matrix, and metadata that says its shape.
//! `docs/formats.md` describes it.

use super::super::error::{Fault, quoted};
use super::super::{CsrRanges, Tensor, TensorType, elements};
use super::packed::shape;
use rwkv_kernels::Format;
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, ops::Range};

/// The key in `__metadata__`.
pub(super) const KEY: &str = "rwkv.csr";

/// The version of the description that this program writes and reads.
const VERSION: u64 = 1;

/// What follows the matrix's name in those of its parts.
pub(super) const VALUES: &str = ".csr.values";
pub(super) const COLUMNS: &str = ".csr.columns";
pub(super) const ROW_OFFSETS: &str = ".csr.row_offsets";

/// The name of the matrix that a tensor called `part` would be a part of.
pub(in super::super) fn matrix_of_part(part: &str) -> Option<&str> {
    [VALUES, COLUMNS, ROW_OFFSETS]
        .into_iter()
        .find_map(|end| part.strip_suffix(end))
}

/// The description of matrices `(name, [rows, cols])`, or `None` for none.
pub(super) fn describe<'a>(
    matrices: impl Iterator<Item = (&'a str, [usize; 2])>,
) -> Option<String> {
    let tensors: Map<_, _> = matrices
        .map(|(name, shape)| (name.to_owned(), json!({ "shape": shape })))
        .collect();
    (!tensors.is_empty()).then(|| json!({ "version": VERSION, "tensors": tensors }).to_string())
}

/// Puts each matrix that `text` describes in the place of its parts, if these have the lengths that belong together.
pub(super) fn apply(text: &str, tensors: &mut BTreeMap<String, Tensor>) -> Result<(), Fault> {
    let damaged = |what: String| Fault::Damaged(format!("the metadata {KEY} {what}"));
    let description: Value = serde_json::from_str(text)
        .map_err(|error| damaged(format!("is no JSON: {}", quoted(&error.to_string()))))?;
    match description.get("version").and_then(Value::as_u64) {
        Some(VERSION) => {}
        Some(version) => {
            return Err(Fault::Version(format!(
                "the metadata {KEY} has version {version}, only {VERSION} is known; update this program or prune the \
                 original again"
            )));
        }
        None => return Err(damaged("has no version".to_owned())),
    }
    let entries = description
        .get("tensors")
        .and_then(Value::as_object)
        .ok_or_else(|| damaged("has no tensors".to_owned()))?;
    for (name, entry) in entries {
        let matrix = matrix(name, entry, tensors)
            .map_err(|what| damaged(format!("says of tensor {} {what}", quoted(name))))?;
        for part in [VALUES, COLUMNS, ROW_OFFSETS] {
            tensors.remove(&format!("{name}{part}"));
        }
        tensors.insert(name.clone(), matrix);
    }
    Ok(())
}

/// The matrix `name`, which `entry` describes, or what is wrong with it.
fn matrix(name: &str, entry: &Value, tensors: &BTreeMap<String, Tensor>) -> Result<Tensor, String> {
    let [rows, cols] = shape(entry).ok_or("a shape that is no matrix")?;
    let total = elements(&[rows, cols]).ok_or("a shape that is too large")?;
    if tensors.contains_key(name) {
        return Err("that it is sparse, but it is there".to_owned());
    }
    let part =
        |end: &str, kinds: &[(TensorType, usize)]| -> Result<(Range<usize>, usize), String> {
            let tensor = tensors.get(&format!("{name}{end}"));
            let tensor =
                tensor.ok_or_else(|| format!("that it is sparse, but its {end} is missing"))?;
            let kind = kinds.iter().find(|(kind, _)| *kind == tensor.kind);
            match (kind, tensor.shape.as_slice()) {
                (Some((_, bytes)), [_]) => Ok((tensor.range.clone(), *bytes)),
                _ => Err(format!(
                    "that it is sparse, but its {end} is {} of shape {:?}",
                    tensor.kind, tensor.shape
                )),
            }
        };
    let count = |(range, bytes): &(Range<usize>, usize)| range.len() / bytes;
    let values = part(VALUES, &[(Format::F16.into(), 2)])?;
    let columns = part(
        COLUMNS,
        &[(TensorType::Other("u16"), 2), (TensorType::Other("u32"), 4)],
    )?;
    let offsets = part(ROW_OFFSETS, &[(TensorType::Other("u32"), 4)])?;
    let fits = count(&values) == count(&columns)
        && count(&values) <= total
        && rows.checked_add(1) == Some(count(&offsets));
    if !fits {
        return Err(format!(
            "a shape of {rows}×{cols}, where {} values, {} columns and {} row offsets are no such matrix",
            count(&values),
            count(&columns),
            count(&offsets)
        ));
    }
    Ok(Tensor {
        kind: TensorType::Csr,
        shape: vec![rows, cols],
        region: 0,
        range: values.0,
        csr: Some(Box::new(CsrRanges {
            columns: columns.0,
            column_bytes: columns.1,
            row_offsets: offsets.0,
        })),
    })
}
