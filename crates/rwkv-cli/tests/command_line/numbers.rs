//! Logits and perplexity.

use crate::program::{interrupted, program, refused, run, stdout, text};
use std::io::Write;
use std::process::Command;
use std::process::Stdio;

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
pub(crate) const TALE: &str = "It was a dark and stormy night, and the rain fell upon the house. The old man sat by the fire, \
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
        include_bytes!("../../../rwkv-model/assets/demo/demo.gguf"),
    )
    .unwrap();
    let name = model.to_str().unwrap();
    let output = run(&[
        "logits", "--tokens", "66", "--model", name, "--output", name,
    ]);
    assert_eq!(output.status.code(), Some(2));

    // Interrupted: nothing is left. There is work for minutes.
    let list = path("tokens");
    std::fs::write(&list, "66 ".repeat(2_000_000)).unwrap();
    let mut command = program();
    command.args(["logits", "--all", "--device", "cpu"]);
    command.arg("--tokens-file").arg(&list);
    command.arg("--output").arg(path("never"));
    interrupted(command, folder.path());
}
