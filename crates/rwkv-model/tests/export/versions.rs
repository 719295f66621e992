//! Every version, with what belongs to its tensors: initial states, and what only the caller knows.

use super::{
    Folder, check,
    checkpoint::{SMALL, Small, pairs_transposed, safetensors},
    distance, logits, onward,
};
use rwkv_kernels::Format;
use rwkv_model::{AdapterFile, ModelFile, OpenOptions, export};
use rwkv_sched::Version;
use std::path::Path;

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
