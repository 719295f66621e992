//! What a model takes of a process's own memory: on its way to a GPU, and on the processor, from every dialect of file.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests fail by panicking; sizes are small"
)]

#[path = "support/allocations.rs"]
mod allocations;
#[path = "support/checkpoint.rs"]
mod checkpoint;
#[path = "support/pytorch.rs"]
mod pytorch;
#[allow(
    dead_code,
    reason = "some dialects are those of tests/dialects.rs alone"
)]
#[path = "support/rename.rs"]
mod rename;

use allocations::{Counting, count};
use checkpoint::{
    Metadata, Small, Tensor, Tensors, gguf, llama_names, pairs_transposed, safetensors,
};
use pytorch::pytorch;
use rename::{converted, flash_linear_attention, llama_6};
use rwkv_kernels::Format;
use rwkv_model::{AdapterFile, ModelFile, OpenOptions, export, files::Field};
use rwkv_sched::{
    Batch, CpuExecutor, Executor, Model, PruneRatio, SlotId, Version, Wanted, Weight,
};
use std::{collections::HashMap, ops::ControlFlow, path::Path};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// About 12 million parameters.
const MIDDLE: Small = Small {
    layers: 12,
    width: 256,
    head_size: 64,
    ffn: 1024,
    vocab: 2048,
    ranks: [64, 64, 32, 128],
};

/// The largest share of the weights' bytes that may be on the heap while a model is opened and all its rows go by: what
/// there is of names, the vectors that need arithmetic, and the one tensor that is being made (the largest that a
/// converter divides has a fortieth of the bytes).
const PASSING: f64 = 1.0 / 20.0;
/// The same of what stays, with all rows gone by: names and vectors alone.
const STAYING: f64 = 1.0 / 60.0;

/// Hands all rows of all tensors over, `rows` at a time; `take` gets them in order.
fn stream(model: &Model, rows: usize, take: &mut dyn FnMut(Weight, &[u8])) {
    let weights = model.weights();
    for weight in model.tensors() {
        let all = weights.describe(weight).unwrap().1.rows.0;
        for first in (0..all).step_by(rows) {
            let some = first..all.min(first.saturating_add(rows));
            let read = &mut |matrix: &rwkv_kernels::Matrix<'_>| {
                take(weight, matrix.bytes());
                Ok(())
            };
            weights.with_rows(weight, some, read).unwrap();
        }
    }
}

