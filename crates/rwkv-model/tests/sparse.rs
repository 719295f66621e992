//! Pruned models in files: what is sparse computes what it computes with its zeros, on every device, and a file that
//! lies about its entries is refused.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests fail by panicking; sizes are small"
)]

#[path = "support/checkpoint.rs"]
mod checkpoint;
mod support;

use checkpoint::{SMALL, open_bytes, safetensors};
use proptest::prelude::*;
use rwkv_kernels::Format;
use rwkv_model::{
    ModelFile, OpenOptions,
    export::{self, Progress, SyntheticSpec, Written},
    files::{Checkpoint, SafetensorsWriter, TensorType},
};
use rwkv_sched::{
    Batch, BatchSpan, CpuExecutor, Device, Executor, LoadOptions, Model, PruneRatio, Quantization,
    Simd, SlotId, Wanted, WeightsDType, load,
};
use std::{collections::BTreeMap, ops::ControlFlow, path::Path};

fn onward(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn ratio(share: f64) -> PruneRatio {
    PruneRatio::new(share).unwrap()
}

fn quantize(input: &Path, output: &Path, weight_type: &str, prune: Option<f64>) -> Written {
    let quantization: Quantization = weight_type.parse().unwrap();
    let options = OpenOptions::default();
    let prune = prune.map(ratio);
    export::quantize_with(
        input,
        options,
        output,
        &quantization,
        prune,
        None,
        &mut onward,
    )
    .unwrap()
}

/// The logits of a prompt, and of single tokens after it.
fn logits(model: &Model, device: &Device) -> Vec<f32> {
    let options = LoadOptions {
        slots: 2,
        weights_dtype: WeightsDType::F32,
        // On the CPU: the oracle.
        simd: Simd::Twins,
        ..LoadOptions::default()
    };
    let mut executor = load(model, device, &options, &mut |_| {}).unwrap();
    let vocab = model.config().vocab as u32;
    let tokens: Vec<u32> = (0..20).map(|i| i * i % vocab).collect();
    let span = |slot, tokens: &[u32]| BatchSpan {
        slot: SlotId(slot),
        tokens: tokens.to_vec(),
        wanted: Wanted::All,
    };
    let mut all = Vec::new();
    for spans in [
        vec![span(0, &tokens)],
        vec![span(0, &[3])],
        vec![span(0, &[4]), span(1, &[5])],
    ] {
        let logits = executor.run(&Batch { spans }).unwrap();
        all.extend(logits.rows().flatten());
    }
    all
}

#[track_caller]
fn near(what: &str, got: &[f32], want: &[f32], bound: f64) {
    let norm = |values: &mut dyn Iterator<Item = f32>| {
        values.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt()
    };
    let difference = norm(&mut got.iter().zip(want).map(|(a, b)| a - b));
    let error = difference / norm(&mut want.iter().copied());
    assert!(error <= bound, "{what}: {error}");
}

/// How each large matrix of a layer lies.
fn kinds(path: &Path) -> BTreeMap<String, TensorType> {
    let checkpoint = Checkpoint::open(path).unwrap();
    let tensors = checkpoint.tensors();
    let large = tensors.filter(|t| {
        t.name.starts_with("blocks.") && t.name.ends_with(".weight") && t.shape.len() == 2
    });
    large.map(|t| (t.name.to_owned(), t.kind)).collect()
}

/// Every version, pruned, written and loaded again: on the CPU and on a GPU the model with its zeros.
#[test]
fn the_same_model() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for version in ["v4", "v5.0", "v5.1", "v5.2", "v6", "v7", "v7a"] {
        let head = if version == "v4" { "" } else { ",head=32" };
        let spec: SyntheticSpec = format!("{version}:2x64:vocab=100{head}").parse().unwrap();
        export::synthesize(&spec, &path("in.st"), &mut onward).unwrap();
        let original = ModelFile::open(&path("in.st")).unwrap();
        for share in [0.65, 0.9] {
            let out = path("out.st");
            let written = quantize(&path("in.st"), &out, "f16", Some(share));
            let bytes = std::fs::read(&out).unwrap();
            quantize(&path("in.st"), &out, "f16", Some(share));
            assert!(std::fs::read(&out).unwrap() == bytes, "the same each time");
            let file = ModelFile::open(&out).unwrap();
            assert_eq!(file.parameters(), original.parameters());
            assert_eq!(file.config(), original.config());
            assert_eq!(written.bytes, bytes.len() as u64);
            let sparse = file.tensors().into_iter().filter(|t| t.entries.is_some());
            let sparse: Vec<_> = sparse.collect();
            let expected = kinds(&out).len() - if version == "v7a" { 4 } else { 0 };
            assert_eq!(sparse.len(), expected, "{version}");
            for tensor in &sparse {
                let elements: usize = tensor.shape.iter().product();
                let kept = elements as f64 * (1.0 - share);
                // Made-up weights have some zeros of their own.
                let entries = tensor.entries.unwrap() as f64;
                assert!(entries <= kept + 0.5 && entries > kept * 0.98, "{tensor:?}");
            }
            let dense = original.model().unwrap().pruned(ratio(share));
            let want = logits(&dense, &Device::Cpu);
            let model = file.model().unwrap();
            near(version, &logits(&model, &Device::Cpu), &want, 1e-5);
            let gpu = support::gpu();
            near(version, &logits(&model, &gpu), &want, 2e-3);
            // The zeros of a file without sparse rows.
            if share > 0.8 {
                near(version, &logits(&dense, &gpu), &want, 2e-3);
            }
            // There and back: what is sparse stays so, bit by bit.
            export::convert(&out, &path("again.st"), None, &mut onward).unwrap();
            assert!(
                std::fs::read(path("again.st")).unwrap() == bytes,
                "{version}"
            );
        }
    }
}

