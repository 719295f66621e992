//! Compressed sparse rows in safetensors: what is written is read back, and descriptions that lie are refused.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// A file with a sparse matrix and a dense one; entries are patterns, since nothing here looks at them.
fn write(rows: usize, cols: usize, entries: usize, wide: bool) -> Vec<u8> {
    let mut plan = SafetensorsWriter::new();
    plan.csr("m", [rows, cols], entries, wide).unwrap();
    plan.tensor("n", Format::F16, &[1]).unwrap();
    let mut body = plan.begin(Vec::new()).unwrap();
    let parts = SafetensorsWriter::csr_parts("m");
    let sizes = [
        4 * (rows + 1),
        entries * if wide { 4 } else { 2 },
        2 * entries,
    ];
    for ((part, size), byte) in parts.iter().zip(sizes).zip(1..) {
        body.write(part, &vec![byte; size]).unwrap();
    }
    body.write("n", &[9; 2]).unwrap();
    body.finish().unwrap()
}

proptest! {
    #[test]
    fn written_and_read_back(rows in 0usize..9, cols in 1usize..9, share in 0.0..=1.0, wide: bool) {
        #[allow(clippy::cast_sign_loss, clippy::cast_possible_truncation, reason = "a share of a count")]
        let entries = (share * (rows * cols) as f64) as usize;
        let file = write(rows, cols, entries, wide);
        let other = ::safetensors::SafeTensors::deserialize(&file).unwrap();
        let checkpoint = Checkpoint::from_vec("written", file.clone()).unwrap();
        read_all(&checkpoint);
        prop_assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["m", "n"]);
        let view = checkpoint.get("m").unwrap();
        prop_assert_eq!(view.kind, TensorType::Csr);
        prop_assert_eq!(view.shape, [rows, cols]);
        let csr = view.csr.unwrap();
        prop_assert_eq!(csr.entries(), entries as u64);
        prop_assert_eq!(csr.column_bytes, if wide { 4 } else { 2 });
        // Any reader of safetensors sees the parts as plain tensors.
        let parts = [csr.row_offsets, csr.columns, csr.values];
        let dtypes = [Dtype::U32, if wide { Dtype::U32 } else { Dtype::U16 }, Dtype::F16];
        for ((name, bytes), dtype) in SafetensorsWriter::csr_parts("m").iter().zip(parts).zip(dtypes) {
            let tensor = other.tensor(name).unwrap();
            prop_assert_eq!(tensor.dtype(), dtype);
            prop_assert_eq!(tensor.data(), bytes);
        }
        let error = view.format().unwrap_err().to_string();
        prop_assert!(error.contains("csr") && error.contains("\"m\""), "{}", error);
        prop_assert!(checkpoint.get("n").unwrap().csr.is_none());
    }

    /// Any change of the header is refused, or leaves a file that agrees with itself.
    #[test]
    fn headers_with_flipped_bytes(flips in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let mut file = write(3, 8, 5, false);
        let header = file.len() - (16 + 10 + 10 + 2);
        for (at, byte) in flips {
            file[8 + at.index(header - 8)] = byte;
        }
        if let Ok(checkpoint) = Checkpoint::from_vec("attacked", file) {
            read_all(&checkpoint);
        }
    }
}

/// A part of a file: what follows the matrix's name, type, shape.
type Part = (&'static str, Dtype, &'static [usize]);

const GOOD: [Part; 3] = [
    (".csr.row_offsets", Dtype::U32, &[3]),
    (".csr.columns", Dtype::U16, &[5]),
    (".csr.values", Dtype::F16, &[5]),
];

/// A file with these parts of `m`, whose description is `text`.
fn described(parts: &[Part], text: &str) -> Result<Checkpoint, FileError> {
    let bytes = [0u8; 64];
    let stored = parts.iter().map(|(end, dtype, shape)| {
        let size = shape.iter().product::<usize>() * dtype.bitsize() / 8;
        let tensor = Stored::new(*dtype, shape.to_vec(), &bytes[..size]).unwrap();
        (format!("m{end}"), tensor)
    });
    let texts = HashMap::from([("rwkv.csr".to_owned(), text.to_owned())]);
    let file = ::safetensors::serialize(stored, Some(texts)).unwrap();
    Checkpoint::from_vec("attacked", file)
}

fn of_shape(shape: &str) -> String {
    format!("{{\"version\":1,\"tensors\":{{\"m\":{{\"shape\":{shape}}}}}}}")
}

#[track_caller]
fn refused(parts: &[Part], text: &str, want: &str) {
    let error = described(parts, text).unwrap_err().to_string();
    assert!(error.contains(want), "{text}: {error}");
    assert!(
        !error.contains(char::is_control) && error.len() < 1000,
        "{error}"
    );
}