/// Opens the file at `path`, lets all rows pass by, whole tensors as a GPU's upload wants them and slabs as a writer
/// does, and then lends every tensor as the CPU executor wants it. `copied` says which tensors the file has
/// in no readable form: they alone are copied then.
#[track_caller]
fn check(what: &str, path: &Path, version: Version, copied: impl Fn(Weight) -> bool) {
    let open = || ModelFile::open(path).unwrap().model().unwrap();
    let (model, opened, _) = count(open);
    assert_eq!(model.config().version, version, "{what}");
    let sizes: HashMap<Weight, usize> = model
        .tensors()
        .into_iter()
        .map(|weight| {
            let (format, shape) = model.weights().describe(weight).unwrap();
            (
                weight,
                format.row_bytes(shape.cols.0).unwrap() * shape.rows.0,
            )
        })
        .collect();
    let total: usize = sizes.values().sum();
    let share = |bytes: usize| bytes as f64 / total as f64;
    drop(model);

    let ((model, passed), peak, left) = count(|| {
        let model = open();
        let mut passed = 0;
        stream(&model, usize::MAX, &mut |_, bytes| passed += bytes.len());
        stream(&model, 61, &mut |_, bytes| passed += bytes.len());
        (model, passed)
    });
    assert_eq!(passed, 2 * total, "{what}");
    println!(
        "{what}: {total} bytes of weights; opening takes {opened}, all rows {peak} at the peak, {left} stay"
    );
    assert!(share(peak) < PASSING, "{what}: {peak} of {total}");
    assert!(share(left) < STAYING, "{what}: {left} of {total}");

    // The processor reads the file where it is mapped, and makes other rows as it needs them.
    let vectors = model.graph().nodes().iter().flat_map(|n| n.op.vectors());
    let elements = |weight: Weight| model.weights().describe(weight).unwrap().1.elements();
    let vectors: usize = vectors.filter_map(elements).sum();
    let own = 2 * model.state_layout().bytes() as usize + 5 * vectors + (256 << 10);
    let (executor, peak, left) = count(|| {
        let mut executor = CpuExecutor::new(&model, 1).unwrap();
        let batch = Batch::single(SlotId(0), &[1, 2], Wanted::Last);
        executor.run(&batch).unwrap();
        executor
    });
    println!("{what}: the CPU executor takes {peak} at the peak, {left} stay");
    assert!(left < own, "{what}: {left} where {own} are its own");
    assert!(
        peak < own + (4 << 20),
        "{what}: {peak} where {own} are its own"
    );
    for weight in sizes.keys() {
        assert_eq!(
            model.weights().is_in_place(*weight),
            !copied(*weight),
            "{what}: {weight:?}"
        );
    }
    drop(executor);

    // One tensor after the other.
    let weights = model.weights();
    let ((), _, kept) = count(|| {
        for weight in sizes.keys() {
            weights.matrix(*weight).unwrap();
        }
    });
    let wanted: usize = sizes
        .iter()
        .filter(|(weight, _)| copied(**weight))
        .map(|(_, bytes)| bytes)
        .sum();
    println!("{what}: {kept} bytes are kept for the processor");
    assert_eq!(kept, wanted, "{what}");
    // Once.
    let ((), peak, _) = count(|| {
        for weight in sizes.keys() {
            weights.matrix(*weight).unwrap();
        }
    });
    assert!(share(peak) < 0.001, "{what}: {peak} again");
}

/// The rows that pass by are those that are lent, whatever the slab.
#[track_caller]
fn same_rows(path: &Path) {
    let open = || ModelFile::open(path).unwrap().model().unwrap();
    let lent = open();
    for rows in [usize::MAX, 61, 7] {
        let mut got = HashMap::<Weight, Vec<u8>>::new();
        stream(&open(), rows, &mut |weight, bytes| {
            got.entry(weight).or_default().extend(bytes);
        });
        for (weight, bytes) in got {
            let want = lent.weights().matrix(weight).unwrap();
            assert!(want.bytes() == bytes, "{weight:?}, {rows} rows at a time");
        }
    }
}

fn without_state(mut tensors: Tensors) -> Tensors {
    tensors.retain(|name, _| !name.ends_with("time_state"));
    tensors
}

fn metadata_6() -> Metadata {
    let rename = |(key, value): (String, _)| (key.replace("rwkv7.", "rwkv6."), value);
    let mut metadata: Metadata = MIDDLE.metadata().into_iter().map(rename).collect();
    metadata.insert("general.architecture".to_owned(), Field::from("rwkv6"));
    let every = "rwkv6.rescale_every_n_layers".to_owned();
    metadata.insert(every, Field::U32(6));
    metadata
}

/// An adapter of rank 64 of every projection.
fn adapter() -> Tensors {
    let (width, ffn, rank) = (MIDDLE.width, MIDDLE.ffn, 64);
    let mut tensors = Tensors::new();
    for layer in 0..MIDDLE.layers {
        for (name, rows, cols) in [
            ("att.receptance", width, width),
            ("att.key", width, width),
            ("att.value", width, width),
            ("att.output", width, width),
            ("ffn.key", ffn, width),
            ("ffn.value", width, ffn),
        ] {
            let stem = format!("blocks.{layer}.{name}");
            // One as converters turn it.
            let (a, b) = match name {
                "ffn.key" => ("lora.0", [cols, rank]),
                _ => ("lora_A", [rank, cols]),
            };
            tensors.insert(format!("{stem}.{a}"), Tensor::zeros(&b));
            tensors.insert(format!("{stem}.lora_B"), Tensor::zeros(&[rows, rank]));
        }
    }
    tensors
}

