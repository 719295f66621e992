//! The program as a person runs it: what goes to stdout, what to stderr, and which exit code.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "tests fail by panicking"
)]

use std::{
    io::{Read, Write},
    process::{Command, Output, Stdio},
};

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rwkv-cli"));
    for name in [
        "RWKV_MODEL",
        "RWKV_DEVICE",
        "RWKV_LOG",
        "RWKV_HIDE",
        "RWKV_CHECKS",
    ] {
        command.env_remove(name);
    }
    // Not the user's.
    command.env(
        "RWKV_CACHE_DIR",
        concat!(env!("CARGO_TARGET_TMPDIR"), "/cache"),
    );
    command
}

fn run(args: &[&str]) -> Output {
    program()
        .args(args)
        .stdin(Stdio::null())
        .output()
        .expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// Runs on the CPU and expects success; returns stdout.
#[track_caller]
fn stdout(args: &[&str]) -> String {
    let output = run(args);
    assert!(
        output.status.success(),
        "{args:?}: {}",
        text(&output.stderr)
    );
    text(&output.stdout)
}

#[test]
fn help() {
    for command in [
        "",
        "generate",
        "logits",
        "perplexity",
        "inspect",
        "quantize",
        "convert",
        "synthesize",
        "bench",
        "devices",
    ] {
        let args: Vec<_> = [command, "--help"]
            .into_iter()
            .filter(|a| !a.is_empty())
            .collect();
        insta::assert_snapshot!(format!("help-{command}"), stdout(&args));
    }
}

#[test]
fn inspect() {
    insta::assert_snapshot!("inspect", stdout(&["inspect"]));
    let json: serde_json::Value =
        serde_json::from_str(&stdout(&["inspect", "--json", "--tensors"])).unwrap();
    assert_eq!(json["layers"], 8);
    assert_eq!(json["tensors"].as_array().unwrap().len(), 230);
    insta::assert_snapshot!("inspect-quant", stdout(&["inspect", "--quant", "q4_0:2-5"]));
    let json: serde_json::Value =
        serde_json::from_str(&stdout(&["inspect", "--json", "--quant", "q6_k"])).unwrap();
    assert_eq!(json["quant"]["matrices"].as_array().unwrap().len(), 50);
    assert_eq!(json["quant"]["formats"]["q6_k"], 50);
}

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
    let output = folder.path().join("out.safetensors");
    let mut child = program()
        .args(["synthesize", "v7:61x4096", output.to_str().unwrap()])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let files = || std::fs::read_dir(folder.path()).unwrap().count();
    while files() == 0 {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    std::thread::sleep(std::time::Duration::from_millis(100));
    Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(files(), 0);
}

#[test]
fn devices_end_with_the_cpu() {
    assert!(
        stdout(&["devices"])
            .lines()
            .last()
            .unwrap()
            .starts_with("cpu ")
    );
    let json: serde_json::Value = serde_json::from_str(&stdout(&["devices", "--json"])).unwrap();
    assert_eq!(json.as_array().unwrap().last().unwrap()["device"], "cpu");
}

const STORY: [&str; 6] = [
    "generate",
    "It was a dark and stormy",
    "--device",
    "cpu",
    "--max-tokens",
    "30",
];

#[test]
fn generation() {
    let greedy = [&STORY[..], &["--temperature", "0"]].concat();
    let output = run(&greedy);
    let (story, notes) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success());
    assert!(
        !story.contains("It was a dark") && story.len() > 40,
        "{story:?}"
    );
    assert!(
        notes.contains("bundled demo model") && notes.contains("tokens/s"),
        "{notes}"
    );
    assert_eq!(story, stdout(&greedy), "greedy is the same each time");
    assert_eq!(
        stdout(&[&greedy[..], &["--echo"]].concat()),
        format!("It was a dark and stormy{story}")
    );

    let seeded = |seed| stdout(&[&STORY[..], &["--top-p", "0.95", "--seed", seed]].concat());
    assert_eq!(seeded("7"), seeded("7"));
    assert_ne!(seeded("7"), seeded("8"));

    // Up to the stop text, and nothing of it.
    let stop: String = story.chars().skip(10).take(8).collect();
    let before = story.split(&stop).next().unwrap();
    assert_eq!(
        stdout(&[&greedy[..], &["--stop", "never this", "--stop", &stop]].concat()),
        before
    );

    let orders = |order| {
        stdout(
            &[
                &STORY[..],
                &[
                    "--seed",
                    "1",
                    "--temperature",
                    "0.3",
                    "--top-p",
                    "0.9",
                    "--sampler-order",
                    order,
                ],
            ]
            .concat(),
        )
    };
    orders("reference");
    orders("temperature-first");
}

