//! What is written is read back the same, leaves nothing when it fails, and what cannot be written says why.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests fail by panicking; sizes are small"
)]

#[path = "../support/checkpoint.rs"]
mod checkpoint;
mod conversions;
mod failures;
#[path = "../support/logits.rs"]
mod logits;
mod synthetic;
mod versions;
mod weight_types;

use logits::logits;
use rwkv_model::{
    ModelFile,
    export::{self, Progress},
};
use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
};

fn onward(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// A folder with the small model as `name`, and a vocabulary for it.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        std::fs::write(
            folder.path("vocab.txt"),
            "1 'a' 1\n2 \"it's\" 4\n7 b'\\xff\\n' 2\n",
        )
        .unwrap();
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn add(&self, name: &str, bytes: &[u8]) -> PathBuf {
        std::fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }

    /// The names of all files.
    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> = entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

/// How far `got` is from `want`: root mean square of the difference, relative to that of `want`.
fn distance(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let square = |x: f32| f64::from(x) * f64::from(x);
    let error: f64 = got.iter().zip(want).map(|(g, w)| square(g - w)).sum();
    let size: f64 = want.iter().map(|w| square(*w)).sum();
    (error / size).sqrt()
}

/// Writes `input` as `output`, quantized if a type is named, and reads it back: every tensor is in the format that was
/// announced, and the logits are as far from the source's as `within` says.
#[track_caller]
fn check(
    input: &Path,
    output: &Path,
    quantization: Option<&str>,
    within: std::ops::RangeInclusive<f64>,
) -> ModelFile {
    let row = format!(
        "{} to {}, {quantization:?}",
        input.display(),
        output.display()
    );
    let written = match quantization {
        None => export::convert(input, output, None, &mut onward),
        Some(q) => export::quantize(input, output, &q.parse().unwrap(), None, &mut onward),
    };
    let written = written.unwrap_or_else(|error| panic!("{row}: {error}"));
    let file = ModelFile::open(output).unwrap();
    let source = ModelFile::open(input).unwrap();
    assert_eq!(file.config(), source.config(), "{row}");
    assert_eq!(file.tensors().len(), written.tensors.len(), "{row}");
    for tensor in &written.tensors {
        let there = file.checkpoint().tensor(&tensor.name).unwrap();
        let name = &tensor.name;
        assert_eq!(there.format().unwrap(), tensor.format, "{row}: {name}");
        assert_eq!(there.bytes.len() as u64, tensor.bytes, "{row}: {name}");
    }
    let logits = [&file, &source].map(logits);
    assert!(logits.iter().flatten().all(|x| x.is_finite()), "{row}");
    let distance = distance(&logits[0], &logits[1]);
    assert!(
        within.contains(&distance),
        "{row}: logits {distance:.2e} away, where {within:?} is expected"
    );
    file
}
