//! What was written is read back, by content, by type and by path.

use std::path::Path;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::select;

use super::pth::{Style, Wrap};
use super::*;

/// Everything in `checkpoint` is what was written.
fn assert_tensors(checkpoint: &Checkpoint, tensors: &BTreeMap<String, Planned>) {
    assert!(checkpoint.names().eq(tensors.keys()), "names, sorted");
    for (name, (kind, shape, bytes)) in tensors {
        let view = checkpoint.get(name).unwrap();
        assert_eq!(
            (view.name, view.kind, view.shape, view.bytes),
            (&**name, *kind, &**shape, &**bytes)
        );
        match *kind {
            TensorType::Format(format) => assert_eq!(view.format().unwrap(), format),
            TensorType::Csr | TensorType::Other(_) => {
                assert!(matches!(view.format(), Err(FileError::TensorType { .. })));
            }
        }
    }
    assert!(checkpoint.get("no such tensor").is_none());
}

/// `value` is what `field` was written as.
fn agree(field: &Field<'_>, value: Value<'_>) -> bool {
    match field {
        Field::U8(n) => value == Value::U64((*n).into()),
        Field::U16(n) => value == Value::U64((*n).into()),
        Field::U32(n) => value == Value::U64((*n).into()),
        Field::U64(n) => value == Value::U64(*n),
        Field::I8(n) => value == Value::I64((*n).into()),
        Field::I16(n) => value == Value::I64((*n).into()),
        Field::I32(n) => value == Value::I64((*n).into()),
        Field::I64(n) => value == Value::I64(*n),
        Field::F32(x) => value == Value::F64((*x).into()),
        Field::F64(x) => value == Value::F64(*x),
        Field::Bool(truth) => value == Value::Bool(*truth),
        Field::String(bytes) => match value {
            Value::String(text) => text.as_bytes() == &**bytes,
            Value::Bytes(got) => got == &**bytes && std::str::from_utf8(got).is_err(),
            _ => false,
        },
        Field::Array(kind, items) => {
            let Value::Array(array) = value else {
                return false;
            };
            array.kind() == *kind
                && array.len() == items.len()
                && array
                    .iter()
                    .zip(items)
                    .all(|(value, item)| agree(item, value))
        }
    }
}

fn scalar(kind: ValueKind) -> BoxedStrategy<Field<'static>> {
    match kind {
        ValueKind::U8 => any::<u8>().prop_map(Field::U8).boxed(),
        ValueKind::I8 => any::<i8>().prop_map(Field::I8).boxed(),
        ValueKind::U16 => any::<u16>().prop_map(Field::U16).boxed(),
        ValueKind::I16 => any::<i16>().prop_map(Field::I16).boxed(),
        ValueKind::U32 => any::<u32>().prop_map(Field::U32).boxed(),
        ValueKind::I32 => any::<i32>().prop_map(Field::I32).boxed(),
        ValueKind::U64 => any::<u64>().prop_map(Field::U64).boxed(),
        ValueKind::I64 => any::<i64>().prop_map(Field::I64).boxed(),
        ValueKind::F32 => any::<f32>().prop_map(Field::F32).boxed(),
        ValueKind::F64 => any::<f64>().prop_map(Field::F64).boxed(),
        ValueKind::Bool => any::<bool>().prop_map(Field::Bool).boxed(),
        // Text, and bytes that are mostly none.
        ValueKind::String | ValueKind::Array => {
            let text = vec(any::<char>(), 0..9)
                .prop_map(|text| text.into_iter().collect::<String>().into_bytes());
            prop_oneof![text, vec(any::<u8>(), 0..9)]
                .prop_map(|bytes| Field::String(bytes.into()))
                .boxed()
        }
    }
}

const SCALARS: [ValueKind; 12] = [
    ValueKind::U8,
    ValueKind::I8,
    ValueKind::U16,
    ValueKind::I16,
    ValueKind::U32,
    ValueKind::I32,
    ValueKind::U64,
    ValueKind::I64,
    ValueKind::F32,
    ValueKind::F64,
    ValueKind::Bool,
    ValueKind::String,
];

fn field() -> impl Strategy<Value = Field<'static>> {
    let array = |most: usize| {
        let of =
            move |kind| vec(scalar(kind), 0..most).prop_map(move |items| Field::Array(kind, items));
        select(&SCALARS[..]).prop_flat_map(of)
    };
    prop_oneof![
        select(&SCALARS[..]).prop_flat_map(scalar),
        array(9),
        vec(array(4), 0..4).prop_map(|items| Field::Array(ValueKind::Array, items)),
    ]
}

