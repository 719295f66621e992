#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
//! Files of all containers: written and read back, and attacked.

use std::collections::HashMap;

use ::safetensors::tensor::{Dtype, TensorView as Stored};

use super::*;

mod attack;
mod attack_pth;
mod csr;
mod folders;
mod packed;
mod pth;
mod read_back;

/// A tensor to write: its type, its shape, its bytes.
type Planned = (TensorType, Vec<usize>, Vec<u8>);

fn write_gguf(fields: &[(&str, Field<'_>)], tensors: &BTreeMap<String, Planned>) -> Vec<u8> {
    let mut plan = GgufWriter::new();
    for (key, field) in fields {
        plan.set(key, field.clone()).unwrap();
    }
    for (name, (kind, shape, _)) in tensors {
        plan.tensor(name, *kind, shape).unwrap();
    }
    let mut body = plan.begin(Vec::new()).unwrap();
    for (name, (_, _, bytes)) in tensors {
        // In two pieces, as a quantizer would.
        let (start, end) = bytes.split_at(bytes.len() / 3);
        body.write(name, start).unwrap();
        body.write(name, end).unwrap();
    }
    body.finish().unwrap()
}

fn write_safetensors(
    texts: &BTreeMap<String, String>,
    tensors: &BTreeMap<String, Planned>,
) -> Vec<u8> {
    let stored = tensors.iter().map(|(name, (kind, shape, bytes))| {
        let dtype = match kind {
            TensorType::Format(Format::F32) => Dtype::F32,
            TensorType::Format(Format::F16) => Dtype::F16,
            TensorType::Format(Format::Bf16) => Dtype::BF16,
            TensorType::Other("i64") => Dtype::I64,
            TensorType::Other("f8_e4m3") => Dtype::F8_E4M3,
            other => panic!("safetensors has no {other}"),
        };
        (name, Stored::new(dtype, shape.clone(), bytes).unwrap())
    });
    let texts: HashMap<String, String> = texts.clone().into_iter().collect();
    // Not an empty map: without tensors, version 0.8 of the crate writes invalid JSON for it.
    ::safetensors::serialize(stored, (!texts.is_empty()).then_some(texts)).unwrap()
}

/// Touches all that a reader can: nothing may panic, and what is handed out agrees with itself.
fn read_all(checkpoint: &Checkpoint) {
    let mut total = 0;
    for view in checkpoint.tensors() {
        if let Ok(format) = view.format() {
            let (cols, outer) = view
                .shape
                .split_last()
                .map_or((1, view.shape), |(&cols, outer)| (cols, outer));
            assert_eq!(
                format.row_bytes(cols).unwrap() * outer.iter().product::<usize>(),
                view.bytes.len(),
                "{view:?}"
            );
        }
        assert_eq!(checkpoint.get(view.name).unwrap().bytes, view.bytes);
        total += view.bytes.len() as u64;
    }
    // PyTorch's tensors may share a storage.
    assert!(
        total <= checkpoint.len_bytes() || checkpoint.container() == Container::Pytorch,
        "tensors lie over each other"
    );
    let metadata = checkpoint.metadata();
    for key in metadata.keys() {
        let (_, _, _, _) = (
            metadata.u64(key),
            metadata.f64(key),
            metadata.bool(key),
            metadata.string(key),
        );
        let value = metadata.get(key).unwrap();
        assert_eq!(
            metadata.strings(key).map(Iterator::count).is_some(),
            matches!(value, Value::Array(a) if a.kind() == ValueKind::String)
        );
        metadata.integers(key);
        if let Value::Array(array) = value {
            assert_eq!(array.iter().count(), array.len());
        }
    }
}

/// A small file with every sort of thing in it, and the length of its header.
fn small(container: Container) -> (Vec<u8>, usize) {
    let pattern = |len: u8| (1..=len).collect::<Vec<u8>>();
    let mut tensors = BTreeMap::from([
        (
            "blk.0.a".to_owned(),
            (Format::F32.into(), vec![2, 3], pattern(24)),
        ),
        (
            "blk.0.b".to_owned(),
            (Format::F16.into(), vec![1, 1, 5], pattern(10)),
        ),
        (
            "c".to_owned(),
            (TensorType::Other("i64"), vec![2], pattern(16)),
        ),
    ]);
    match container {
        Container::Pytorch => {
            let style = pth::Style {
                root: "root/".to_owned(),
                align: 4,
                ..pth::PLAIN
            };
            let file = pth::write(&tensors, &style);
            // A zip archive has headers everywhere.
            let header = file.len();
            (file, header)
        }
        Container::Safetensors | Container::HuggingFace => {
            let texts = BTreeMap::from([("format", "pt"), ("eps", "1e-5")]);
            let texts = texts
                .into_iter()
                .map(|(key, text)| (key.to_owned(), text.to_owned()))
                .collect();
            let file = write_safetensors(&texts, &tensors);
            let data = 24 + 10 + 16;
            let header = file.len() - data;
            (file, header)
        }
        Container::Gguf => {
            tensors.insert(
                "d".to_owned(),
                (Format::Q8_0.into(), vec![1, 32], pattern(34)),
            );
            let nested = Field::Array(
                ValueKind::Array,
                vec![Field::integers([1, 2]), Field::strings(["x", "yz"])],
            );
            let fields = [
                ("general.architecture", "rwkv7".into()),
                ("rwkv7.block_count", 2u32.into()),
                ("eps", 1e-5f32.into()),
                ("flag", true.into()),
                ("tokens", Field::strings([&b"<s>"[..], b"a", b"\xff"])),
                ("types", Field::integers([3, 1, 1])),
                ("nested", nested),
            ];
            let file = write_gguf(&fields, &tensors);
            let data = 32 + 32 + 32 + 34;
            let header = file.len() - data;
            (file, header)
        }
    }
}
