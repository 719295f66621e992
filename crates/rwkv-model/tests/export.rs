//! What is written is read back the same, leaves nothing when it fails, and what cannot be written says why.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests fail by panicking; sizes are small"
)]

#[path = "support/checkpoint.rs"]
mod checkpoint;

use checkpoint::{SMALL, Small, Tensors, gguf, llama_names, pairs_transposed, safetensors};
use proptest::prelude::*;
use rwkv_kernels::Format;
use rwkv_model::{
    AdapterFile, Error, ModelFile, OpenOptions, Tokenizer,
    export::{self, ExportError, Progress, SyntheticSpec},
    files::{Checkpoint, TensorType},
};
use rwkv_sched::{Batch, CpuExecutor, Executor, Quantization, SlotId, Version, Wanted, WeightType};
use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

/// The CPU executor's logits of some tokens.
fn logits(file: &ModelFile) -> Vec<f32> {
    let mut executor = CpuExecutor::new(&file.model().unwrap(), 1).unwrap();
    let vocab = executor.config().vocab as u32;
    let tokens: Vec<u32> = (0..50).map(|i| i * i % vocab).collect();
    let logits = executor
        .run(&Batch::single(SlotId(0), &tokens, Wanted::All))
        .unwrap();
    logits.rows().flatten().copied().collect()
}

fn onward(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// A folder with the small model as `name`, and a vocabulary for it.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        std::fs::write(
            folder.path("vocab.txt"),
            "1 'a' 1\n2 \"it's\" 4\n7 b'\\xff\\n' 2\n",
        )
        .unwrap();
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn add(&self, name: &str, bytes: &[u8]) -> PathBuf {
        std::fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }

    /// The names of all files.
    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> = entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

/// Every tensor's format, shape and bytes.
fn contents(path: &Path) -> BTreeMap<String, (TensorType, Vec<usize>, Vec<u8>)> {
    let checkpoint = Checkpoint::open(path).unwrap();
    let tensors = checkpoint.tensors();
    tensors
        .map(|t| {
            (
                t.name.to_owned(),
                (t.kind, t.shape.to_vec(), t.bytes.to_vec()),
            )
        })
        .collect()
}

/// Converting keeps the model bit by bit, there and back, whatever the file was.
#[test]
fn conversions() {
    let original = SMALL.original(3);
    let renamed = llama_names(&original);
    let metadata = SMALL.metadata();
    let folder = Folder::new();
    for (format, quantized) in [
        (Format::F32, false),
        (Format::F16, false),
        (Format::Bf16, false),
        (Format::Q8_0, true),
    ] {
        let mut inputs = vec![("in.gguf", gguf(&renamed, format, &metadata))];
        if !quantized {
            inputs.push(("in.safetensors", safetensors(&original, format)));
            inputs.push(("in.st", safetensors(&pairs_transposed(&original), format)));
        }
        for (name, bytes) in inputs {
            let input = folder.add(name, &bytes);
            let want = logits(&ModelFile::open(&input).unwrap());
            for out in ["out.gguf", "out.safetensors", "out.st"] {
                let output = folder.path(out);
                let mut last = None;
                let written = export::convert(&input, &output, None, &mut |progress| {
                    last = Some(progress);
                    ControlFlow::Continue(())
                })
                .unwrap();
                let last = last.unwrap();
                assert_eq!(last.done, last.total);
                assert_eq!(written.bytes, std::fs::metadata(&output).unwrap().len());
                let file = ModelFile::open(&output).unwrap();
                assert_eq!(file.tensors().len(), written.tensors.len());
                assert!(logits(&file) == want, "{format}: {name} to {out}");
                if out == "out.gguf" {
                    let tokenizer = file.tokenizer(None).unwrap();
                    assert_eq!((tokenizer.name(), tokenizer.vocab_size()), ("gguf", 40));
                    assert_eq!(tokenizer.token(7), Some(&b"\xff\n"[..]));
                    assert_eq!(tokenizer.token(2), Some(&b"it's"[..]));
                    let head = file.checkpoint().tensor("output.weight").unwrap();
                    assert_eq!(head.format().unwrap(), format);
                }
                // And back to where it came from, exactly, where the formats allow.
                let again = folder.path(&format!("again-{name}"));
                export::convert(&output, &again, None, &mut onward).unwrap();
                assert!(logits(&ModelFile::open(&again).unwrap()) == want);
            }
        }
    }
}