/// Names of all kinds, but for the one with a meaning of its own.
fn name() -> impl Strategy<Value = String> {
    let odd = vec(any::<char>(), 1..8).prop_map(|name| name.into_iter().collect());
    prop_oneof![
        select(&["emb.weight", "blk.0.time_mix_ln.weight", "x"][..]).prop_map(str::to_owned),
        odd
    ]
}

/// Tensors of `kinds`, each with the elements of a block and the bytes of one, in up to four dimensions.
fn tensors(
    kinds: &'static [(TensorType, usize, usize)],
) -> impl Strategy<Value = BTreeMap<String, Planned>> {
    let tensor = (select(kinds), vec(0usize..5, 0..4), 0usize..3, any::<u64>());
    let tensor = tensor.prop_map(|((kind, block, block_bytes), mut shape, blocks, seed)| {
        let scalar = shape.is_empty() && block == 1;
        let count = shape.iter().product::<usize>() * if scalar { 1 } else { blocks };
        if !scalar {
            shape.push(blocks * block);
        }
        let mut state = seed;
        let bytes = (0..count * block_bytes).map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            state.to_be_bytes()[0]
        });
        (kind, shape, bytes.collect())
    });
    btree_map(name(), tensor, 0..6)
}

const GGUF_KINDS: &[(TensorType, usize, usize)] = &[
    (TensorType::Format(Format::F32), 1, 4),
    (TensorType::Format(Format::F16), 1, 2),
    (TensorType::Format(Format::Bf16), 1, 2),
    (TensorType::Format(Format::Q8_0), 32, 34),
    (TensorType::Other("i64"), 1, 8),
    (TensorType::Other("tq1_0"), 256, 54),
];

const SAFETENSORS_KINDS: &[(TensorType, usize, usize)] = &[
    (TensorType::Format(Format::F32), 1, 4),
    (TensorType::Format(Format::F16), 1, 2),
    (TensorType::Format(Format::Bf16), 1, 2),
    (TensorType::Other("i64"), 1, 8),
    (TensorType::Other("f8_e4m3"), 1, 1),
];

const PTH_KINDS: &[(TensorType, usize, usize)] = &[
    (TensorType::Format(Format::F32), 1, 4),
    (TensorType::Format(Format::F16), 1, 2),
    (TensorType::Format(Format::Bf16), 1, 2),
    (TensorType::Other("f64"), 1, 8),
    (TensorType::Other("i64"), 1, 8),
    (TensorType::Other("bool"), 1, 1),
];

const WRAPS: [Wrap; 5] = [
    Wrap::Plain,
    Wrap::Parameter,
    Wrap::FromType,
    Wrap::ParameterFromType,
    Wrap::Typed,
];

fn style() -> impl Strategy<Value = Style> {
    (
        select(&["", "archive/", "rwkv x070 ü/", "a/b/"][..]),
        select(&[1usize, 8, 64][..]),
        select(&WRAPS[..]),
        select(&["", "_forward_module."][..]),
        any::<[bool; 5]>(),
    )
        .prop_map(|(root, align, wrap, prefix, flags)| {
            let [zip64, byte_order, nested, shared, reversed] = flags;
            Style {
                root: root.to_owned(),
                zip64,
                byte_order,
                align,
                wrap,
                nested,
                prefix,
                shared,
                reversed,
            }
        })
}