/// Writes a model of sparse matrices.
fn prune(input: &Path, output: &Path) {
    let written = |_: export::Progress| ControlFlow::Continue(());
    let (known, ratio) = (OpenOptions::default(), PruneRatio::new(0.7).unwrap());
    let quantization = "f16".parse().unwrap();
    export::quantize_with(
        input,
        known,
        output,
        &quantization,
        Some(ratio),
        None,
        &mut { written },
    )
    .unwrap();
    let sparse = ModelFile::open(output).unwrap().tensors();
    let sparse = sparse.iter().filter(|t| t.entries.is_some()).count();
    assert_eq!(sparse, 6 * MIDDLE.layers);
}

/// One test: the allocator counts for the whole process.
#[test]
fn stays_small() {
    use rwkv_sched::BlockWeight as B;
    let folder = tempfile::tempdir().unwrap();
    let save = |name: &str, bytes: Vec<u8>| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let pair = |w: Weight| matches!(w, Weight::Block(_, B::LoraDown(_) | B::LoraUp(_)));
    let divided =
        |w: Weight| matches!(w, Weight::Block(layer, B::AttOutput | B::FfnValue) if layer >= 6);

    // The projections lie as they are used in every dialect; the pairs in some.
    let seven = MIDDLE.original(7);
    let path = save("original.pth", pytorch(&seven, Format::F16));
    check(".pth", &path, Version::V7, pair);
    same_rows(&path);
    let path = save("original.safetensors", safetensors(&seven, Format::Bf16));
    check("safetensors", &path, Version::V7, pair);
    let pruned = folder.path().join("pruned.safetensors");
    prune(&path, &pruned);
    check("pruned safetensors", &pruned, Version::V7, |w| {
        pair(w) || w.is_prunable()
    });
    same_rows(&pruned);
    let turned = safetensors(&pairs_transposed(&seven), Format::F16);
    check(".st", &save("turned.st", turned), Version::V7, |_| false);
    let fla = flash_linear_attention(&seven, true);
    let hugging_face = folder.path().join("fla");
    std::fs::create_dir(&hugging_face).unwrap();
    save("fla/config.json", b"{\"model_type\": \"rwkv7\"}".to_vec());
    save("fla/model.safetensors", safetensors(&fla, Format::F16));
    check("Hugging Face", &hugging_face, Version::V7, |_| false);
    let names = llama_names(&seven);
    for format in [Format::F16, Format::Q8_0] {
        let bytes = gguf(&names, format, &MIDDLE.metadata());
        let what = format!("GGUF in {format}");
        check(&what, &save("7.gguf", bytes), Version::V7, |_| false);
    }

    let six = without_state(MIDDLE.of(Version::V6, 6));
    let path = save("6.pth", pytorch(&six, Format::F16));
    check(".pth of version 6", &path, Version::V6, pair);
    same_rows(&path);
    let bytes = safetensors(&converted(Version::V6, &six), Format::F16);
    check(
        ".st of version 6",
        &save("6.st", bytes),
        Version::V6,
        |_| false,
    );
    for format in [Format::F32, Format::F16, Format::Q8_0] {
        let bytes = gguf(&llama_6(&six, 6, true), format, &metadata_6());
        let path = save("6.gguf", bytes);
        let what = format!("GGUF of version 6 in {format}");
        check(&what, &path, Version::V6, divided);
        same_rows(&path);
    }

    // Adapters stay where they are, too.
    let model = ModelFile::open(&folder.path().join("original.pth"));
    let model = model.unwrap().model().unwrap();
    let path = save("adapter.safetensors", safetensors(&adapter(), Format::F16));
    let bytes = std::fs::metadata(&path).unwrap().len() as f64;
    let (file, peak, left) = count(|| AdapterFile::open(&path, &model).unwrap());
    println!("an adapter of {bytes} bytes: {peak} at the peak, {left} stay");
    assert!((peak as f64) < 0.1 * bytes, "{peak} of {bytes}");
    assert!((left as f64) < 0.05 * bytes, "{left} of {bytes}");
    assert_eq!(file.adapter.weights().len(), 6 * MIDDLE.layers);
}