/// The tensors of a written file are those of llama.cpp's converter: names, shapes and formats.
#[test]
fn gguf_as_llama_has_it() {
    let original = SMALL.original(4);
    let folder = Folder::new();
    let input = folder.add("in.safetensors", &safetensors(&original, Format::F32));
    let output = folder.path("out.gguf");
    export::quantize(&input, &output, &"q8_0".parse().unwrap(), None, &mut onward).unwrap();
    let theirs = gguf(&llama_names(&original), Format::Q8_0, &SMALL.metadata());
    let theirs = contents(&folder.add("theirs.gguf", &theirs));
    let ours = contents(&output);
    assert!(ours.keys().eq(theirs.keys()));
    for (name, (kind, shape, bytes)) in &ours {
        let (their_kind, their_shape, their_bytes) = &theirs[name];
        assert_eq!(shape, their_shape, "{name}");
        // The decay's pair is F32 in every file of llama.cpp's.
        let decay = name.contains("time_mix_w1") || name.contains("time_mix_w2");
        if decay {
            assert_eq!(*kind, TensorType::Format(Format::F32), "{name}");
        } else {
            assert_eq!((kind, bytes), (their_kind, their_bytes), "{name}");
        }
    }
    let file = ModelFile::open(&output).unwrap();
    let metadata = file.checkpoint().metadata();
    for (key, number) in [
        ("general.file_type", 7),
        ("general.quantization_version", 2),
        ("rwkv7.context_length", 1_048_576),
        ("rwkv7.embedding_length", 64),
        ("rwkv7.block_count", 2),
        ("rwkv7.feed_forward_length", 96),
        ("rwkv7.wkv.head_size", 32),
        ("rwkv7.attention.head_count", 0),
        ("rwkv7.attention.decay_lora_rank", 7),
        ("rwkv7.attention.iclr_lora_rank", 5),
        ("rwkv7.attention.value_residual_mix_lora_rank", 3),
        ("rwkv7.attention.gate_lora_rank", 33),
        ("tokenizer.ggml.bos_token_id", 0),
        ("tokenizer.ggml.eos_token_id", 0),
    ] {
        assert_eq!(metadata.u64(key), Some(number), "{key}");
    }
    assert_eq!(metadata.string("general.name"), Some("in"));
    assert_eq!(metadata.get("tokenizer.ggml.eot_token_id"), None);
}

#[test]
fn epsilons_and_layer_ranges() {
    let original = SMALL.original(5);
    let folder = Folder::new();
    let input = folder.add("in.safetensors", &safetensors(&original, Format::F32));
    let quantization: Quantization = "q8_0:1-1".parse().unwrap();
    let output = folder.path("out.gguf");
    export::quantize(&input, &output, &quantization, None, &mut onward).unwrap();
    let tensors = contents(&output);
    let kind = |name: &str| tensors[name].0.to_string();
    assert_eq!(kind("blk.1.channel_mix_key.weight"), "q8_0");
    assert_eq!(kind("blk.1.time_mix_a1.weight"), "f16");
    assert_eq!(kind("blk.0.time_mix_w1.weight"), "f32");
    assert_eq!(kind("token_embd.weight"), "f16");
    // What other programs wrote about themselves stays.
    let metadata = SMALL.metadata();
    let mut metadata = metadata.clone();
    metadata.insert("general.author".to_owned(), "somebody".into());
    metadata.insert("general.name".to_owned(), "a name".into());
    metadata.insert("group_norm_eps".to_owned(), 2e-5f32.into());
    let input = folder.add(
        "own.gguf",
        &gguf(&llama_names(&original), Format::F16, &metadata),
    );
    let want = ModelFile::open(&input).unwrap().config().clone();
    for out in ["b.safetensors", "b.gguf"] {
        export::convert(&input, &folder.path(out), None, &mut onward).unwrap();
        let file = ModelFile::open(&folder.path(out)).unwrap();
        assert_eq!(file.config(), &want, "{out}");
        let author = file.checkpoint().metadata().string("general.author");
        assert_eq!(author, out.ends_with("gguf").then_some("somebody"));
    }
}