#[test]
fn hostile_descriptions() {
    let good = of_shape("[2,9]");
    assert_eq!(
        described(&GOOD, &good).unwrap().get("m").unwrap().shape,
        [2, 9]
    );
    // Parts that nothing describes stay what they are.
    let plain = described(&GOOD, "{\"version\":1,\"tensors\":{}}").unwrap();
    assert_eq!(plain.names().len(), 3);

    for text in ["", "{", "nul"] {
        refused(&GOOD, text, "no JSON");
    }
    refused(&GOOD, &"[".repeat(100_000), "no JSON");
    for text in ["[]", "{}", "{\"version\":\"1\"}"] {
        refused(&GOOD, text, "has no version");
    }
    refused(&GOOD, "{\"version\":2,\"tensors\":{}}", "version 2");
    refused(&GOOD, "{\"version\":1,\"tensors\":[]}", "has no tensors");
    for shape in [
        "[]", "[2]", "[1,2,9]", "[2,-9]", "[2,9.5]", "null", "[2,1e30]",
    ] {
        refused(
            &GOOD,
            &of_shape(shape),
            "of tensor \"m\" a shape that is no matrix",
        );
    }
    for shape in ["[18446744073709551615,9]", "[2,18446744073709551615]"] {
        refused(
            &GOOD,
            &of_shape(shape),
            "of tensor \"m\" a shape that is too large",
        );
    }
    for shape in ["[1,9]", "[3,9]", "[2,2]", "[0,9]"] {
        refused(&GOOD, &of_shape(shape), "are no such matrix");
    }
}

#[test]
fn hostile_parts() {
    let good = of_shape("[2,9]");
    for missing in GOOD {
        let parts: Vec<Part> = GOOD.into_iter().filter(|part| *part != missing).collect();
        let end = missing.0;
        let want = format!("of tensor \"m\" that it is sparse, but its {end} is missing");
        refused(&parts, &good, &want);
    }
    let with = |index: usize, dtype: Dtype, shape: &'static [usize]| {
        let mut parts = GOOD;
        parts[index] = (parts[index].0, dtype, shape);
        parts
    };
    for (parts, want) in [
        (with(0, Dtype::I32, &[3]), "its .csr.row_offsets is i32"),
        (
            with(0, Dtype::U32, &[1, 3]),
            "its .csr.row_offsets is u32 of shape [1, 3]",
        ),
        (with(1, Dtype::U8, &[5]), "its .csr.columns is u8"),
        (with(2, Dtype::BF16, &[5]), "its .csr.values is bf16"),
        (with(2, Dtype::F16, &[4]), "are no such matrix"),
        (with(1, Dtype::U32, &[6]), "are no such matrix"),
        (with(0, Dtype::U32, &[4]), "are no such matrix"),
    ] {
        refused(&parts, &good, want);
    }
    let twice = [&GOOD[..], &[("", Dtype::F16, &[2, 9])]].concat();
    refused(&twice, &good, "that it is sparse, but it is there");
}

#[test]
fn plans_that_cannot_be() {
    let refused = |name: &str, shape: [usize; 2], part: &str| {
        let mut plan = SafetensorsWriter::new();
        plan.tensor("there", Format::F32, &[1]).unwrap();
        plan.csr("m", [1, 2], 1, false).unwrap();
        let error = plan.csr(name, shape, 1, false).err().unwrap().to_string();
        assert!(error.contains(part), "{error}");
    };
    refused("m", [1, 2], "twice");
    refused("x", [usize::MAX, 1], "too large");
    refused("x", [2, usize::MAX], "too large");
    let mut plan = SafetensorsWriter::new();
    plan.csr("m", [1, 2], 1, false).unwrap();
    assert!(plan.tensor("m", Format::F32, &[1]).is_err());
}

/// An index of shards has the parts under their own names.
#[test]
fn in_shards() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let index = |shard: &str| {
        let parts = SafetensorsWriter::csr_parts("m");
        let map: Vec<_> = parts
            .iter()
            .map(|part| format!("{part:?}:{shard:?}"))
            .collect();
        let text = format!(
            "{{\"weight_map\":{{{},\"n\":\"a.safetensors\"}}}}",
            map.join(",")
        );
        std::fs::write(path("model.safetensors.index.json"), text).unwrap();
        Checkpoint::open(folder.path())
    };
    std::fs::write(path("a.safetensors"), write(2, 8, 5, false)).unwrap();
    let checkpoint = index("a.safetensors").unwrap();
    assert_eq!(checkpoint.get("m").unwrap().csr.unwrap().entries(), 5);
    let other = write_safetensors(
        &BTreeMap::new(),
        &BTreeMap::from([("o".to_owned(), (Format::F32.into(), vec![1], vec![0; 4]))]),
    );
    std::fs::write(path("b.safetensors"), other).unwrap();
    let error = index("b.safetensors").unwrap_err().to_string();
    assert!(
        error.contains("\"m.csr.") && error.contains("where it is not"),
        "{error}"
    );
}