#[test]
fn prompts_from_files() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prompt.txt");
    std::fs::write(&file, "It was a dark and stormy").unwrap();
    let rest = ["--device", "cpu", "-n", "20", "--temperature", "0"];
    let direct = stdout(&[&["generate", "It was a dark and stormy"], &rest[..]].concat());
    assert_eq!(
        stdout(&[&["generate", "--file", file.to_str().unwrap()], &rest[..]].concat()),
        direct
    );
    let mut piped = program()
        .args([&["generate", "--file", "-"], &rest[..]].concat())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    piped
        .stdin
        .take()
        .unwrap()
        .write_all(b"It was a dark and stormy")
        .unwrap();
    assert_eq!(text(&piped.wait_with_output().unwrap().stdout), direct);
    for prompt in [&["-"][..], &[]] {
        let args = [&["generate"], prompt, &rest[..]].concat();
        let output = fed(&args, b"It was a dark and stormy");
        assert_eq!(text(&output.stdout), direct, "{args:?}");
    }
    // Nothing comes through the pipe.
    for prompt in [&["-"][..], &[], &["--file", "-"]] {
        refused(&[&["generate"], prompt].concat(), 2, "the prompt is empty");
    }
    refused(&["generate", "x", "--file", "-"], 2, "cannot be used with");
}

/// Runs with these bytes on stdin.
fn fed(args: &[&str], bytes: &[u8]) -> Output {
    let mut child = program()
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn logs() {
    let devices = |value: &str| {
        let output = program().arg("devices").env("RWKV_LOG", value).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{value}");
        text(&output.stderr)
    };
    for good in ["", "warn", "off", "rwkv_gpu=info,warn"] {
        assert!(!devices(good).contains("RWKV_LOG"), "{good}");
    }
    for bad in ["rwkv_gpu=loud", "a=b=c", "=", "[", "info,rwkv_sched=9x"] {
        let told = devices(bad);
        let lines: Vec<_> = told.lines().filter(|l| l.contains("RWKV_LOG")).collect();
        assert!(
            lines.len() == 1 && lines[0].contains(&format!("{bad:?}")),
            "{bad}: {told}"
        );
    }
}

#[test]
fn logits_agree_however_they_are_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("logits.bin");
    let path = file.to_str().unwrap();
    let lines: Vec<f32> = stdout(&[
        "logits",
        "--tokens",
        "66, 67,68",
        "--device",
        "cpu",
        "--output",
        "-",
    ])
    .lines()
    .map(|l| l.parse().unwrap())
    .collect();
    assert_eq!(lines.len(), 4096);
    let list = folder.path().join("tokens.txt");
    std::fs::write(&list, "66\n67 68").unwrap();
    for input in [
        ["--tokens", "66,67,68"],
        ["--tokens-file", list.to_str().unwrap()],
    ] {
        for extra in [&["--chunk", "1"][..], &["--chunk", "2", "--all"], &[]] {
            let output = stdout(
                &[
                    &["logits", "--device", "cpu", "--output", path],
                    &input[..],
                    extra,
                ]
                .concat(),
            );
            assert_eq!(output, "");
            let bytes = std::fs::read(&file).unwrap();
            let rows = if extra.contains(&"--all") { 3 } else { 1 };
            assert_eq!(bytes.len(), rows * 4096 * 4);
            let last = &bytes[(rows - 1) * 4096 * 4..];
            let worst = last
                .as_chunks::<4>()
                .0
                .iter()
                .zip(&lines)
                .fold(0.0f32, |worst, (b, l)| {
                    worst.max((f32::from_le_bytes(*b) - l).abs())
                });
            assert!(worst < 1e-4, "{worst}");
        }
    }
}

