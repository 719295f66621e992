//! Whole models against the float64 reference: golden logits and greedy continuations.
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

use rwkv_sched::{Batch, Device, Executor, SlotId, Wanted};
use serde_json::Value;
use std::{ops::ControlFlow, path::Path};

/// How far logits may be from the golden ones.
#[derive(Clone, Copy)]
enum Bound {
    /// The largest difference of one logit.
    Absolute(f64),
    /// ‖difference‖ / ‖golden‖.
    Relative(f64),
}

const SLOT: SlotId = SlotId(0);
/// One token at a time, uneven chunks, and everything at once.
const CHUNKS: [usize; 5] = [1, 7, 32, 100, usize::MAX];

/// The small trained models.
const FIXTURES: [&str; 3] = [
    "tiny-rwkv-5v2-730K",
    "tiny-rwkv-6v0-3m",
    "tiny-rwkv-7v0-834K",
];

fn floats(value: &Value) -> Vec<f64> {
    value
        .as_array()
        .expect("a list of numbers")
        .iter()
        .map(|x| x.as_f64().expect("a number"))
        .collect()
}

fn tokens(value: &Value) -> Vec<u32> {
    floats(value).into_iter().map(|x| x as u32).collect()
}

/// The largest error of any logit.
#[track_caller]
fn compare(what: &str, got: &[f32], want: &[f64], bound: Bound) -> f64 {
    assert_eq!(got.len(), want.len(), "{what}");
    let differences: Vec<f64> = got
        .iter()
        .zip(want)
        .map(|(g, w)| f64::from(*g) - w)
        .collect();
    let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
    let largest =
        differences.iter().fold(
            0.0f64,
            |m, d| if d.is_nan() { f64::NAN } else { m.max(d.abs()) },
        );
    let (error, allowed) = match bound {
        Bound::Absolute(allowed) => (largest, allowed),
        Bound::Relative(allowed) => (norm(&differences) / norm(want), allowed),
    };
    assert!(
        error <= allowed,
        "{what}: error {error:.3e}, allowed {allowed:.1e}"
    );
    largest
}

/// Runs every case of `golden` on `executor`, fed in chunks of `chunk`.
fn check(executor: &mut dyn Executor, golden: &Value, chunk: usize, bound: Bound) {
    for case in golden["cases"].as_array().expect("cases") {
        let name = format!(
            "{} on {}, chunks of {chunk}",
            case["name"],
            executor.device()
        );
        let prompt = tokens(&case["tokens"]);
        executor.reset(SLOT).unwrap();
        let mut rows: Vec<Vec<f32>> = Vec::new();
        rwkv_sched::prefill(
            executor,
            SLOT,
            &prompt,
            chunk,
            Wanted::All,
            &mut |_, logits| {
                rows.extend(logits.rows().map(<[f32]>::to_vec));
                ControlFlow::Continue(())
            },
        )
        .unwrap();
        assert_eq!(rows.len(), prompt.len(), "{name}");
        for early in case["earlier"].as_array().into_iter().flatten() {
            let after = early["after"].as_u64().unwrap() as usize;
            compare(
                &format!("{name}, after {after}"),
                &rows[after - 1],
                &floats(&early["logits"]),
                bound,
            );
        }
        let largest = compare(&name, rows.last().unwrap(), &floats(&case["logits"]), bound);
        if chunk == usize::MAX {
            greedy(executor, &name, case, rows.last().unwrap().clone(), largest);
        }
    }
}

/// The most probable continuation, as far as the margin between the best two logits is larger than what the error of
/// both may make up; the error is taken as ten times the one seen on the prompt's last logits.
fn greedy(
    executor: &mut dyn Executor,
    name: &str,
    case: &Value,
    mut logits: Vec<f32>,
    largest: f64,
) {
    let Some(margin) = case["smallest_margin"]
        .as_f64()
        .filter(|m| *m > 10.0 * largest)
    else {
        return;
    };
    for want in tokens(&case["greedy"]) {
        let best = logits
            .iter()
            .enumerate()
            .max_by(|a, b| a.1.total_cmp(b.1))
            .map(|(i, _)| i as u32);
        assert_eq!(
            best,
            Some(want),
            "{name}: greedy continuation, smallest margin {margin}"
        );
        let next = executor
            .run(&Batch::single(SLOT, &[want], Wanted::Last))
            .unwrap();
        logits = next.last().unwrap().to_vec();
    }
}

fn check_file(model: &Path, golden: &Path, device: &Device, bound: Bound) {
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(golden).unwrap()).unwrap();
    let mut executor = support::open(model, device);
    for chunk in CHUNKS {
        check(executor.as_mut(), &golden, chunk, bound);
    }
}

/// The demo model, always; the small trained models of the development folder, where it is.
fn check_all(device: &Device, bound: Bound) {
    check_file(
        &support::own("assets/demo/demo.gguf"),
        &support::own("tests/golden/demo.json"),
        device,
        bound,
    );
    for name in FIXTURES {
        let Some(model) = support::shared(&format!("fixtures/{name}.safetensors")) else {
            continue;
        };
        let golden = support::shared(&format!("fixtures/{name}.golden.json"))
            .expect("golden logits beside it");
        check_file(&model, &golden, device, bound);
    }
}

/// f32 rounding over 8 layers, and the golden file's six decimals.
#[test]
fn cpu() {
    check_all(&Device::Cpu, Bound::Absolute(1e-4));
}

/// f32 weights become f16 on the GPU.
#[test]
fn gpu() {
    check_all(&support::gpu(), Bound::Relative(2e-3));
}
