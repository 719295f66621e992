//! Safetensors as we write them: streamed, with blocks as tensors of bytes.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use rwkv_kernels::formats::Block;

use super::*;

/// The formats that safetensors files of ours hold.
const FORMATS: [Format; 9] = [
    Format::F32,
    Format::F16,
    Format::Bf16,
    Format::Int8(Block::B32),
    Format::Int8(Block::B128),
    Format::Nf4(Block::B64),
    Format::Nf4(Block::B256),
    Format::Sf4(Block::B32),
    Format::Sf4(Block::B64),
];

/// A format, a shape that it can have, and bytes.
fn tensor() -> impl Strategy<Value = (Format, Vec<usize>, Vec<u8>)> {
    let shaped = |format: Format| {
        let block = format.spec().block();
        let shape = match block {
            1 => vec(0usize..5, 0..4).boxed(),
            _ => (0usize..4, 0usize..3)
                .prop_map(move |(rows, blocks)| vec![rows, blocks * block])
                .boxed(),
        };
        shape.prop_flat_map(move |shape| {
            let (cols, outer) = shape.split_last().map_or((1, &shape[..]), |(c, o)| (*c, o));
            let bytes = format.row_bytes(cols).unwrap() * outer.iter().product::<usize>();
            (Just(format), Just(shape), vec(any::<u8>(), bytes))
        })
    };
    select(&FORMATS[..]).prop_flat_map(shaped)
}

fn write(tensors: &BTreeMap<String, (Format, Vec<usize>, Vec<u8>)>, text: &str) -> Vec<u8> {
    let mut plan = SafetensorsWriter::new();
    plan.set("text", text);
    for (name, (format, shape, _)) in tensors {
        plan.tensor(name, *format, shape).unwrap();
    }
    let mut body = plan.begin(Vec::new()).unwrap();
    for (name, (_, _, bytes)) in tensors {
        let (start, end) = bytes.split_at(bytes.len() / 3);
        body.write(name, start).unwrap();
        body.write(name, end).unwrap();
    }
    body.finish().unwrap()
}

proptest! {
    #[test]
    fn written_and_read_back(
        tensors in proptest::collection::btree_map("[a-zé\"\\\\]{1,9}", tensor(), 0..7),
        text in ".{0,9}",
    ) {
        let file = write(&tensors, &text);
        let data: usize = tensors.values().map(|(_, _, bytes)| bytes.len()).sum();
        prop_assert_eq!((file.len() - data) % 64, 0);
        // The crate `safetensors` reads it too, as bytes where it has no type.
        let other = ::safetensors::SafeTensors::deserialize(&file).unwrap();
        prop_assert_eq!(other.len(), tensors.len());
        let checkpoint = Checkpoint::from_vec("written", file.clone()).unwrap();
        read_all(&checkpoint);
        prop_assert_eq!(checkpoint.metadata().string("text"), Some(text.as_str()));
        prop_assert_eq!(checkpoint.names().len(), tensors.len());
        for (name, (format, shape, bytes)) in &tensors {
            let view = checkpoint.get(name).unwrap();
            prop_assert_eq!(view.format().unwrap(), *format);
            prop_assert_eq!(view.shape, shape.as_slice());
            prop_assert_eq!(view.bytes, bytes.as_slice());
            prop_assert_eq!(other.tensor(name).unwrap().data(), bytes.as_slice());
        }
    }

    /// Any change of the description is refused, or leaves a file that agrees with itself.
    #[test]
    fn descriptions_with_flipped_bytes(flips in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let matrix = (Format::Int8(Block::B64), vec![3, 128], vec![7; 3 * 132]);
        let mut file = write(&BTreeMap::from([("a".to_owned(), matrix)]), "x");
        let header = file.len() - 3 * 132;
        for (at, byte) in flips {
            file[8 + at.index(header - 8)] = byte;
        }
        if let Ok(checkpoint) = Checkpoint::from_vec("attacked", file) {
            read_all(&checkpoint);
        }
    }
}