/// A text of 110 of the demo model's tokens.
const TALE: &str = "It was a dark and stormy night, and the rain fell upon the house. The old man sat by the fire, \
and said to his wife that there was no one in the wood. She did not hear him, for the wind was loud at the door. \
Then they heard a voice, as of one who had lost his way; and they rose, and took the lamp, and went out together. \
There was nobody upon the road, but the gate stood open, and the snow lay before it without the mark of a foot.";

#[test]
fn perplexity() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tale.txt");
    std::fs::write(&file, TALE).unwrap();
    let measure = ["perplexity", "--device", "cpu", "--context", "24", "--file"];
    let measure = [&measure[..], &[file.to_str().unwrap()]].concat();
    let with = |more: &[&str]| stdout(&[&measure[..], more].concat());
    let json = |more: &[&str]| -> serde_json::Value {
        serde_json::from_str(&with(&[more, &["--json"]].concat())).unwrap()
    };

    let all = json(&["--chunks", "3"]);
    assert_eq!(all["chunks"], 3);
    assert_eq!(all["tokens"], 3 * 24);
    assert_eq!(all["method"], "all");
    let number = |report: &serde_json::Value, key: &str| report[key].as_f64().unwrap();
    // An English text, predicted by a small model of English.
    let nats = number(&all, "nats_per_token");
    assert!((2.0..6.0).contains(&nats), "{all}");
    assert!((number(&all, "perplexity").ln() - nats).abs() < 1e-12);
    let bytes = number(&all, "nats_per_byte") * number(&all, "bytes");
    assert!((bytes - nats * number(&all, "tokens")).abs() < 1e-9);

    // However many chunks go through at once.
    for batch in ["1", "2", "9"] {
        let again = json(&["--chunks", "3", "--batch", batch]);
        let difference = (number(&again, "nats_per_token") - nats).abs();
        assert!(difference < 1e-5, "{batch}: {again}");
    }
    let llama = json(&["--chunks", "2", "--method", "llama"]);
    assert_eq!(llama["tokens"], 2 * 11);

    let lines = with(&["--chunks", "3"]);
    let words: Vec<_> = lines.split_whitespace().collect();
    assert_eq!(words[0], "perplexity");
    assert_eq!(words[1], format!("{:.4}", number(&all, "perplexity")));
    assert!(
        lines.ends_with("in 3 × 24 tokens (method all)\n"),
        "{lines}"
    );

    let mut piped = program()
        .args([
            "perplexity",
            "--device",
            "cpu",
            "--context",
            "24",
            "--chunks",
            "3",
            "--file",
            "-",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    piped
        .stdin
        .take()
        .unwrap()
        .write_all(TALE.as_bytes())
        .unwrap();
    assert_eq!(text(&piped.wait_with_output().unwrap().stdout), lines);
}

#[test]
fn perplexity_mistakes() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let tale = file("tale.txt", TALE.as_bytes());
    let empty = file("empty.txt", b"");
    let missing = folder.path().join("none.txt").to_str().unwrap().to_owned();
    let json = file("tokenizer.json", b"{\"model\": {\"type\": \"Unigram\"}}");
    let mut told = String::new();
    for (args, code) in [
        (&["perplexity"][..], 2),
        (&["perplexity", "--file", &missing], 2),
        (&["perplexity", "--file", &empty], 2),
        (&["perplexity", "--file", &tale], 2),
        (
            &[
                "perplexity",
                "--file",
                &tale,
                "--context",
                "80",
                "--method",
                "llama",
            ],
            2,
        ),
        (
            &[
                "perplexity",
                "--file",
                &tale,
                "--context",
                "2",
                "--method",
                "llama",
            ],
            2,
        ),
        (&["perplexity", "--file", &tale, "--context", "1"], 2),
        (&["perplexity", "--file", &tale, "--chunks", "0"], 2),
        (&["perplexity", "--file", &tale, "--batch", "0"], 2),
        (&["perplexity", "--file", &tale, "--method", "half"], 2),
        (&["perplexity", "--file", &tale, "--tokenizer", &json], 1),
    ] {
        refused(args, code, "");
        let error = text(&run(args).stderr);
        for line in error.lines().filter(|line| line.starts_with("error")) {
            told += &line.replace(folder.path().to_str().unwrap(), "FOLDER");
            told.push('\n');
        }
    }
    insta::assert_snapshot!("perplexity-mistakes", told);
}

