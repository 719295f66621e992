//! `rwkv-cli bench` as a person runs it: what it counts is exact, what it times is plausible.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "tests fail by panicking"
)]

use serde_json::Value;
use std::process::{Command, Output, Stdio};

const SPEC: &str = "v7:2x64:vocab=256";

fn bench(args: &[&str]) -> Output {
    // Not the user's.
    bench_with(
        args,
        &[(
            "RWKV_CACHE_DIR",
            concat!(env!("CARGO_TARGET_TMPDIR"), "/cache"),
        )],
    )
}

fn bench_with(args: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rwkv-cli"));
    for name in ["RWKV_MODEL", "RWKV_DEVICE", "RWKV_LOG", "RWKV_HIDE"] {
        command.env_remove(name);
    }
    command.envs(environment.iter().copied());
    command.arg("bench").args(args).stdin(Stdio::null());
    command.output().expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

#[track_caller]
fn stdout(args: &[&str]) -> String {
    let output = bench(args);
    let notes = text(&output.stderr);
    assert!(output.status.success(), "{args:?}: {notes}");
    text(&output.stdout)
}

/// The adapter under test.
fn gpu() -> String {
    std::env::var("RWKV_DEVICE").unwrap_or_else(|_| "0".to_owned())
}

/// Bytes that a step with logits reads of [`SPEC`], and those of a row of its embedding: matrices are F16, vectors F32.
fn weight_bytes() -> (u64, u64) {
    let (width, ffn, vocab, rank) = (64, 256, 256, 32);
    let mut matrices = width * vocab;
    // The norms of the embedding and before the head.
    let mut vectors = 4 * width;
    for layer in 0..2 {
        // The layer that has no value residual: three pairs (decay, rate, gate), else four.
        let pairs = if layer == 0 { 3 } else { 4 };
        matrices += 4 * width * width + 2 * width * ffn + pairs * 2 * width * rank;
        // Three norms; six mixes and one; k_k, k_a and r_k; the biases of all pairs but the gate's.
        vectors += width * (6 + 7 + 3 + pairs - 1);
    }
    (2 * matrices + 4 * vectors, 2 * width)
}

#[track_caller]
fn positive(value: &Value) -> f64 {
    let number = value.as_f64().unwrap_or(f64::NAN);
    assert!(number > 0.0 && number.is_finite(), "{value}");
    number
}

#[track_caller]
fn near(value: &Value, want: f64) {
    let got = positive(value);
    assert!((got / want - 1.0).abs() < 1e-9, "{got}, {want}");
}

#[test]
fn counts_and_times() {
    let gpu = gpu();
    for device in ["cpu", &gpu] {
        let report: Value = serde_json::from_str(&stdout(&[
            "--synthetic",
            SPEC,
            "--prefill",
            "16",
            "--decode",
            "4",
            "--batch",
            "1,2",
            "--repeat",
            "2",
            "--json",
            "--device",
            device,
        ]))
        .unwrap();
        let on_gpu = device != "cpu";
        assert_eq!(report["model"]["layers"], 2);
        assert_eq!(report["repeat"], 2);
        assert_eq!(report["device"]["driver"].is_string(), on_gpu);
        let load = positive(&report["load_seconds"]);
        let pipelines = &report["pipelines"];
        assert_eq!(pipelines.is_object(), on_gpu);
        if on_gpu {
            assert!(positive(&pipelines["seconds"]) < load);
            assert!(pipelines["kept"].as_u64().unwrap() <= pipelines["compiled"].as_u64().unwrap());
        }
        positive(&report["device_memory"]["used_bytes"]);
        if cfg!(target_os = "linux") {
            let memory = &report["host_memory"];
            let private = positive(&memory["peak_private_bytes"]);
            assert!(private < positive(&memory["peak_resident_bytes"]));
        }
        let copied = positive(&report["copy"]["bytes_per_second"]);

        let (step, row) = weight_bytes();
        let workloads = report["workloads"].as_array().unwrap();
        let rows = [
            ("prefill", 1, 16, 1),
            ("decode", 1, 4, 4),
            ("decode", 2, 8, 4),
        ];
        assert_eq!(workloads.len(), rows.len());
        for (workload, (name, batch, tokens, steps)) in workloads.iter().zip(rows) {
            assert_eq!(workload["name"], name);
            assert_eq!(workload["batch"], batch);
            assert_eq!(workload["tokens"], tokens);
            assert_eq!(workload["steps"], steps);
            let speed = &workload["tokens_per_second"];
            let median = positive(&speed["median"]);
            assert!(positive(&speed["min"]) <= median && median <= positive(&speed["max"]));
            let bytes = (step * steps + row * tokens) as f64 / tokens as f64;
            near(&workload["weight_bytes_per_token"], bytes);
            near(&workload["weight_bytes_per_second"], bytes * median);
            near(
                &workload["share_of_copy_bandwidth"],
                bytes * median / copied,
            );
            assert_eq!(workload["kernels"], Value::Null);
            let launches = &workload["launches"];
            if !on_gpu {
                assert_eq!(*launches, Value::Null);
                assert_eq!(workload["gpu_busy"], Value::Null);
                continue;
            }
            // Every step of a decode launches the same kernels.
            let dispatches = launches["dispatches"].as_u64().unwrap();
            assert!(dispatches > 0 && dispatches.is_multiple_of(steps));
            near(
                &launches["dispatches_per_token"],
                dispatches as f64 / tokens as f64,
            );
            assert_eq!(launches["buffers_made_after_warm_up"], 0);
            let parts: f64 = ["record", "submit", "wait", "rest"]
                .iter()
                .map(|part| positive(&launches[format!("{part}_microseconds_per_token")]))
                .sum();
            // Two rounds: the mean of their times lies between the fastest and the slowest.
            let (fast, slow) = (positive(&speed["max"]), positive(&speed["min"]));
            assert!(parts > 0.999e6 / fast && parts < 1.001e6 / slow, "{parts}");
            positive(&workload["gpu_microseconds_per_token"]);
            // The clocks of host and GPU need not agree to the last digit.
            assert!(positive(&workload["gpu_busy"]) < 1.05);
        }
        let caches = &report["caches"];
        assert_eq!(caches.is_object(), on_gpu);
        if on_gpu {
            // A plan each for the prompt and the two batches, the smaller of which is ready when the model is loaded;
            // they are looked up once for all of a decoding's steps; at least a round to warm up, two rounds and two with
            // timestamps, and an untimed first step in each round of decoding.
            assert_eq!(caches["plans"]["misses"], 2);
            let hits = caches["plans"]["hits"].as_u64().unwrap();
            assert!(hits >= 5 * (1 + 2 + 2) - 2, "{hits}");
            for name in ["parameters", "pipelines"] {
                let rate = positive(&caches[name]["hit_rate"]);
                assert!(rate < 1.0, "{name}: {rate}");
            }
            assert!(caches["buffer_pool"]["misses"].as_u64().unwrap() > 0);
            // Everything that measured rounds ask for is there.
            for (name, cache) in caches.as_object().unwrap() {
                let rate = &cache["hit_rate_after_warm_up"];
                assert!(rate.is_null() || rate == 1.0, "{name}: {rate}");
            }
            for name in ["plans", "buffer_pool"] {
                positive(&caches[name]["hit_rate_after_warm_up"]);
            }
        }
    }
}

/// A row for each share, in which sparse matrices read four bytes an entry and dense ones two an element.
#[test]
fn break_even() {
    let gpu = gpu();
    let args = [
        "--synthetic",
        SPEC,
        "--prune",
        "0.5,0.9",
        "--prefill",
        "0",
        "--decode",
        "2",
        "--repeat",
        "1",
        "--device",
        &gpu,
    ];
    let report: Value = serde_json::from_str(&stdout(&[&args[..], &["--json"]].concat())).unwrap();
    let shares = report["shares"].as_array().unwrap();
    assert_eq!(shares.len(), 2);
    for (share, pruned) in shares.iter().zip([0.5, 0.9]) {
        near(&share["pruned"], pruned);
        let [dense, sparse] = ["dense", "csr"].map(|how| &share[how]["workloads"][0]);
        positive(&dense["tokens_per_second"]["median"]);
        positive(&sparse["tokens_per_second"]["median"]);
        let of = |workload: &Value| positive(&workload["weight_bytes_per_token"]);
        let (step, row) = weight_bytes();
        near(&dense["weight_bytes_per_token"], (step + row) as f64);
        assert_eq!(of(sparse) < of(dense), pruned > 0.5, "{pruned}");
    }
    let shown = stdout(&args);
    for part in [
        "decode × 1",
        "csr tokens/s",
        "pruned 50.0 %",
        "pruned 90.0 %",
    ] {
        assert!(shown.contains(part), "{shown}");
    }
}

#[test]
fn profile() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace.json");
    let path = path.to_str().unwrap();
    let gpu = gpu();
    let args = [
        "--synthetic",
        SPEC,
        "--prefill",
        "8",
        "--decode",
        "3",
        "--repeat",
        "1",
        "--device",
        &gpu,
        "--profile",
    ];
    let cache = folder.path().join("cache");
    let stdout = |args: &[&str]| {
        let output = bench_with(args, &[("RWKV_CACHE_DIR", cache.to_str().unwrap())]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let report: Value =
        serde_json::from_str(&stdout(&[&args[..], &[path, "--json"]].concat())).unwrap();
    let trace: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    for (index, workload) in report["workloads"].as_array().unwrap().iter().enumerate() {
        // Each launch has its row in the table and its event in the trace.
        let dispatches = &workload["launches"]["dispatches"];
        let kernels = workload["kernels"].as_array().unwrap();
        let count: u64 = kernels.iter().map(|k| k["count"].as_u64().unwrap()).sum();
        let share: f64 = kernels.iter().map(|k| k["share"].as_f64().unwrap()).sum();
        let events = events
            .iter()
            .filter(|e| e["ph"] == "X" && e["pid"] == index + 1)
            .count();
        if workload["name"] == "decode" {
            // The first step of a round is not timed by the host; its kernels are dropped too.
            assert_eq!(*dispatches, count);
        }
        assert_eq!(count, events as u64);
        assert!((share - 1.0).abs() < 1e-6, "{share}");
    }
    // For people, and without a file; what the first run compiled was kept, where the driver can.
    let shown = stdout(&args);
    let compiled = report["pipelines"]["compiled"].as_u64().unwrap();
    assert_eq!(report["pipelines"]["kept"], 0);
    let kept = if cache.exists() { compiled } else { 0 };
    let pipelines = format!("{compiled} compiled, {kept} of them kept by an earlier run");
    for part in [
        "tokens/s",
        "GPU busy",
        "dispatches",
        "kernels of decode × 1",
        "pipelines ready in",
        &pipelines,
        "prefill 8",
    ] {
        assert!(shown.contains(part), "{shown}");
    }
}

#[test]
fn mistakes() {
    let check = |args: &[&str], code: i32, part: &str| {
        let output = bench(args);
        let notes = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {notes}");
        assert!(notes.contains(part) && output.stdout.is_empty(), "{notes}");
    };
    let synthetic = ["--device", "cpu", "--synthetic", SPEC];
    let with = |rest: &[&'static str]| [&synthetic[..], rest].concat();
    check(
        &with(&["--prefill", "0", "--decode", "0"]),
        2,
        "nothing to measure",
    );
    check(&with(&["--batch", "1,0"]), 2, "--batch");
    check(&with(&["--repeat", "0"]), 2, "--repeat");
    check(&with(&["--model", "x.st"]), 2, "exclude each other");
    check(&with(&["--profile"]), 1, "timestamps");
    check(&with(&["--prune", "0.5"]), 1, "choose a GPU");
    check(&with(&["--prune", "0.5,1"]), 2, "from 0 to less than 1");
    check(&with(&["--prune", "0.5", "--quant", "q8_0"]), 2, "--quant");
    check(&["--synthetic", "v9:2x64"], 2, "version");
}

/// Some layers on the GPU: what is read and held is that of both devices, and no copy is compared with it.
#[test]
fn layers_on_two_devices() {
    let gpu = gpu();
    let measured = |more: &[&str]| -> Value {
        let args = ["--synthetic", SPEC, "--prefill", "8", "--decode", "3"];
        let device = ["--repeat", "1", "--device", &gpu, "--json"];
        let all = stdout(&[&args[..], &device, more].concat());
        serde_json::from_str(&all).unwrap()
    };
    let (whole, split) = (measured(&[]), measured(&["--gpu-layers", "1"]));
    let name = split["device"]["name"].as_str().unwrap();
    assert!(
        name.starts_with("1 layer on ") && name.contains(", 1 on CPU ("),
        "{name}"
    );
    assert_eq!(split["copy"], Value::Null);
    let bytes = |report: &Value| report["device_memory"]["used_bytes"].as_u64().unwrap();
    assert!(bytes(&split) > 0 && bytes(&split) < bytes(&whole));
    for (workload, of_whole) in [0, 1].map(|at| (&split["workloads"][at], &whole["workloads"][at]))
    {
        assert_eq!(workload["name"], of_whole["name"]);
        assert!(
            workload["tokens_per_second"]["median"].as_f64().unwrap() > 0.0,
            "{workload}"
        );
        assert_eq!(workload["share_of_copy_bandwidth"], Value::Null);
        let dispatches = |report: &Value| report["launches"]["dispatches"].as_u64().unwrap();
        assert!(
            (1..dispatches(of_whole)).contains(&dispatches(workload)),
            "{workload}"
        );
        for same in ["steps", "tokens", "weight_bytes_per_token"] {
            assert_eq!(workload[same], of_whole[same], "{same}");
        }
    }
}

/// Requests of a made-up trace and of a file go through the engine; what is counted is what was asked for.
#[test]
fn traces_are_served() {
    let serve = |args: &[&str]| -> Value {
        let mut all = vec![
            "--synthetic",
            SPEC,
            "--device",
            "cpu",
            "--json",
            "--batch",
            "3",
        ];
        all.extend(args);
        serde_json::from_str(&stdout(&all)).expect("JSON")
    };
    let mut args = vec![
        "--serve-trace",
        "synthetic",
        "--rate",
        "200",
        "--burst",
        "4",
    ];
    args.extend(["--requests", "12", "--prefill", "20", "--decode", "6"]);
    let report = serve(&args);
    assert_eq!(report["requests"], 12);
    assert_eq!(report["slots"], 3);
    let number = |report: &Value, name: &str| report[name].as_f64().expect("a number");
    for time in ["first_token_ms", "between_tokens_ms"] {
        let times = ["median", "p90", "p99", "max"].map(|p| number(&report[time], p));
        assert!(times.is_sorted() && times[0] > 0.0, "{time}: {times:?}");
    }
    let batch = number(&report, "mean_batch");
    assert!((1.0..=3.0).contains(&batch), "{batch}");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("trace.jsonl");
    let lines =
        "{\"at\": 0.2, \"prompt\": 5, \"tokens\": 7}\n{\"at\": 0, \"prompt\": 30, \"tokens\": 4}\n";
    std::fs::write(&path, lines).expect("a file");
    let report = serve(&["--serve-trace", path.to_str().expect("UTF-8")]);
    assert_eq!(report["requests"], 2);
    let [seconds, speed] = ["seconds", "tokens_per_second"].map(|name| number(&report, name));
    assert!(
        (seconds * speed - 11.0).abs() < 1e-6,
        "{seconds} s, {speed}"
    );
    assert!(seconds >= 0.2);
    // And as text.
    args.extend(["--synthetic", SPEC, "--device", "cpu"]);
    let text = stdout(&args);
    assert!(text.contains("between tokens"), "{text}");
    for wrong in [
        ["--serve-trace", "synthetic", "--rate", "0"],
        ["--serve-trace", "synthetic", "--rate", "fast"],
        ["--serve-trace", "synthetic", "--prune", "0.5"],
    ] {
        let output = bench(&wrong);
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
    }
    let output = bench(&[
        "--synthetic",
        SPEC,
        "--device",
        "cpu",
        "--serve-trace",
        "no/such",
    ]);
    assert_eq!(output.status.code(), Some(1));
}

/// One adapter opened twice, or with the processor: each way of sharing is measured, and mistakes are told.
#[test]
fn several_devices() {
    let gpu = gpu();
    for (devices, share, name) in [
        (format!("{gpu},{gpu}"), "layers", "1 layer on "),
        (format!("{gpu},cpu"), "layers", "1 layer on "),
        (format!("{gpu},{gpu}"), "sequences", "2 replicas: "),
    ] {
        let report = stdout(&[
            "--synthetic",
            SPEC,
            "--device",
            &devices,
            "--share",
            share,
            "--prefill",
            "40",
            "--prompts",
            "3",
            "--decode",
            "4",
            "--batch",
            "4",
            "--repeat",
            "1",
            "--json",
        ]);
        let report: Value = serde_json::from_str(&report).unwrap();
        let device = report["device"]["name"].as_str().unwrap();
        assert!(device.starts_with(name), "{device}");
        // Weights are read at no one device's pace.
        assert!(report["copy"].is_null());
        let workloads = report["workloads"].as_array().unwrap();
        let of = |n: usize, key: &str| workloads[n][key].as_u64().unwrap();
        assert_eq!([of(0, "batch"), of(0, "tokens")], [3, 120]);
        assert_eq!([of(1, "batch"), of(1, "tokens")], [4, 16]);
        for workload in workloads {
            positive(&workload["tokens_per_second"]["median"]);
        }
    }
    let both = format!("{gpu},{gpu}");
    let output = bench(&["--synthetic", SPEC, "--device", &both, "--gpu-layers", "1"]);
    assert_eq!(output.status.code(), Some(2));
    let text = text(&output.stderr);
    assert!(text.contains("--gpu-layers is for one GPU"), "{text}");
}