proptest! {
    #[test]
    fn pth_reads_back(tensors in tensors(PTH_KINDS), style in style()) {
        let file = pth::write(&tensors, &style);
        let len = file.len() as u64;
        let checkpoint = Checkpoint::from_vec("written", file).unwrap();
        prop_assert_eq!(checkpoint.container(), Container::Pytorch);
        prop_assert_eq!(checkpoint.len_bytes(), len);
        assert_tensors(&checkpoint, &tensors);
        read_all(&checkpoint);
        prop_assert_eq!(checkpoint.metadata().u64("version"), Some(7));
        prop_assert_eq!(checkpoint.metadata().string("note"), style.nested.then_some("outside"));
    }

    #[test]
    fn gguf_reads_back(
        fields in btree_map(name(), field(), 0..8),
        tensors in tensors(GGUF_KINDS),
        alignment in select(&[None, Some(8u32), Some(64), Some(4096)][..]),
    ) {
        let mut fields: Vec<_> = fields.iter().map(|(key, field)| (&**key, field.clone())).collect();
        fields.extend(alignment.map(|alignment| ("general.alignment", alignment.into())));
        let file = write_gguf(&fields, &tensors);
        let checkpoint = Checkpoint::from_vec("written", file.clone()).unwrap();
        prop_assert_eq!(checkpoint.container(), Container::Gguf);
        prop_assert_eq!(checkpoint.len_bytes(), file.len() as u64);
        assert_tensors(&checkpoint, &tensors);
        read_all(&checkpoint);
        for view in checkpoint.tensors() {
            let offset = view.bytes.as_ptr() as usize - checkpoint.inner.regions[0].as_ptr() as usize;
            prop_assert!(offset.is_multiple_of(alignment.unwrap_or(32) as usize), "{:?} at {}", view, offset);
        }
        prop_assert_eq!(checkpoint.metadata().keys().len(), fields.len());
        for (key, field) in &fields {
            let value = checkpoint.metadata().get(key).unwrap();
            prop_assert!(agree(field, value), "{:?} became {:?}", field, value);
        }

        // A copy, key by key and tensor by tensor, is the same file but for the order of the keys.
        let mut plan = GgufWriter::new();
        for (key, _) in &fields {
            plan.copy(checkpoint.metadata(), key).unwrap();
        }
        plan.copy(checkpoint.metadata(), "no such key").unwrap();
        for view in checkpoint.tensors() {
            plan.tensor(view.name, view.kind, view.shape).unwrap();
        }
        let mut body = plan.begin(Vec::new()).unwrap();
        for view in checkpoint.tensors() {
            body.write(view.name, view.bytes).unwrap();
        }
        prop_assert!(body.finish().unwrap() == file, "the copy differs");
    }

    #[test]
    fn safetensors_read_back(
        texts in btree_map(name(), vec(any::<char>(), 0..9).prop_map(|text| text.into_iter().collect::<String>()), 0..4),
        tensors in tensors(SAFETENSORS_KINDS),
    ) {
        let checkpoint = Checkpoint::from_vec("written", write_safetensors(&texts, &tensors)).unwrap();
        prop_assert_eq!(checkpoint.container(), Container::Safetensors);
        assert_tensors(&checkpoint, &tensors);
        read_all(&checkpoint);
        prop_assert!(checkpoint.metadata().keys().eq(texts.keys()));
        for (key, text) in &texts {
            prop_assert_eq!(checkpoint.metadata().string(key), Some(&**text));
        }
    }
}

/// A file that Python's own `pickle` and `zipfile` wrote: see `python/make_pth.py`.
#[test]
fn a_file_of_pythons_reads() {
    let checkpoint =
        Checkpoint::from_static("torch.pth", include_bytes!("python/torch.pth")).unwrap();
    let check = |name: &str, kind: TensorType, shape: &[usize], expected: &[u8]| {
        let view = checkpoint.tensor(name).unwrap();
        assert_eq!((view.kind, view.shape), (kind, shape), "{name}");
        let step = view.bytes.len() / expected.len().max(1);
        let got = view
            .bytes
            .chunks_exact(step.max(1))
            .map(|bytes| match *bytes {
                [a, b] => half::f16::from_le_bytes([a, b]).to_f64(),
                [a, b, c, d] => f32::from_le_bytes([a, b, c, d]).into(),
                _ if kind == TensorType::Other("i64") => {
                    i64::from_le_bytes(bytes.try_into().unwrap()) as f64
                }
                _ => f64::from_le_bytes(bytes.try_into().unwrap()),
            });
        assert!(got.eq(expected.iter().map(|n| f64::from(*n))), "{name}");
    };
    let (f32, f16) = (Format::F32.into(), Format::F16.into());
    let all: Vec<u8> = (0..24).collect();
    check("plain", f32, &[2, 3, 4], &all);
    check("rows", f32, &[2, 4], &all[4..12]);
    check("transposed", f16, &[3, 2], &[0, 3, 1, 4, 2, 5]);
    check("every_third", f32, &[4], &[1, 4, 7, 10]);
    check("prefixed", TensorType::Other("f64"), &[3], &[0, 1, 2]);
    check("parameter", TensorType::Other("i64"), &[1, 1, 2], &[0, 1]);
    check("scalar", f32, &[], &[0]);
    check("empty", f32, &[0, 5], &[]);
    assert_eq!(checkpoint.names().len(), 8);

    let metadata = checkpoint.metadata();
    assert_eq!(metadata.u64("epoch"), Some(12));
    assert_eq!(metadata.u64("tokens"), Some(3_000_000_000_000));
    assert_eq!(metadata.f64("loss"), Some(1.5));
    assert_eq!(metadata.bool("done"), Some(true));
    assert_eq!(metadata.string("author"), Some("Zoë"));
    assert_eq!(metadata.keys().len(), 5);
}

