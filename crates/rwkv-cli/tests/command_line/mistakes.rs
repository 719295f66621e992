//! What is refused, and what a GPU is told.

use crate::generate::STORY;
use crate::program::{program, refused, stdout, text};

/// Every mistake is one line that names what is wrong, and no panic; nothing goes to stdout, no file is left.
#[test]
fn mistakes() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let demo = include_bytes!("../../../rwkv-model/assets/demo/demo.gguf");
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

/// A limit of GPU memory: what is no size is a mistake of the caller, what does not fit is said with what would, and what
/// fits runs.
#[test]
fn gpu_memory() {
    let device = std::env::var("RWKV_DEVICE").unwrap_or_else(|_| "0".to_owned());
    for wrong in ["", "much", "8X", "-1", "1.5"] {
        let flag = format!("--gpu-memory={wrong}");
        refused(&["generate", "x", &flag], 2, "--gpu-memory");
        refused(&["bench", &flag], 2, "--gpu-memory");
    }
    let with = |limit: &'static str| {
        let mut args = vec!["generate", "It was", "-n", "2", "--device", &device];
        args.extend(["--gpu-memory", limit]);
        args
    };
    for limit in ["0", "1MiB", "5M"] {
        let leaves = "the model needs";
        refused(&with(limit), 1, leaves);
        refused(&with(limit), 1, "what would fit: ");
        refused(&with(limit), 1, "--device cpu");
    }
    assert!(!stdout(&with("2GiB")).is_empty());
    // The CPU has no use for it.
    let on_cpu = stdout(&[
        "generate",
        "It",
        "-n",
        "1",
        "--device",
        "cpu",
        "--gpu-memory",
        "1",
    ]);
    assert!(!on_cpu.is_empty());
}

/// Some layers on the GPU and the others on the CPU: any number makes the same text, more than there are is a mistake, and
/// what is said to fit does.
#[test]
fn gpu_layers() {
    let device = std::env::var("RWKV_DEVICE").unwrap_or_else(|_| "0".to_owned());
    let with = |more: &[&str]| {
        let args = ["generate", "It was", "-n", "8", "--temperature", "0"];
        let args = args.into_iter().chain(more.iter().copied());
        args.map(str::to_owned).collect::<Vec<_>>()
    };
    let on = |layers: &str| with(&["--device", &device, "--gpu-layers", layers]);
    let strs = |args: &[String]| {
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        stdout(&args)
    };
    let want = strs(&with(&["--device", "cpu"]));
    for layers in ["0", "1", "8"] {
        assert_eq!(strs(&on(layers)), want, "{layers} layers");
    }
    let wrong = |args: &[String], code, part| {
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        refused(&args, code, part);
    };
    wrong(&on("9"), 2, "--gpu-layers 9 is more than the 8 layers");
    wrong(&on("1.5"), 2, "--gpu-layers");
    wrong(&on("few"), 2, "--gpu-layers");
    let on_cpu = with(&["--device", "cpu", "--gpu-layers", "2"]);
    wrong(&on_cpu, 2, "--gpu-layers needs a GPU");

    // Too little memory, and as many layers as the message offers.
    let limited = with(&["--device", &device, "--gpu-memory", "50M"]);
    let args: Vec<_> = limited.iter().map(String::as_str).collect();
    let output = program().args(&args).output().unwrap();
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    let offer = message.split("--gpu-layers ").nth(1).unwrap_or_default();
    let offered = offer.split(',').next().unwrap_or_default();
    assert!(matches!(offered.parse(), Ok(1..8)), "{message}");
    let fits = [
        &limited[..],
        &["--gpu-layers".to_owned(), offered.to_owned()],
    ]
    .concat();
    assert_eq!(strs(&fits), want, "{offered} layers");

    // A state goes on where its layers are not.
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state.st");
    let state = state.to_str().unwrap();
    let mut saving = on("3");
    saving.extend(["--save-state", state].map(str::to_owned));
    assert_eq!(strs(&saving), want);
    let going_on = |place: &[&str]| {
        let args = ["generate", " and", "-n", "8", "--temperature", "0"];
        stdout(&[&args[..], &["--state", state], place].concat())
    };
    let layers = ["--device", &device, "--gpu-layers", "5"];
    assert_eq!(going_on(&layers), going_on(&["--device", "cpu"]));
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