/// A file is replaced only when it is complete, a link's target rather than the link, a device never, and the model not
/// at all.
#[cfg(unix)]
#[test]
fn logits_are_written_where_they_belong() {
    use std::os::unix::fs::{FileTypeExt, symlink};
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let logits = |output: &std::path::Path| {
        run(&[
            "logits",
            "--tokens",
            "66",
            "--device",
            "cpu",
            "--output",
            output.to_str().unwrap(),
        ])
    };
    std::fs::write(path("target"), "old").unwrap();
    symlink(path("target"), path("link")).unwrap();
    assert!(logits(&path("link")).status.success());
    assert!(path("link").is_symlink());
    assert_eq!(std::fs::metadata(path("target")).unwrap().len(), 4096 * 4);

    let fifo = path("fifo");
    assert!(
        Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .unwrap()
            .success()
    );
    let reader = std::thread::spawn({
        let fifo = fifo.clone();
        move || std::fs::read(fifo).unwrap().len()
    });
    assert!(logits(&fifo).status.success());
    assert_eq!(reader.join().unwrap(), 4096 * 4);
    assert!(
        std::fs::symlink_metadata(&fifo)
            .unwrap()
            .file_type()
            .is_fifo()
    );

    let model = path("model.gguf");
    std::fs::write(
        &model,
        include_bytes!("../../rwkv-model/assets/demo/demo.gguf"),
    )
    .unwrap();
    let name = model.to_str().unwrap();
    let output = run(&[
        "logits", "--tokens", "66", "--model", name, "--output", name,
    ]);
    assert_eq!(output.status.code(), Some(2));

    // Interrupted: nothing is left.
    let list = path("tokens");
    std::fs::write(&list, "66 ".repeat(200_000)).unwrap();
    let before = std::fs::read_dir(folder.path()).unwrap().count();
    let mut child = program()
        .args([
            "logits",
            "--all",
            "--device",
            "cpu",
            "--tokens-file",
            list.to_str().unwrap(),
        ])
        .args(["--output", path("never").to_str().unwrap()])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while std::fs::read_dir(folder.path()).unwrap().count() == before {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    std::thread::sleep(std::time::Duration::from_millis(200));
    Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), before);
}