#[test]
fn metadata_is_read_by_type() {
    let (file, _) = small(Container::Gguf);
    let checkpoint = Checkpoint::from_vec("gguf", file).unwrap();
    let metadata = checkpoint.metadata();
    assert_eq!(metadata.string("general.architecture"), Some("rwkv7"));
    assert_eq!(metadata.u64("rwkv7.block_count"), Some(2));
    assert_eq!(metadata.f64("rwkv7.block_count"), Some(2.0));
    assert_eq!(metadata.f64("eps"), Some(f64::from(1e-5f32)));
    assert_eq!(metadata.u64("eps"), None);
    assert_eq!(metadata.bool("flag"), Some(true));
    assert_eq!(
        metadata.strings("tokens").unwrap().collect::<Vec<_>>(),
        [&b"<s>"[..], b"a", b"\xff"]
    );
    assert!(metadata.strings("types").is_none());
    assert_eq!(metadata.integers("types"), Some(vec![3, 1, 1]));
    assert_eq!(metadata.integers("tokens"), None);

    let (file, _) = small(Container::Safetensors);
    let checkpoint = Checkpoint::from_static("safetensors", file.leak()).unwrap();
    let metadata = checkpoint.metadata();
    assert_eq!(
        (
            metadata.f64("eps"),
            metadata.u64("eps"),
            metadata.u64("none")
        ),
        (Some(1e-5), None, None)
    );
    assert!(matches!(
        checkpoint.tensor("none"),
        Err(FileError::NoTensor { .. })
    ));
}

#[test]
fn the_writer_refuses_what_would_not_read() {
    let check = |what: &str, write: fn(&mut GgufWriter) -> Result<(), WriteError>| {
        assert!(write(&mut GgufWriter::new()).is_err(), "{what}");
    };
    check("key twice", |w| w.set("k", 1u32)?.set("k", 2u32).map(drop));
    check("empty key", |w| w.set("", 1u32).map(drop));
    check("mixed array", |w| {
        w.set(
            "k",
            Field::Array(ValueKind::U8, vec![Field::U8(1), Field::I8(1)]),
        )
        .map(drop)
    });
    check("odd alignment", |w| {
        w.set("general.alignment", 48u32).map(drop)
    });
    check("wide alignment", |w| {
        w.set("general.alignment", 64u64).map(drop)
    });
    check("tensor twice", |w| {
        w.tensor("t", Format::F32, &[1])?
            .tensor("t", Format::F32, &[1])
            .map(drop)
    });
    check("long name", |w| {
        w.tensor(&"t".repeat(64), Format::F32, &[1]).map(drop)
    });
    check("five dimensions", |w| {
        w.tensor("t", Format::F32, &[1; 5]).map(drop)
    });
    check("half a block", |w| {
        w.tensor("t", Format::Q8_0, &[2, 16]).map(drop)
    });
    check("overflow", |w| {
        w.tensor("t", Format::F32, &[usize::MAX, 2]).map(drop)
    });
    check("unknown type", |w| {
        w.tensor("t", TensorType::Other("f8_e4m3"), &[1]).map(drop)
    });

    let begin = || {
        let mut plan = GgufWriter::new();
        plan.tensor("a", Format::F32, &[2])
            .unwrap()
            .tensor("b", Format::F32, &[1])
            .unwrap();
        plan.begin(Vec::new()).unwrap()
    };
    assert!(begin().finish().is_err(), "nothing was written");
    assert!(begin().write("b", &[0; 4]).is_err(), "out of order");
    assert!(begin().write("a", &[0; 9]).is_err(), "too long");
    let mut body = begin();
    body.write("a", &[0; 8]).unwrap();
    assert!(body.write("a", &[0]).is_err(), "too long, in pieces");
    assert!(body.write("c", &[0]).is_err(), "not planned");
    body.write("b", &[0; 3]).unwrap();
    assert!(body.finish().is_err(), "too short");
}

#[test]
fn opening_a_path_says_what_is_there() {
    fn shared<T: Send + Sync + Clone>(_: &T) {}

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.pth");
    let open = |path: &Path| Checkpoint::open(path).unwrap_err();
    assert!(matches!(open(&path), FileError::NotFound { .. }));
    assert!(matches!(open(folder.path()), FileError::IsDirectory { .. }));
    std::fs::write(&path, "").unwrap();
    assert!(matches!(open(&path), FileError::Empty { .. }));
    if cfg!(unix) {
        assert!(matches!(
            open(Path::new("/dev/null")),
            FileError::NotRegular { .. }
        ));
    }

    // Of the wrong name, but known by its content; and still there after its name is gone.
    std::fs::write(&path, small(Container::Gguf).0).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    shared(&checkpoint);
    assert_eq!(checkpoint.source(), path.display().to_string());
    if cfg!(unix) {
        std::fs::remove_file(&path).unwrap();
    }
    read_all(&checkpoint);
    let metadata = checkpoint.metadata().clone();
    drop(checkpoint);
    assert_eq!(metadata.u64("rwkv7.block_count"), Some(2));
}
