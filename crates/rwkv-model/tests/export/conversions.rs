//! From one kind of file to another.

use super::{
    Folder,
    checkpoint::{SMALL, Small, Tensors, gguf, llama_names, pairs_transposed, safetensors},
    logits, onward,
};
use proptest::prelude::*;
use rwkv_kernels::Format;
use rwkv_model::{
    ModelFile, export,
    files::{Checkpoint, TensorType},
};
use rwkv_sched::Quantization;
use std::{collections::BTreeMap, ops::ControlFlow, path::Path};

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