#[test]
fn a_closed_pipe_is_no_error() {
    let mut child = program()
        .args([
            "generate", "Once", "--device", "cpu", "-n", "400", "--seed", "1",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 1];
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut first).unwrap();
    drop(out);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[cfg(unix)]
#[test]
fn ctrl_c_stops_cleanly() {
    let mut child = program()
        .args([
            "generate", "Once", "--device", "cpu", "-n", "1000000", "--seed", "1",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut first = [0; 1];
    out.read_exact(&mut first).unwrap();
    let kill = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(kill.success());
    let mut rest = Vec::new();
    out.read_to_end(&mut rest).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(
        text(&output.stderr).contains("tokens/s"),
        "the summary is still told"
    );
}

/// Expects one line of error that contains `part`, this exit code, and nothing on stdout.
#[track_caller]
fn refused(args: &[&str], code: i32, part: &str) {
    let output = run(args);
    let error = text(&output.stderr);
    let last: Vec<_> = error.lines().filter(|l| l.starts_with("error")).collect();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {error}");
    assert!(
        last.len() == 1 && last[0].contains(part),
        "{args:?}: {error}"
    );
    assert!(!error.contains("panicked"), "{error}");
    assert!(
        output.stdout.is_empty(),
        "{args:?}: {}",
        text(&output.stdout)
    );
}

/// Every mistake is one line that names what is wrong, and no panic; nothing goes to stdout, no file is left.
#[test]
fn mistakes() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let demo = include_bytes!("../../rwkv-model/assets/demo/demo.gguf");
    let missing = folder.path().join("none.gguf").to_str().unwrap().to_owned();
    let empty = file("empty.gguf", b"");
    let cut = file("cut.gguf", &demo[..100_000]);
    let wrong = file("wrong.safetensors", b"<!DOCTYPE html><html></html>");
    let lying = file("lying.safetensors", b"\xff\xff\xff\xff\xff\xff\xff\x7f{}");
    let list = file("tokens.txt", b"1 2 three");
    let vocab = file("words.txt", b"1 'a' 2\n");
    let output = folder.path().join("out.bin").to_str().unwrap().to_owned();
    let nowhere = folder
        .path()
        .join("no/such/out.bin")
        .to_str()
        .unwrap()
        .to_owned();

    for (model, part) in [
        (&missing, "none.gguf"),
        (&empty, "empty"),
        (&cut, "cut.gguf"),
        (&wrong, "HTML"),
        (&lying, "lying.safetensors"),
    ] {
        refused(&["generate", "x", "--model", model], 1, part);
        refused(&["inspect", "--model", model], 1, part);
        refused(
            &[
                "logits", "--tokens", "1", "--model", model, "--output", &output,
            ],
            1,
            part,
        );
    }
    refused(
        &["generate", "x", "--model", folder.path().to_str().unwrap()],
        1,
        "folder",
    );
    refused(
        &["generate", "x", "--device", "no such gpu"],
        1,
        "no such gpu",
    );
    refused(&["generate", "x", "--device", "99"], 1, "99");
    refused(&["generate", ""], 2, "empty");
    refused(&["generate", "--file", &missing], 2, "none.gguf");
    refused(&["generate", "x", "--temperature", "-1"], 2, "temperature");
    refused(&["generate", "x", "--top-p", "1.5"], 2, "top_p");
    refused(&["generate", "x", "--logit-bias", "5"], 2, "TOKEN=BIAS");
    refused(&["generate", "x", "--tokenizer", &vocab], 1, "words.txt");
    refused(&["generate", "x", "--tokenizer", "world"], 1, "--tokenizer");
    refused(&["generate"], 2, "empty");
    refused(&["generate", "x", "--stop", ""], 2, "an empty text");
    refused(&["logits", "--output", "-"], 2, "required");
    refused(
        &["logits", "--tokens", "1,x", "--output", &output],
        2,
        "`x`",
    );
    refused(
        &["logits", "--tokens", "", "--output", &output],
        2,
        "no tokens",
    );
    refused(
        &["logits", "--tokens-file", &list, "--output", &output],
        2,
        "`three`",
    );
    refused(
        &[
            "logits", "--tokens", "1,5000", "--device", "cpu", "--output", &output,
        ],
        1,
        "token 5000 is out of range",
    );
    refused(
        &[
            "logits", "--tokens", "1", "--chunk", "0", "--output", &output,
        ],
        2,
        "--chunk",
    );
    refused(
        &[
            "logits", "--tokens", "1", "--device", "cpu", "--output", &nowhere,
        ],
        1,
        "out.bin",
    );
    assert!(!std::path::Path::new(&output).exists());
    assert_eq!(
        std::fs::read_dir(folder.path()).unwrap().count(),
        6,
        "no temporary file is left"
    );
}

/// Hiding what an adapter has, and switching checks on, must not change the text.
#[test]
fn gpu_settings() {
    let device = std::env::var("RWKV_DEVICE").unwrap_or_else(|_| "0".to_owned());
    let args = [
        "generate",
        "It was a dark and stormy",
        "-n",
        "12",
        "--temperature",
        "0",
        "--device",
        &device,
    ];
    let want = stdout(
        &STORY[..4]
            .iter()
            .copied()
            .chain(["-n", "12", "--temperature", "0"])
            .collect::<Vec<_>>(),
    );
    for (name, value) in [
        ("RWKV_HIDE", ""),
        ("RWKV_HIDE", "subgroup,f16,coop"),
        ("RWKV_CHECKS", "0"),
        ("RWKV_CHECKS", "1"),
    ] {
        let output = program().args(args).env(name, value).output().unwrap();
        assert!(
            output.status.success(),
            "this test needs a GPU adapter: {}",
            text(&output.stderr)
        );
        assert_eq!(text(&output.stdout), want, "{name}={value}");
    }
    for (name, value) in [("RWKV_HIDE", "subgroups"), ("RWKV_CHECKS", "yes")] {
        let output = program().args(args).env(name, value).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains(name));
    }
}

/// What was compiled is kept where `RWKV_CACHE_DIR` says, else in the platform's folder; where that cannot be, it is said,
/// and nothing fails.
#[test]
fn pipelines_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (own, platform, file) = (path("own"), path("platform"), path("file"));
    std::fs::write(&file, b"").unwrap();
    let device = std::env::var("RWKV_DEVICE").unwrap_or_else(|_| "0".to_owned());
    let run = |cache: &std::path::Path| {
        let mut command = program();
        command.args(["generate", "It", "-n", "1", "--device", &device]);
        command.env("RWKV_CACHE_DIR", cache);
        let output = command.env("XDG_CACHE_HOME", &platform).output().unwrap();
        let notes = text(&output.stderr);
        assert!(output.status.success(), "{notes}");
        let told = notes.lines().filter(|l| l.contains("RWKV_CACHE_DIR"));
        told.count()
    };
    assert_eq!(run(&own), 0);
    // Not every backend keeps them.
    let can = usize::from(own.exists());
    assert!(can == 0 || own.join("pipelines").is_dir());
    assert_eq!(run(&file), can, "said once");
    if cfg!(target_os = "linux") {
        assert!(!platform.join("rwkv").exists());
        assert_eq!(run(std::path::Path::new("")), 0);
        assert_eq!(usize::from(platform.join("rwkv/pipelines").is_dir()), can);
    }
}