/// The error of a conversion; nothing is left of it.
#[track_caller]
fn refused(folder: &Folder, result: Result<export::Written, Error>, part: &str) {
    let error = result.expect_err("it should be refused").to_string();
    assert!(error.contains(part) && !error.contains('\n'), "{error}");
    let left = folder.names();
    assert!(
        !left
            .iter()
            .any(|n| n.starts_with('.') || n.starts_with("out")),
        "{left:?}"
    );
}

#[test]
fn mistakes() {
    let original = SMALL.original(6);
    let folder = Folder::new();
    let input = folder.add("in.safetensors", &safetensors(&original, Format::F32));
    let q = |text: &str| text.parse::<Quantization>().unwrap();
    let quantize = |out: &str, text: &str| {
        export::quantize(&input, &folder.path(out), &q(text), None, &mut onward)
    };
    let convert = |out: &str| export::convert(&input, &folder.path(out), None, &mut onward);
    for out in ["out", "out.bin", "out.pth"] {
        refused(
            &folder,
            convert(out),
            "must end in .gguf, .safetensors or .st",
        );
    }
    refused(
        &folder,
        quantize("out.safetensors", "q4_k_m"),
        "safetensors cannot hold q4_k_m",
    );
    refused(&folder, quantize("out.gguf", "nf4"), "GGUF cannot hold nf4");
    refused(&folder, quantize("out.gguf", "q8_0:0-2"), "2 layers");
    refused(&folder, convert("in.safetensors"), "both input and output");
    refused(&folder, convert("no/such/out.gguf"), "out.gguf");
    std::fs::create_dir(folder.path("folder.gguf")).unwrap();
    refused(&folder, convert("folder.gguf"), "no regular file");
    let world = export::convert(&input, &folder.path("out.st"), Some("world"), &mut onward);
    refused(&folder, world, "no vocabulary");
    // Byte-pair encoding is not what GGUF's vocabulary means.
    let ids: serde_json::Map<_, _> = ["a", "b", "ab"]
        .iter()
        .enumerate()
        .map(|(id, token)| ((*token).to_owned(), id.into()))
        .collect();
    let json = serde_json::json!({
        "version": "1.0", "added_tokens": [],
        "model": {"type": "BPE", "vocab": ids, "merges": ["a b"]},
    });
    let json = folder.add("bpe.json", json.to_string().as_bytes());
    let merged = export::convert(&input, &folder.path("out.gguf"), json.to_str(), &mut onward);
    refused(
        &folder,
        merged,
        "always takes the longest token, which bpe.json does not",
    );
    std::fs::remove_file(json).unwrap();
    std::fs::remove_file(folder.path("vocab.txt")).unwrap();
    refused(&folder, convert("out.gguf"), "--tokenizer");

    // A value that f16 cannot hold.
    let mut wide = original.clone();
    wide.get_mut("blocks.1.att.key.weight").unwrap().values[7] = 1e6;
    let input = folder.add("wide.safetensors", &safetensors(&wide, Format::F32));
    let result = export::quantize(&input, &folder.path("out.st"), &q("f16"), None, &mut onward);
    refused(&folder, result, "blocks.1.att.key.weight holds 1000000");

    // A model that does not fit together.
    let mut broken = original.clone();
    let grown = broken["blocks.1.att.key.weight"].grown(0);
    broken.insert("blocks.1.att.key.weight".to_owned(), grown);
    let input = folder.add("broken.safetensors", &safetensors(&broken, Format::F32));
    let result = export::convert(&input, &folder.path("out.st"), None, &mut onward);
    refused(
        &folder,
        result,
        "broken.safetensors: tensor blocks.1.att.key.weight",
    );
}

