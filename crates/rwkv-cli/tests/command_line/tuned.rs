//! Adapters, tuned states and sessions.

use crate::numbers::TALE;
use crate::program::{refused, run, stdout};

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
        // Timing chooses kernels, whose last bits differ.
        let base = ["--device", device, "--model", &model, "--no-tune"];
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