#[test]
fn adapters_blend_and_replace() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let [one, two] = ["one.st", "two=2.st"].map(path);
    for (seed, file) in [("1", &one), ("2", &two)] {
        let spec = format!("v7:2x64:vocab=256,seed={seed}");
        assert!(run(&["synthesize", &spec, file]).status.success());
    }
    let logits = |more: &[&str]| {
        let args = [
            "logits", "--tokens", "1,2,3", "--device", "cpu", "--output", "-",
        ];
        stdout(&[&args[..], more].concat())
    };
    let [first, second] = [&one, &two].map(|file| logits(&["--model", file]));
    assert_ne!(first, second);
    let blended = |lora: &str| logits(&["--model", &one, "--lora", lora]);
    assert_eq!(blended(&two), second, "whole tensors replace");
    assert_eq!(blended(&format!("{two}=0")), first);
    let half = blended(&format!("{two}=0.5"));
    assert!(half != first && half != second);
    let with_lora = |file: &str, lora: &str| {
        [
            "generate", "x", "--device", "cpu", "--model", file, "--lora", lora,
        ]
        .map(str::to_owned)
    };
    for (lora, code, part) in [
        (format!("{one}=much"), 2, "no strength"),
        (path("none.st"), 1, "none.st"),
    ] {
        let args = with_lora(&one, &lora);
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        refused(&args, code, part);
    }
    let other = path("other.st");
    assert!(
        run(&["synthesize", "v7:1x64:vocab=256", &other])
            .status
            .success()
    );
    let args = with_lora(&other, &two);
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    refused(&args, 1, "two=2.st");
}

