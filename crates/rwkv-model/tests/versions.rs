//! Every version of RWKV against the float64 reference, on small models of awkward shapes: the committed ones with
//! their golden logits, and new random ones where Python with numpy is there to run the reference.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "tests fail by panicking"
)]
#![allow(
    clippy::cast_possible_truncation,
    reason = "token numbers and counts are small"
)]

mod support;

use rwkv_sched::{Device, Executor, SlotId, Wanted};
use std::{ops::ControlFlow, path::Path, process::Command};

const VERSIONS: [&str; 7] = ["v4", "v5.0", "v5.1", "v5.2", "v6", "v7", "v7a"];
const SLOT: SlotId = SlotId(0);

/// Tokens, and the logits after each of them.
struct Golden {
    tokens: Vec<u32>,
    logits: Vec<Vec<f64>>,
}

impl Golden {
    fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).expect("golden logits");
        let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let list = |value: &serde_json::Value| value.as_array().expect("a list").clone();
        Self {
            tokens: list(&json["tokens"])
                .iter()
                .map(|t| t.as_u64().unwrap() as u32)
                .collect(),
            logits: list(&json["logits"])
                .iter()
                .map(|row| list(row).iter().map(|x| x.as_f64().unwrap()).collect())
                .collect(),
        }
    }
}

/// The logits after each token, fed `chunk` at a time.
fn run(executor: &mut dyn Executor, tokens: &[u32], chunk: usize) -> Vec<Vec<f32>> {
    executor.reset(SLOT).unwrap();
    let mut rows: Vec<Vec<f32>> = Vec::new();
    let mut keep = |_, logits: &rwkv_sched::Logits| {
        rows.extend(logits.rows().map(<[f32]>::to_vec));
        ControlFlow::Continue(())
    };
    rwkv_sched::prefill(executor, SLOT, tokens, chunk, Wanted::All, &mut keep).unwrap();
    rows
}

/// Checks the model at `path` on the CPU, within rounding of f32, and on the GPU, within that of f16 weights.
fn check(path: &Path, golden: &Golden) {
    for (device, bound) in [(Device::Cpu, 2e-5), (support::gpu(), 2e-3)] {
        let mut executor = support::open(path, &device);
        for chunk in [1, 5, usize::MAX] {
            let rows = run(executor.as_mut(), &golden.tokens, chunk);
            assert_eq!(rows.len(), golden.logits.len());
            for (at, (got, want)) in rows.iter().zip(&golden.logits).enumerate() {
                let difference = |(g, w): (&f32, &f64)| (f64::from(*g) - w).powi(2);
                let error: f64 = got.iter().zip(want).map(difference).sum();
                let size: f64 = want.iter().map(|w| w * w).sum();
                let error = (error / size).sqrt();
                assert!(
                    got.len() == want.len() && error <= bound,
                    "{} on {}, chunks of {chunk}, token {at}: relative error {error:.1e}",
                    path.display(),
                    executor.device()
                );
            }
        }
    }
}

#[test]
fn committed_models() {
    for version in VERSIONS {
        let file = |end: &str| support::own(&format!("tests/golden/versions/{version}.{end}"));
        check(&file("safetensors"), &Golden::read(&file("json")));
    }
}

/// Random shapes and values each time the seed changes. Python with numpy makes the models and runs the reference;
/// without it the committed models are all there is.
#[test]
fn new_models() {
    let numpy = Command::new("python3")
        .args(["-c", "import numpy"])
        .output();
    if !numpy.is_ok_and(|o| o.status.success()) {
        eprintln!("no Python with numpy: only the committed models were compared");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let seed = std::env::var("RWKV_TEST_SEED").unwrap_or_else(|_| "1".to_owned());
    let made = Command::new("python3")
        .arg(support::own("tests/golden/make_versions.py"))
        .arg(folder.path())
        .args(["--random-shapes", &seed])
        .output()
        .unwrap();
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    for version in VERSIONS {
        let file = |end: &str| folder.path().join(format!("{version}.{end}"));
        check(&file("safetensors"), &Golden::read(&file("json")));
    }
}
