//! Commands that write models.

use crate::program::{interrupted, program, refused, run, stdout, text};

/// The error on stderr when writing a model; nothing is left.
#[track_caller]
fn not_written(args: &[&str], code: i32, part: &str) {
    refused(args, code, part);
    assert!(
        !args
            .iter()
            .any(|a| a.contains("out.") && std::path::Path::new(a).exists())
    );
}

/// `inspect` and `perplexity` of a model with sparse matrices; `file` gets a text.
fn sparse_models_are_told(model: &str, file: &str) {
    let report: serde_json::Value = serde_json::from_str(&stdout(&[
        "inspect",
        "--json",
        "--tensors",
        "--model",
        model,
    ]))
    .unwrap();
    // Six matrices a layer.
    assert_eq!(report["formats"]["csr"][0], 12);
    let density = |value: &serde_json::Value| (value.as_f64().unwrap() - 0.3).abs() < 0.01;
    assert!(density(&report["density"]));
    let tensors = report["tensors"].as_array().unwrap();
    let sparse: Vec<_> = tensors.iter().filter(|t| t["format"] == "csr").collect();
    assert!(sparse.len() == 12 && sparse.iter().all(|t| density(&t["density"])));
    let shown = stdout(&["inspect", "--tensors", "--model", model]);
    for part in [
        "12 in csr, ",
        "density     30.0 % of the csr",
        "blocks.0.att.key.weight  (density 30.0 %)",
    ] {
        assert!(shown.contains(part), "{shown}");
    }
    std::fs::write(file, "It was a dark and stormy night. ".repeat(40)).unwrap();
    let report: serde_json::Value = serde_json::from_str(&stdout(&[
        "perplexity",
        "--model",
        model,
        "--file",
        file,
        "--device",
        "cpu",
        "--json",
    ]))
    .unwrap();
    assert!(report["perplexity"].as_f64().unwrap() > 1.0, "{report}");
}

#[test]
fn models_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let spec = "v7:2x64:vocab=256,zeros=0.8,seed=3";
    let [made, gguf, small, back] =
        ["made.st", "made.gguf", "q8_0.gguf", "back.safetensors"].map(path);
    let [pruned, zeros] = ["pruned.st", "zeros.gguf"].map(path);
    let written = |args: &[&str]| {
        let output = run(args);
        let notes = text(&output.stderr);
        assert!(
            output.status.success() && output.stdout.is_empty(),
            "{args:?}: {notes}"
        );
        notes.replace(folder.path().to_str().unwrap(), "FOLDER")
    };
    let notes = [
        written(&["synthesize", spec, &made]),
        written(&["convert", &made, &gguf]),
        written(&["quantize", &gguf, &small, "--type", "q8_0"]),
        written(&["convert", &small, &back]),
        written(&["quantize", &made, &pruned, "--prune", "0.7"]),
        written(&["convert", &pruned, &zeros]),
    ];
    insta::assert_snapshot!("writing", notes.concat());
    let logits = |model: &str, quant: &[&str]| {
        let args = [
            "logits", "--tokens", "1,2,3", "--device", "cpu", "--output", "-", "--model", model,
        ];
        let lines = stdout(&[&args[..], quant].concat());
        lines
            .lines()
            .map(|l| l.parse().unwrap())
            .collect::<Vec<f32>>()
    };
    assert_eq!(logits(&made, &[]), logits(&gguf, &[]));
    assert_eq!(logits(&made, &["--quant", "q8_0"]), logits(&small, &[]));
    assert_ne!(logits(&made, &[]), logits(&small, &[]));
    assert_eq!(logits(&back, &["--quant", "f16"]), logits(&back, &[]));
    // Sparse and dense add in another order.
    let close = |a: Vec<f32>, b: Vec<f32>| a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-3);
    assert!(close(logits(&pruned, &[]), logits(&zeros, &[])));
    assert!(!close(logits(&pruned, &[]), logits(&made, &[])));
    sparse_models_are_told(&pruned, &path("text.txt"));

    let (out, other) = (path("out.gguf"), path("out.bin"));
    not_written(&["convert", &made, &other], 1, "must end in .gguf");
    not_written(&["convert", &made, &made], 1, "both input and output");
    not_written(&["convert", &path("none.gguf"), &out], 1, "none.gguf");
    not_written(
        &["quantize", &made, &out, "--type", "q9"],
        2,
        "the weight types are f16",
    );
    not_written(
        &["quantize", &made, &out, "--type", "nf4"],
        1,
        "GGUF cannot hold nf4",
    );
    not_written(
        &["quantize", &made, &out, "--type", "q8_0:0-2"],
        1,
        "2 layers",
    );
    not_written(&["quantize", &made, &out], 2, "required");
    not_written(
        &["quantize", &made, &out, "--prune", "1"],
        2,
        "`1` cannot be pruned: give a share from 0 to less than 1",
    );
    not_written(&["synthesize", "v9:1x1", &out], 2, "begins with a version");
    not_written(
        &["synthesize", "v5:1x64", &out],
        1,
        "no architecture for RWKV-5.2",
    );
    refused(
        &["inspect", "--model", &made, "--quant", "q8_0:0-2"],
        1,
        "2 layers",
    );
    refused(
        &["logits", "--tokens", "1", "--quant", "x", "--output", "-"],
        2,
        "weight types",
    );
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 7);
}

/// Ctrl-C while a large file is written leaves nothing.
#[cfg(unix)]
#[test]
fn writing_is_interrupted() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = program();
    command.args(["synthesize", "v7:61x4096"]);
    command.arg(folder.path().join("out.safetensors"));
    interrupted(command, folder.path());
}

/// What a person knows of a model goes into the files that are made of it.
#[test]
fn knowledge_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let [model, out] = ["model.st", "out.gguf"].map(path);
    assert!(
        run(&["synthesize", "v7:2x64:vocab=256", &model])
            .status
            .success()
    );
    let logits = |model: &str, more: &[&str]| {
        let args = [
            "logits", "--tokens", "1,2,3", "--device", "cpu", "--output", "-",
        ];
        stdout(&[&args[..], &["--model", model], more].concat())
    };
    let known = ["--group-norm-eps", "0.05", "--square-pairs", "in-out"];
    let want = logits(&model, &known);
    assert_ne!(want, logits(&model, &[]));
    for command in [&["convert"][..], &["quantize", "--type", "f16"]] {
        let args = [command, &[&model, &out], &known].concat();
        assert!(run(&args).status.success(), "{args:?}");
        assert_eq!(logits(&out, &[]), want, "{args:?}");
    }
}