#[test]
fn sessions_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let [stopped, counted, later] = ["stopped", "counted", "later"].map(path);
    let story = |tokens: &str, more: &[&str]| {
        let args = [
            "generate",
            "It was a dark and stormy",
            "--device",
            "cpu",
            "--temperature",
            "0",
            "--max-tokens",
            tokens,
        ];
        stdout(&[&args[..], more].concat())
    };
    // The state is that after the last token that was printed, wherever the text was cut.
    let long = story("30", &[]);
    let short = story("12", &["--save-state", &counted]);
    let next: String = long[short.len()..].chars().take(9).collect();
    let cut = story("30", &["--stop", &next, "--save-state", &stopped]);
    assert_eq!(cut, short);
    let bytes = |file: &str| std::fs::read(file).unwrap();
    assert!(bytes(&stopped) == bytes(&counted));

    let go_on = |more: &[&str]| {
        let args = [
            "generate",
            "\n",
            "--device",
            "cpu",
            "--temperature",
            "0",
            "--max-tokens",
            "8",
        ];
        stdout(&[&args[..], more].concat())
    };
    let continued = go_on(&["--state", &counted, "--save-state", &later]);
    assert_eq!(continued, go_on(&["--state", &stopped]));
    assert_ne!(continued, go_on(&[]));
    assert!(bytes(&later) != bytes(&counted));

    let broken = path("broken");
    std::fs::write(&broken, &bytes(&counted)[..1000]).unwrap();
    for (args, code, part) in [
        (&["--state", &broken][..], 1, "broken"),
        (&["--state", &path("none")], 1, "none"),
        (&["--state-order", "key-value"], 2, "--state-order"),
    ] {
        let all = [
            &["generate", "x", "--device", "cpu", "--max-tokens", "1"][..],
            args,
        ]
        .concat();
        refused(&all, code, part);
    }
}

