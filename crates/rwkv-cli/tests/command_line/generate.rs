//! Continuing a text.

use crate::program::{fed, program, refused, run, stdout, text};
use std::io::Read;
use std::io::Write;
use std::process::Command;
use std::process::Stdio;

pub(crate) const STORY: [&str; 6] = [
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

/// A prompt that begins as one before is fed from there, in another process, and goes on as it would have.
#[test]
fn prompts_that_are_known() {
    let folder = tempfile::tempdir().unwrap();
    let beginning = "Once upon a time there was a girl who liked long stories. ".repeat(24);
    let generate = |end: &str, more: &[&str]| {
        let prompt = format!("{beginning}{end}");
        let args = [
            "generate", &prompt, "--device", "cpu", "-n", "12", "-t", "0",
        ];
        let mut command = program();
        command.env("RWKV_CACHE_DIR", folder.path());
        let output = command.args(args).args(more).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        (text(&output.stdout), text(&output.stderr))
    };
    let known = |notes: &str| notes.contains("of them known");
    let cache = &["--prompt-cache"][..];
    let [who, when] = ["Who?", "When?"].map(|end| generate(end, &[]).0);
    let (first, notes) = generate("Who?", cache);
    assert!(first == who && !known(&notes), "{notes}");
    for (end, want) in [("Who?", &who), ("When?", &when)] {
        let (again, notes) = generate(end, cache);
        assert!(
            again == *want && known(&notes),
            "{end}: {again} for {want}, {notes}"
        );
    }
    // States depend on the weights too, and there is a limit.
    assert!(!known(
        &generate("Who?", &["--prompt-cache", "--quant", "q4_0"]).1
    ));
    let states = || {
        let all = std::fs::read_dir(folder.path().join("states")).unwrap();
        all.map(|entry| entry.unwrap().metadata().unwrap().len())
            .sum::<u64>()
    };
    assert!(states() > 0);
    generate("Where?", &["--prompt-cache=100K"]);
    assert!(states() <= 100 << 10, "{}", states());
}
