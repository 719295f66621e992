//! What cannot be written, and what does not get to its end.

use super::{
    Folder,
    checkpoint::{SMALL, safetensors},
    onward,
};
use rwkv_kernels::Format;
use rwkv_model::{
    Error, ModelFile,
    export::{self, ExportError},
};
use rwkv_sched::Quantization;
use std::ops::ControlFlow;

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