/// A safetensors file of F32 tensors.
fn safetensors(tensors: &[(String, Vec<usize>, Vec<f32>)]) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, shape, values) in tensors {
        let start = data.len();
        data.extend(values.iter().flat_map(|x| x.to_le_bytes()));
        let about = serde_json::json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, data.len()] });
        header.insert(name.clone(), about);
    }
    let header = serde_json::Value::from(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

/// A tuned state counts alike in all commands, from wherever it comes and however it lies; two are refused.
#[test]
fn tuned_states() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let model = path("model.st");
    let spec = "v6:2x64:vocab=256,head=32,seed=1";
    assert!(run(&["synthesize", spec, &model]).status.success());
    // [head, key, value], and the other way round.
    let state = |turned: bool| -> Vec<(String, Vec<usize>, Vec<f32>)> {
        let value = |i: usize| {
            let (head, row, column) = (i / 1024, i / 32 % 32, i % 32);
            let at = if turned {
                column * 32 + row
            } else {
                row * 32 + column
            };
            ((at * 37 + head * 11) % 101) as f32 / 25.0 - 2.0
        };
        let tensor = |layer: usize| {
            let name = format!("blocks.{layer}.att.time_state");
            (name, vec![2, 32, 32], (0..2048).map(value).collect())
        };
        (0..2).map(tensor).collect()
    };
    let with_pair = |mut tensors: Vec<(String, Vec<usize>, Vec<f32>)>| {
        let key = "blocks.0.att.key";
        tensors.push((format!("{key}.lora_A"), vec![1, 64], vec![0.1; 64]));
        tensors.push((format!("{key}.lora_B"), vec![64, 1], vec![0.1; 64]));
        tensors
    };
    let [plain, turned, pair, pair_and_state] =
        ["plain.st", "turned.st", "pair.st", "pair_and_state.st"].map(path);
    std::fs::write(&plain, safetensors(&state(false))).unwrap();
    std::fs::write(&turned, safetensors(&state(true))).unwrap();
    std::fs::write(&pair, safetensors(&with_pair(Vec::new()))).unwrap();
    std::fs::write(&pair_and_state, safetensors(&with_pair(state(false)))).unwrap();

    let tale = path("tale.txt");
    std::fs::write(&tale, TALE).unwrap();
    let device = std::env::var("RWKV_DEVICE").unwrap_or_else(|_| "0".to_owned());
    for device in ["cpu", &device] {
        let base = ["--device", device, "--model", &model];
        let logits = |more: &[&str]| {
            let args = ["logits", "--prompt", "stormy", "--output", "-"];
            stdout(&[&args[..], &base, more].concat())
        };
        let story = |more: &[&str]| {
            let args = ["generate", "stormy", "-n", "8", "--temperature", "0"];
            stdout(&[&args[..], &base, more].concat())
        };
        let nats = |more: &[&str]| {
            let args = [
                "perplexity",
                "--context",
                "20",
                "--batch",
                "3",
                "--json",
                "--file",
                &tale,
            ];
            let report = stdout(&[&args[..], &base, more].concat());
            let report: serde_json::Value = serde_json::from_str(&report).unwrap();
            report["nats_per_token"].as_f64().unwrap()
        };
        let all = |more: &[&str]| (logits(more), story(more), nats(more));
        let (nothing, alone) = (all(&[]), all(&["--state", &plain]));
        assert_ne!(nothing.0, alone.0);
        assert!(
            (nothing.2 - alone.2).abs() > 1e-6,
            "{} {}",
            nothing.2,
            alone.2
        );
        assert_eq!(all(&["--lora", &plain]), alone);
        assert_eq!(all(&["--lora", &format!("{plain}=0.5")]), alone);
        assert_eq!(all(&["--lora", &format!("{plain}=0")]), nothing);
        for from in ["--state", "--lora"] {
            assert_ne!(logits(&[from, &turned]), alone.0);
            let named = [from, &turned, "--state-order", "value-key"];
            assert_eq!(all(&named), alone, "{from}");
        }
        let both = all(&["--lora", &pair_and_state]);
        assert_eq!(all(&["--lora", &pair, "--state", &plain]), both);
        assert!(both.0 != alone.0 && both.2.to_bits() != alone.2.to_bits());
        // A sequence that went on from a tuned state goes on.
        let [session, other] = ["session", "other"].map(path);
        story(&["--lora", &pair_and_state, "--save-state", &session]);
        story(&["--lora", &pair, "--save-state", &other]);
        let on = logits(&["--lora", &pair_and_state, "--state", &session]);
        assert_eq!(logits(&["--lora", &pair, "--state", &session]), on);
        assert_ne!(logits(&["--lora", &pair, "--state", &other]), on);
    }
    let (tale, cpu) = (tale.as_str(), ["--device", "cpu", "--model", &model]);
    for command in [
        &["generate", "x"][..],
        &["logits", "--prompt", "x", "--output", "-"],
        &["perplexity", "--context", "20", "--file", tale],
    ] {
        for (more, parts) in [
            (
                ["--lora", &plain, "--state", &turned],
                ["plain.st", "turned.st"],
            ),
            (
                ["--lora", &plain, "--lora", &pair_and_state],
                ["plain.st", "pair_and_state.st"],
            ),
        ] {
            let args = [command, &cpu, &more].concat();
            for part in parts {
                refused(&args, 2, part);
            }
            refused(&args, 2, "two tuned states");
        }
    }
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