/// What pruning makes of matrices of each type, in each container.
#[test]
fn types_and_containers() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let mut tensors = SMALL.original(3);
    // One matrix that is mostly zeros already.
    let zeros = tensors.get_mut("blocks.0.att.key.weight").unwrap();
    for (index, x) in zeros.values.iter_mut().enumerate() {
        if index % 8 != 0 {
            *x = 0.0;
        }
    }
    std::fs::write(path("in.st"), safetensors(&tensors, Format::F32)).unwrap();
    let vocab = "1 'a' 1\n2 \"it's\" 4\n7 b'\\xff\\n' 2\n";
    std::fs::write(path("vocab.txt"), vocab).unwrap();

    let check = |weight_type: &str, prune: f64, key_0: &str, key_1: &str| {
        let out = path("out.st");
        quantize(&path("in.st"), &out, weight_type, Some(prune));
        let kinds = kinds(&out);
        let of = |name: &str| kinds[name].to_string();
        let got = [of("blocks.0.att.key.weight"), of("blocks.1.att.key.weight")];
        assert_eq!(got, [key_0, key_1], "{weight_type} {prune}");
        let checkpoint = Checkpoint::open(&out).unwrap();
        for whole in ["emb.weight", "head.weight", "blocks.1.att.w1"] {
            assert_ne!(checkpoint.get(whole).unwrap().kind, TensorType::Csr);
        }
        // All parts are where their elements are aligned.
        let bytes = std::fs::read(&out).unwrap();
        let other = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
        for (name, tensor) in other.tensors() {
            let at = tensor.data().as_ptr() as usize - bytes.as_ptr() as usize;
            let element = tensor.dtype().bitsize() / 8;
            assert!(at.is_multiple_of(element), "{name} at {at}");
        }
        let dense = ModelFile::open(&path("in.st")).unwrap().model().unwrap();
        let want = logits(&dense.pruned(ratio(prune)), &Device::Cpu);
        let got = logits(
            &ModelFile::open(&out).unwrap().model().unwrap(),
            &Device::Cpu,
        );
        if weight_type == "f16" {
            near(weight_type, &got, &want, 1e-3);
        }
    };
    // Zeros that are there count, and 40 % is the limit.
    check("f16", 0.0, "csr", "f16");
    check("f16", 0.55, "csr", "f16");
    check("f16", 0.65, "csr", "csr");
    check("f16:1-1", 0.65, "f32", "csr");
    // An entry takes four bytes, Int8 one an element, and NF4 half of one: sparse where that is smaller. Rows' offsets
    // take a sixteenth of a byte an element at this width.
    check("int8", 0.7, "csr", "int8_64");
    check("int8", 0.8, "csr", "csr");
    check("nf4", 0.8, "nf4_64", "nf4_64");
    check("nf4", 0.95, "csr", "csr");

    // GGUF has no sparse rows: zeros are zeros in its types.
    let gguf = path("out.gguf");
    quantize(&path("in.st"), &gguf, "q8_0", Some(0.7));
    let checkpoint = Checkpoint::open(&gguf).unwrap();
    let key = checkpoint.get("blk.1.time_mix_key.weight").unwrap();
    let mut values = vec![0.0; key.shape.iter().product()];
    key.format()
        .unwrap()
        .spec()
        .dequantize(key.bytes, &mut values);
    let zeros = values.iter().filter(|x| **x == 0.0).count();
    assert!(
        zeros >= values.len() * 7 / 10,
        "{zeros} of {}",
        values.len()
    );

    // From sparse rows to other types and containers.
    let sparse = path("sparse.st");
    quantize(&path("in.st"), &sparse, "f16", Some(0.65));
    let want = logits(
        &ModelFile::open(&sparse).unwrap().model().unwrap(),
        &Device::Cpu,
    );
    export::convert(&sparse, &gguf, None, &mut onward).unwrap();
    let file = ModelFile::open(&gguf).unwrap();
    assert!(file.tensors().iter().all(|t| t.entries.is_none()));
    near(
        "GGUF",
        &logits(&file.model().unwrap(), &Device::Cpu),
        &want,
        1e-5,
    );
    for (weight_type, key) in [("f16", "csr"), ("int8", "int8_64")] {
        quantize(&sparse, &path("out.st"), weight_type, None);
        let found = kinds(&path("out.st"))["blocks.1.att.key.weight"].to_string();
        assert_eq!(found, key, "{weight_type}");
    }
}