/// Stopped anywhere, nothing is left, and what was there before stays.
#[test]
fn interrupted() {
    let folder = Folder::new();
    let input = folder.add(
        "in.safetensors",
        &safetensors(&SMALL.original(7), Format::F32),
    );
    let output = folder.add("out.gguf", b"before");
    for after in [0, 1, 20] {
        let mut calls = 0;
        let before = folder.names();
        let result = export::convert(&input, &output, None, &mut |_| {
            calls += 1;
            if calls > after {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        assert!(matches!(
            result,
            Err(Error::Export(ExportError::Interrupted))
        ));
        assert_eq!(folder.names(), before);
        assert_eq!(std::fs::read(&output).unwrap(), b"before");
    }
    export::convert(&input, &output, None, &mut onward).unwrap();
    ModelFile::open(&output).unwrap();
}

/// Tensors by name, as numbers.
fn numbers(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let checkpoint = Checkpoint::open(path).unwrap();
    let tensors = checkpoint.tensors();
    tensors
        .map(|t| {
            let mut values = vec![0.0; t.shape.iter().product()];
            t.format().unwrap().spec().dequantize(t.bytes, &mut values);
            (t.name.to_owned(), values)
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Any dimensions: what comes back are the same numbers under the same names.
    #[test]
    fn there_and_back(
        layers in 1usize..4,
        heads in 1usize..3,
        ffn in 1usize..5,
        vocab in 8usize..50,
        ranks in proptest::array::uniform4(1usize..40),
        seed: u64,
    ) {
        let small = Small { layers, width: 32 * heads, head_size: 32, ffn: 32 * ffn, vocab, ranks };
        let original: Tensors = small.original(seed);
        let folder = Folder::new();
        let input = folder.add("in.safetensors", &safetensors(&original, Format::Bf16));
        let [gguf, back] = ["out.gguf", "back.safetensors"].map(|name| folder.path(name));
        export::convert(&input, &gguf, None, &mut onward).unwrap();
        export::convert(&gguf, &back, None, &mut onward).unwrap();
        let back = numbers(&back);
        prop_assert!(back.keys().eq(original.keys()));
        for (name, tensor) in &original {
            prop_assert_eq!(&back[name], &tensor.values, "{}", name);
        }
    }
}

#[test]
fn made_up_models() {
    let folder = Folder::new();
    std::fs::remove_file(folder.path("vocab.txt")).unwrap();
    for version in ["v4", "v5.0", "v5.1", "v5.2", "v6", "v7", "v7a"] {
        let head = if version == "v4" { "" } else { ",head=32" };
        let spec: SyntheticSpec = format!("{version}:2x64:vocab=256{head}").parse().unwrap();
        let output = folder.path("model.safetensors");
        let written = export::synthesize(&spec, &output, &mut onward).unwrap();
        assert!(written.tensors.iter().all(|t| t.format == Format::F16));
        let once = std::fs::read(&output).unwrap();
        export::synthesize(&spec, &output, &mut onward).unwrap();
        assert!(
            std::fs::read(&output).unwrap() == once,
            "{version}: the same each time"
        );
        let other = format!("{version}:2x64:vocab=256{head},seed=1")
            .parse()
            .unwrap();
        export::synthesize(&other, &output, &mut onward).unwrap();
        assert!(std::fs::read(&output).unwrap() != once);
        let gguf = export::synthesize(&spec, &folder.path("model.gguf"), &mut onward);
        match version {
            "v6" | "v7" => assert!(gguf.is_ok()),
            _ => {
                let error = gguf.unwrap_err().to_string();
                assert!(error.contains("no architecture for RWKV-"), "{error}");
            }
        }
    }
    let spec: SyntheticSpec = "v7:2x64:vocab=256".parse().unwrap();
    let [a, b] = ["a.safetensors", "b.gguf"].map(|name| {
        let path = folder.path(name);
        export::synthesize(&spec, &path, &mut onward).unwrap();
        let file = ModelFile::open(&path).unwrap();
        let config = file.config();
        assert_eq!(
            [config.layers, config.width, config.ffn, config.vocab],
            [2, 64, 256, 256]
        );
        assert_eq!(
            file.tokenizer(None).unwrap().vocab_size(),
            Tokenizer::bytes().vocab_size()
        );
        logits(&file)
    });
    assert!(a == b);
}

/// How far `got` is from `want`: root mean square of the difference, relative to that of `want`.
fn distance(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let square = |x: f32| f64::from(x) * f64::from(x);
    let error: f64 = got.iter().zip(want).map(|(g, w)| square(g - w)).sum();
    let size: f64 = want.iter().map(|w| square(*w)).sum();
    (error / size).sqrt()
}

/// Writes `input` as `output`, quantized if a type is named, and reads it back: every tensor is in the format that was
/// announced, and the logits are as far from the source's as `within` says.
#[track_caller]
fn check(
    input: &Path,
    output: &Path,
    quantization: Option<&str>,
    within: std::ops::RangeInclusive<f64>,
) -> ModelFile {
    let row = format!(
        "{} to {}, {quantization:?}",
        input.display(),
        output.display()
    );
    let written = match quantization {
        None => export::convert(input, output, None, &mut onward),
        Some(q) => export::quantize(input, output, &q.parse().unwrap(), None, &mut onward),
    };
    let written = written.unwrap_or_else(|error| panic!("{row}: {error}"));
    let file = ModelFile::open(output).unwrap();
    let source = ModelFile::open(input).unwrap();
    assert_eq!(file.config(), source.config(), "{row}");
    assert_eq!(file.tensors().len(), written.tensors.len(), "{row}");
    for tensor in &written.tensors {
        let there = file.checkpoint().tensor(&tensor.name).unwrap();
        let name = &tensor.name;
        assert_eq!(there.format().unwrap(), tensor.format, "{row}: {name}");
        assert_eq!(there.bytes.len() as u64, tensor.bytes, "{row}: {name}");
    }
    let logits = [&file, &source].map(logits);
    assert!(logits.iter().flatten().all(|x| x.is_finite()), "{row}");
    let distance = distance(&logits[0], &logits[1]);
    eprintln!("DIST {row} {distance:.3e}");
    assert!(
        within.contains(&distance),
        "{row}: logits {distance:.2e} away, where {within:?} is expected"
    );
    file
}

/// Every version is written and read back with the same logits: the committed models, and random ones with an initial
/// state, whose matrices must lie as readers expect them.
#[test]
fn versions() {
    let folder = Folder::new();
    let exactly = 0.0..=0.0;
    // F16 matrices under q8_0's or int8's blocks lose below 1 %; where no row is a whole number of blocks, nothing.
    let nearly = 0.0..=0.02;
    for (name, version, gguf) in [
        ("v4", Version::V4, false),
        ("v5.0", Version::V5_0, false),
        ("v5.1", Version::V5_1, false),
        ("v5.2", Version::V5_2, false),
        ("v6", Version::V6, true),
        ("v7", Version::V7, true),
        ("v7a", Version::V7a, false),
    ] {
        let golden = format!("tests/golden/versions/{name}.safetensors");
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join(golden);
        let golden = folder.add("golden.safetensors", &std::fs::read(golden).unwrap());
        let tensors = SMALL.of(version, 11);
        let stateful = folder.add("stateful.st", &safetensors(&tensors, Format::F32));
        let [st, out] = ["out.st", "out.gguf"].map(|out| folder.path(out));
        for input in [&golden, &stateful] {
            check(input, &st, None, exactly.clone());
            // What we wrote is an input like any other.
            check(&st, &folder.path("again.st"), None, exactly.clone());
            check(input, &st, Some("f16"), 0.0..=1e-2);
            check(input, &st, Some("int8"), nearly.clone());
        }
        if gguf {
            check(&golden, &out, None, exactly.clone());
            check(&out, &folder.path("back.st"), None, exactly.clone());
            check(&golden, &out, Some("q8_0"), nearly.clone());
            let refused = export::convert(&stateful, &out, None, &mut onward).unwrap_err();
            assert!(refused.to_string().contains("initial state"), "{refused}");
        } else {
            let refused = export::convert(&golden, &out, None, &mut onward).unwrap_err();
            assert!(refused.to_string().contains("no architecture"), "{refused}");
        }
    }
}

/// An initial state is read back as it was, through any number of files: as a part of the model, and where the file is an
/// adapter of another one. Its matrices are not symmetric.
#[test]
fn initial_states() {
    let folder = Folder::new();
    for version in [
        Version::V5_0,
        Version::V5_1,
        Version::V5_2,
        Version::V6,
        Version::V7,
        Version::V7a,
    ] {
        let tensors = SMALL.of(version, 13);
        let want: Vec<_> = (0..SMALL.layers)
            .map(|layer| &tensors[&format!("blocks.{layer}.att.time_state")])
            .map(|tensor| {
                assert_ne!(tensor.values, tensor.each_transposed().values);
                tensor.values.clone()
            })
            .collect();
        let mut plain = tensors.clone();
        plain.retain(|name, _| !name.ends_with("time_state"));
        let plain = folder.add("plain.st", &safetensors(&plain, Format::F32));
        let plain = ModelFile::open(&plain).unwrap().model().unwrap();
        let mut path = folder.add("in.st", &safetensors(&tensors, Format::F32));
        for (out, quantization) in [
            ("one.st", None),
            ("two.safetensors", Some("int8")),
            ("three.st", Some("f16")),
            ("four.safetensors", None),
        ] {
            let output = folder.path(out);
            let written = match quantization {
                None => export::convert(&path, &output, None, &mut onward),
                Some(q) => export::quantize(&path, &output, &q.parse().unwrap(), None, &mut onward),
            };
            written.unwrap();
            let state = ModelFile::open(&output).unwrap().model().unwrap();
            let state = state.initial_state().unwrap();
            assert_eq!(state.wkv, want, "{version}, {out}");
            if quantization != Some("int8") && path.ends_with("in.st") {
                let adapter = AdapterFile::open(&output, &plain).unwrap();
                assert_eq!(adapter.initial_state, Some(state), "{version}, {out}");
            }
            path = output;
        }
    }
}

/// What the caller knows better than the file is written.
#[test]
fn known_better() {
    let folder = Folder::new();
    let square = Small {
        ranks: [64; 4],
        ..SMALL
    };
    let original = square.original(17);
    let as_said = folder.add("in.st", &safetensors(&original, Format::F32));
    let turned = pairs_transposed(&original);
    let turned = folder.add("turned.st", &safetensors(&turned, Format::F32));
    let options = OpenOptions {
        group_norm_epsilon: Some(3e-5),
        turned_pairs: Some(true),
    };
    let want = ModelFile::open_with(&turned, options.clone()).unwrap();
    for out in ["a.st", "a.gguf"] {
        let output = folder.path(out);
        export::convert_with(&turned, options.clone(), &output, None, &mut onward).unwrap();
        let file = ModelFile::open(&output).unwrap();
        assert_eq!(file.config(), want.config(), "{out}");
        assert!((file.config().group_norm_epsilon - 3e-5).abs() < 1e-9);
        assert_eq!(logits(&file), logits(&want), "{out}");
    }
    let said = OpenOptions {
        group_norm_epsilon: Some(3e-5),
        ..OpenOptions::default()
    };
    assert_eq!(
        logits(&ModelFile::open_with(&as_said, said).unwrap()),
        logits(&want)
    );
    let output = folder.path("b.st");
    let q = "f16".parse().unwrap();
    export::quantize_with(&turned, options, &output, &q, None, None, &mut onward).unwrap();
    let file = ModelFile::open(&output).unwrap();
    assert_eq!(file.config(), want.config());
    assert!(distance(&logits(&file), &logits(&want)) < 1e-2);
}

/// Every weight type, with rows of 256 and of 96 elements: name, format of the matrices and of the head at 256, the same
/// at 96, and how far from the source's the logits may be.
const TYPES: [(&str, [&str; 4], f64); 17] = [
    ("f16", ["f16", "f16", "f16", "f16"], 0.0),
    ("q8_0", ["q8_0", "q8_0", "q8_0", "q8_0"], 1.0),
    ("q6_k", ["q6_k", "q6_k", "q8_0", "q8_0"], 1.0),
    ("q5_k_m", ["q5_k", "q6_k", "q5_1", "q8_0"], 1.0),
    ("q5_k", ["q5_k", "q5_k", "q5_1", "q5_1"], 1.0),
    ("q4_k_m", ["q4_k", "q6_k", "q5_0", "q8_0"], 1.0),
    ("q4_k", ["q4_k", "q4_k", "q5_0", "q5_0"], 1.0),
    ("q4_0", ["q4_0", "q4_0", "q4_0", "q4_0"], 1.0),
    ("q4_1", ["q4_1", "q4_1", "q4_1", "q4_1"], 1.0),
    ("q5_0", ["q5_0", "q5_0", "q5_0", "q5_0"], 1.0),
    ("q5_1", ["q5_1", "q5_1", "q5_1", "q5_1"], 1.0),
    ("q2_k", ["q2_k", "q2_k", "q4_0", "q4_0"], 1.0),
    ("q3_k", ["q3_k", "q3_k", "q4_0", "q4_0"], 1.0),
    ("iq4_nl", ["iq4_nl", "iq4_nl", "iq4_nl", "iq4_nl"], 1.0),
    ("int8", ["int8", "int8", "int8", "int8"], 1.0),
    ("nf4", ["nf4", "nf4", "nf4", "nf4"], 1.0),
    ("sf4", ["sf4", "sf4", "sf4", "sf4"], 1.0),
];

#[test]
fn weight_types() {
    assert!(
        TYPES
            .iter()
            .map(|t| t.0)
            .eq(WeightType::ALL.map(WeightType::name))
    );
    let folder = Folder::new();
    for spec in [
        "v7:2x256:vocab=256,ffn=512",
        "v7:2x96:vocab=256,head=32,ffn=144",
        "v6:2x256:vocab=256,ffn=512",
        "v6:2x96:vocab=256,head=32,ffn=144",
    ] {
        let input = folder.path("in.safetensors");
        export::synthesize(&spec.parse().unwrap(), &input, &mut onward).unwrap();
        for (name, formats, bound) in TYPES {
            let ggml = !["int8", "nf4", "sf4"].contains(&name);
            let names = if ggml { LLAMA } else { ORIGINAL };
            let output = folder.path(if ggml { "out.gguf" } else { "out.safetensors" });
            let file = check(&input, &output, Some(name), 0.0..=bound);
            let [body, head] = if spec.contains("256:") {
                [formats[0], formats[1]]
            } else {
                [formats[2], formats[3]]
            };
            // Rows of 144 are no whole number of anybody's blocks.
            let narrow = if spec.contains("ffn=144") {
                "f16"
            } else {
                body
            };
            for (tensor, want) in names.into_iter().zip([body, body, body, narrow, head]) {
                let kind = file.checkpoint().tensor(tensor).unwrap().kind.to_string();
                // What follows the name is the size of the blocks that suit the matrix.
                let sized = kind.split(['-', ':', '_']).next() == Some(want);
                assert!(
                    kind == want || (!ggml && sized),
                    "{spec}, {name}: {tensor} is {kind}"
                );
            }
        }
    }
}

/// Of what [`TYPES`] speaks: three matrices, the one with rows as long as the FFN is wide, and the head.
const LLAMA: [&str; 5] = [
    "token_embd.weight",
    "blk.0.time_mix_key.weight",
    "blk.1.channel_mix_key.weight",
    "blk.1.channel_mix_value.weight",
    "output.weight",
];
const ORIGINAL: [&str; 5] = [
    "emb.weight",
    "blocks.0.att.key.weight",
    "blocks.1.ffn.key.weight",
    "blocks.1.ffn.value.weight",
    "head.weight",
];
