//! What of a mapped file is in memory: the system is told what has been read and is of no more use.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests fail by panicking; sizes are small"
)]

#[path = "support/checkpoint.rs"]
mod checkpoint;

use checkpoint::{Small, safetensors};
use rwkv_kernels::Format;
use rwkv_model::ModelFile;
use rwkv_sched::{Model, Weight};
use std::{
    path::Path,
    time::{Duration, Instant},
};

/// About 12 million parameters.
const MIDDLE: Small = Small {
    layers: 12,
    width: 256,
    head_size: 64,
    ffn: 1024,
    vocab: 2048,
    ranks: [64, 64, 32, 128],
};

/// A sum over all bytes of each tensor.
fn sums(model: &Model) -> Vec<(Weight, u64)> {
    let sum = |weight: Weight| {
        let mut sum = 0;
        let rows = model.weights().describe(weight).unwrap().1.rows.0;
        let read = &mut |matrix: &rwkv_kernels::Matrix<'_>| {
            sum += matrix.bytes().iter().map(|b| u64::from(*b)).sum::<u64>();
            Ok(())
        };
        model.weights().with_rows(weight, 0..rows, read).unwrap();
        sum
    };
    let tensors = model.tensors().into_iter();
    tensors.map(|weight| (weight, sum(weight))).collect()
}

/// Bytes of the file's pages that this process has mapped, where the system tells: Linux's proc(5).
fn resident(path: &Path) -> Option<u64> {
    let maps = std::fs::read_to_string("/proc/self/smaps").ok()?;
    let name = path.to_str()?;
    let of_file = maps.lines().skip_while(|line| !line.ends_with(name));
    let line = of_file.into_iter().find_map(|l| l.strip_prefix("Rss:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes << 10)
}

/// What is [`resident`] once that is as it should be, or after some minutes of doing `more` for it.
fn settled(path: &Path, done: impl Fn(u64) -> bool, more: impl Fn()) -> Option<u64> {
    let start = Instant::now();
    loop {
        let now = resident(path);
        if now.is_none_or(&done) || start.elapsed() > Duration::from_mins(10) {
            return now;
        }
        more();
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whatever is said of tensors, they read the same; and pages of those that are of no more use go.
#[test]
fn pages_go_and_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("middle.safetensors");
    std::fs::write(&path, safetensors(&MIDDLE.original(7), Format::F16)).unwrap();
    let bytes = std::fs::metadata(&path).unwrap().len();
    let model = ModelFile::open(&path).unwrap().model().unwrap();
    let tell = |of: &dyn Fn(Weight)| model.tensors().into_iter().for_each(of);
    tell(&|weight| model.weights().will_need(weight));
    let want = sums(&model);
    // Where memory is short, the system takes pages back that were read before.
    let before = settled(&path, |n| n > bytes / 2, || drop(sums(&model)));
    assert!(
        before.is_none_or(|n| n > bytes / 2),
        "{before:?} of {bytes}"
    );
    tell(&|weight| model.weights().wont_need(weight));
    // Other threads tell the system.
    let after = settled(&path, |n| n <= bytes / 10, || ());
    assert_eq!(before.is_some(), cfg!(target_os = "linux"));
    assert!(
        after.is_none_or(|n| n <= bytes / 10),
        "{after:?} of {bytes}"
    );
    assert!(sums(&model) == want);
}