/// A file with `a`, bytes of `[2, 66]`, and `b`, F16 of `[2, 66]`, whose description is `text`.
fn described(text: &str) -> Result<Checkpoint, FileError> {
    let bytes = [0u8; 2 * 66 * 2];
    let stored = [
        (
            "a",
            Stored::new(Dtype::U8, vec![2, 66], &bytes[..132]).unwrap(),
        ),
        ("b", Stored::new(Dtype::F16, vec![2, 66], &bytes).unwrap()),
    ];
    let texts = HashMap::from([("rwkv.packed".to_owned(), text.to_owned())]);
    Checkpoint::from_vec(
        "attacked",
        ::safetensors::serialize(stored, Some(texts)).unwrap(),
    )
}

#[test]
fn hostile_descriptions() {
    let entry =
        |name: &str, entry: &str| format!("{{\"version\":1,\"tensors\":{{\"{name}\":{entry}}}}}");
    let good = "{\"format\":\"int8\",\"block\":64,\"shape\":[2,64]}";
    let checkpoint = described(&entry("a", good)).unwrap();
    let view = checkpoint.get("a").unwrap();
    assert_eq!(view.format().unwrap(), Format::Int8(Block::B64));
    assert_eq!(view.shape, [2, 64]);
    // Bytes that nothing describes stay bytes.
    let plain = described("{\"version\":1,\"tensors\":{}}").unwrap();
    assert_eq!(plain.get("a").unwrap().kind, TensorType::Other("u8"));

    let refused = |text: &str, part: &str| {
        let error = described(text).unwrap_err().to_string();
        assert!(error.contains(part), "{text}: {error}");
        assert!(
            !error.contains(char::is_control) && error.len() < 1000,
            "{error}"
        );
    };
    refused("", "no JSON");
    refused("{", "no JSON");
    refused(&"[".repeat(100_000), "no JSON");
    for text in [
        "[]",
        "1",
        "{}",
        "{\"version\":\"1\"}",
        "{\"version\":-1,\"tensors\":{}}",
    ] {
        refused(text, "has no version");
    }
    refused("{\"version\":2,\"tensors\":{}}", "version 2");
    for text in ["{\"version\":1}", "{\"version\":1,\"tensors\":[]}"] {
        refused(text, "has no tensors");
    }
    refused(&entry("c", good), "there is none");
    refused(&entry("b", good), "its bytes do not have");
    for (format, block) in [
        ("q8_0", "64"),
        ("int8", "48"),
        ("int8", "-64"),
        ("int8", "64.0"),
        ("int8", "\"64\""),
    ] {
        let text = format!("{{\"format\":\"{format}\",\"block\":{block},\"shape\":[2,64]}}");
        refused(&entry("a", &text), "a format that is not known");
    }
    for shape in [
        "[]", "[2]", "[1,2,64]", "[2,-64]", "[2,6.4]", "\"2x64\"", "[2,1e30]",
    ] {
        let text = format!("{{\"format\":\"int8\",\"block\":64,\"shape\":{shape}}}");
        refused(&entry("a", &text), "no matrix");
    }
    for (shape, part) in [
        ("[2,128]", "its bytes do not have"),
        ("[1,64]", "its bytes do not have"),
        ("[18446744073709551615,64]", "its bytes do not have"),
        ("[2,65]", "no whole blocks"),
        ("[2,18446744073709551552]", "no whole blocks"),
    ] {
        let text = format!("{{\"format\":\"int8\",\"block\":64,\"shape\":{shape}}}");
        refused(&entry("a", &text), part);
    }
    for missing in ["{}", "[]", "null", "{\"format\":\"int8\",\"shape\":[2,64]}"] {
        refused(&entry("a", missing), "a format that is not known");
    }
}

#[test]
fn plans_that_cannot_be() {
    let refused = |name: &str, format: Format, shape: &[usize], part: &str| {
        let mut plan = SafetensorsWriter::new();
        plan.tensor("there", Format::F32, &[1]).unwrap();
        let error = plan.tensor(name, format, shape).err().unwrap().to_string();
        assert!(error.contains(part), "{error}");
    };
    refused("there", Format::F32, &[1], "twice");
    refused(
        "x",
        Format::Q8_0,
        &[1, 32],
        "q8_0, which safetensors cannot hold",
    );
    refused("x", Format::Int8(Block::B64), &[1, 32], "no whole blocks");
    refused("x", Format::Nf4(Block::B64), &[64], "is no matrix");
    refused("x", Format::F32, &[usize::MAX, 2], "too large");
    refused("x", Format::F32, &[usize::MAX / 2], "too large");
}