/// A small model with `blocks.1.ffn.key.weight` as these sparse rows (of no entries, if nobody changes them).
fn with_parts(offsets: &[u32], columns: &[u16], values: &[u16]) -> Vec<u8> {
    const NAME: &str = "blocks.1.ffn.key.weight";
    let tensors = SMALL.original(8);
    let mut plan = SafetensorsWriter::new();
    let dense = || tensors.iter().filter(|(name, _)| *name != NAME);
    plan.csr(NAME, [SMALL.ffn, SMALL.width], values.len(), false)
        .unwrap();
    for (name, tensor) in dense() {
        plan.tensor(name, Format::F32, &tensor.shape).unwrap();
    }
    let mut body = plan.begin(Vec::new()).unwrap();
    let [first, second, third] = SafetensorsWriter::csr_parts(NAME);
    let bytes: Vec<u8> = offsets.iter().flat_map(|n| n.to_le_bytes()).collect();
    body.write(&first, &bytes).unwrap();
    for (name, numbers) in [(second, columns), (third, values)] {
        let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        body.write(&name, &bytes).unwrap();
    }
    for (name, tensor) in dense() {
        let bytes: Vec<u8> = tensor.values.iter().flat_map(|x| x.to_le_bytes()).collect();
        body.write(name, &bytes).unwrap();
    }
    body.finish().unwrap()
}

/// The error of a model whose sparse rows are wrong, which is told before the first step, and by whatever reads them.
#[track_caller]
fn refused(bytes: Vec<u8>, want: &str) {
    let file = open_bytes("lying.st", bytes).unwrap();
    let model = file.model().unwrap();
    let check =
        |error: String| assert_eq!(error, format!("tensor blocks.1.ffn.key.weight: {want}"));
    check(CpuExecutor::new(&model, 1).err().unwrap().to_string());
    let gpu = load(
        &model,
        &support::gpu(),
        &LoadOptions::default(),
        &mut |_| {},
    );
    check(gpu.err().unwrap().to_string());
}

#[test]
fn entries_that_lie() {
    let rows = SMALL.ffn;
    // Two entries in the second row.
    let mut offsets = vec![2u32; rows + 1];
    offsets[..2].fill(0);
    let one = [0x3c00; 2];
    let file = open_bytes("good.st", with_parts(&offsets, &[3, 63], &one)).unwrap();
    logits(&file.model().unwrap(), &Device::Cpu);

    let columns = "the columns of row 1 must ascend and be below 64";
    refused(with_parts(&offsets, &[3, 64], &one), columns);
    refused(with_parts(&offsets, &[3, 3], &one), columns);
    refused(with_parts(&offsets, &[4, 3], &one), columns);
    let want = "row offsets must ascend from 0 to the 2 values";
    for (index, value) in [(0, 1), (1, 3), (5, 1), (rows, 1), (rows, 3), (7, u32::MAX)] {
        let mut offsets = offsets.clone();
        offsets[index] = value;
        refused(with_parts(&offsets, &[3, 63], &one), want);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Whatever the parts hold: an error of one line that names the tensor, or a model that runs.
    #[test]
    fn any_entries(
        offsets in prop::collection::vec(prop_oneof![4 => 0u32..9, 1 => any::<u32>()], SMALL.ffn + 1),
        sorted: bool,
        columns in prop::collection::vec(prop_oneof![4 => 0u16..64, 1 => any::<u16>()], 8),
    ) {
        let mut offsets = offsets;
        if sorted {
            for offset in &mut offsets {
                *offset = (*offset).min(8);
            }
            offsets.sort_unstable();
            offsets[0] = 0;
            offsets[SMALL.ffn] = 8;
        }
        let file = open_bytes("any.st", with_parts(&offsets, &columns, &[0x2c00; 8])).unwrap();
        match CpuExecutor::new(&file.model().unwrap(), 1) {
            Ok(mut executor) => {
                let batch = Batch::single(SlotId(0), &[1, 2], Wanted::Last);
                let logits = executor.run(&batch).unwrap();
                prop_assert!(logits.rows().flatten().all(|x| x.is_finite()));
            }
            Err(error) => {
                let error = error.to_string();
                prop_assert!(error.starts_with("tensor blocks.1.ffn.key.weight: ") && !error.contains('\n'), "{}", error);
            }
        }
    }
}

/// A file whose tensors are where no number can be read in place.
#[test]
fn not_aligned() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("in.st"), safetensors(&SMALL.original(2), Format::F16)).unwrap();
    quantize(&path("in.st"), &path("out.st"), "f16", Some(0.95));
    let aligned = std::fs::read(path("out.st")).unwrap();
    let (length, rest) = aligned.split_first_chunk().unwrap();
    let length = u64::from_le_bytes(*length);
    let (header, data) = rest.split_at(length as usize);
    let shifted = [&(length + 1).to_le_bytes()[..], header, b" ", data].concat();
    let [want, got] = [aligned, shifted].map(|bytes| {
        let model = open_bytes("out.st", bytes).unwrap().model().unwrap();
        [Device::Cpu, support::gpu()].map(|device| logits(&model, &device))
    });
    assert!(got == want);
}
