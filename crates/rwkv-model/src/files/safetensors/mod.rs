//! The header of a safetensors file: a length, JSON, then the tensors' bytes without holes.
//!
//! The crate `safetensors` parses the JSON and checks that shapes, types and offsets agree; what is left to us is the
//! length of the file, which its own errors do not tell.

mod csr;
mod packed;
mod write;

use std::collections::BTreeMap;

use safetensors::Dtype;
use safetensors::tensor::Metadata as Header;

use rwkv_kernels::Format;

use super::error::{Fault, quoted};
use super::metadata::Entry;
use super::{Contents, Tensor, TensorType, elements};

pub(super) use csr::matrix_of_part;
pub use write::SafetensorsWriter;

/// Bytes of the header's length at the start of the file.
const LENGTH: u64 = 8;

/// The longest header that we parse, in bytes. The format allows 100 MB, which hostile JSON turns into gigabytes of
/// shapes; the headers of the largest RWKV checkpoints have less than 1 MB.
const LONGEST: u64 = 16 << 20;

pub(super) fn read(bytes: &[u8]) -> Result<Contents, Fault> {
    let has = bytes.len() as u64;
    let (length, rest) = bytes
        .split_first_chunk()
        .ok_or(Fault::Truncated { needs: LENGTH })?;
    let length = u64::from_le_bytes(*length);
    if length > LONGEST {
        return Err(Fault::Damaged(format!(
            "the header has {length} bytes, more than {LONGEST}"
        )));
    }
    let start = LENGTH + length;
    let json = usize::try_from(length)
        .ok()
        .and_then(|length| rest.get(..length));
    let json = json.ok_or(Fault::Truncated { needs: start })?;
    let header: Header = serde_json::from_slice(json).map_err(|error| {
        Fault::Damaged(format!(
            "the JSON header is wrong: {}",
            quoted(&error.to_string())
        ))
    })?;

    let needs = start.saturating_add(header.data_len() as u64);
    if needs > has {
        return Err(Fault::Truncated { needs });
    }
    if needs < has {
        return Err(Fault::Damaged(format!(
            "{} bytes follow the last tensor",
            has - needs
        )));
    }
    let first = bytes.len() - header.data_len();
    let mut tensors = BTreeMap::new();
    for (name, info) in header.tensors() {
        if elements(&info.shape).is_none() {
            return Err(Fault::Damaged(format!(
                "the shape of tensor {} is too large",
                quoted(&name)
            )));
        }
        // Both sums are at most the length of the file.
        let (from, to) = info.data_offsets;
        let range = first + from..first + to;
        let tensor = Tensor {
            kind: kind(info.dtype),
            shape: info.shape.clone(),
            region: 0,
            range,
            csr: None,
        };
        tensors.insert(name, tensor);
    }
    let texts = || header.metadata().iter().flatten();
    if let Some((_, text)) = texts().find(|(key, _)| *key == packed::KEY) {
        packed::apply(text, &mut tensors)?;
    }
    if let Some((_, text)) = texts().find(|(key, _)| *key == csr::KEY) {
        csr::apply(text, &mut tensors)?;
    }
    let metadata = texts()
        .map(|(key, text)| (key.clone(), Entry::Text(text.clone())))
        .collect();
    Ok(Contents {
        tensors,
        metadata,
        copies: Vec::new(),
    })
}

/// Our word for an element type of safetensors.
fn kind(dtype: Dtype) -> TensorType {
    match dtype {
        Dtype::F32 => TensorType::Format(Format::F32),
        Dtype::F16 => TensorType::Format(Format::F16),
        Dtype::BF16 => TensorType::Format(Format::Bf16),
        Dtype::BOOL => TensorType::Other("bool"),
        Dtype::F4 => TensorType::Other("f4"),
        Dtype::F6_E2M3 => TensorType::Other("f6_e2m3"),
        Dtype::F6_E3M2 => TensorType::Other("f6_e3m2"),
        Dtype::U8 => TensorType::Other("u8"),
        Dtype::I8 => TensorType::Other("i8"),
        Dtype::F8_E5M2 => TensorType::Other("f8_e5m2"),
        Dtype::F8_E4M3 => TensorType::Other("f8_e4m3"),
        Dtype::F8_E8M0 => TensorType::Other("f8_e8m0"),
        Dtype::F8_E4M3FNUZ => TensorType::Other("f8_e4m3fnuz"),
        Dtype::F8_E5M2FNUZ => TensorType::Other("f8_e5m2fnuz"),
        Dtype::I16 => TensorType::Other("i16"),
        Dtype::U16 => TensorType::Other("u16"),
        Dtype::I32 => TensorType::Other("i32"),
        Dtype::U32 => TensorType::Other("u32"),
        Dtype::C64 => TensorType::Other("c64"),
        Dtype::F64 => TensorType::Other("f64"),
        Dtype::I64 => TensorType::Other("i64"),
        Dtype::U64 => TensorType::Other("u64"),
        _ => TensorType::Other("a type newer than this program"),
    }
}
