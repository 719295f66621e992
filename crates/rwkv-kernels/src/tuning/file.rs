//! Choices as a file: JSON with a row for each problem.

use super::{Choice, Choices, Problem};
use serde::{Deserialize, Serialize};

/// What choices depend on besides the adapter and its driver: this crate, and every kernel's text.
pub const VERSION: &str = concat!(
    "rwkv-kernels ",
    env!("CARGO_PKG_VERSION"),
    " ",
    include_str!(concat!(env!("OUT_DIR"), "/kernels.hash"))
);

#[derive(Serialize, Deserialize)]
struct File {
    version: String,
    choices: Vec<Row>,
}

#[derive(Serialize, Deserialize)]
struct Row {
    #[serde(flatten)]
    problem: Problem,
    choice: Option<Choice>,
}

impl Choices {
    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let rows = self.0.iter().map(|(problem, choice)| Row {
            problem: problem.clone(),
            choice: *choice,
        });
        let mut choices: Vec<Row> = rows.collect();
        choices.sort_by(|a, b| a.problem.cmp(&b.problem));
        let file = File {
            version: VERSION.to_owned(),
            choices,
        };
        // Maps with keys that are no strings cannot be written; here are none.
        serde_json::to_vec_pretty(&file).unwrap_or_default()
    }

    /// What [`encode`](Self::encode) wrote, or none: bytes that are damaged or of another version.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let file: File = serde_json::from_slice(bytes).ok()?;
        let rows = file.choices.into_iter();
        (file.version == VERSION).then(|| Self(rows.map(|r| (r.problem, r.choice)).collect()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::tuning::Tunable;
    use proptest::prelude::*;

    fn some() -> Choices {
        let mut choices = Choices::default();
        for kernel in [
            Tunable::NormProject,
            Tunable::SparseMatvec,
            Tunable::Wkv7Step,
            Tunable::Wkv7Output,
            Tunable::Matmul,
        ] {
            let problem = Problem {
                kernel,
                format: "q4_k".to_owned(),
                rows: 65_536,
                cols: 768,
                tokens: 1,
            };
            for (at, choice) in problem.candidates().into_iter().enumerate() {
                let rows = problem.rows + at;
                let problem = Problem {
                    rows,
                    ..problem.clone()
                };
                choices.set(problem, (at > 0).then_some(choice));
            }
        }
        choices
    }

    #[test]
    fn comes_back() {
        let choices = some();
        assert!(choices.len() > 10);
        assert_eq!(Choices::decode(&choices.encode()), Some(choices));
        let none = Choices::default();
        assert_eq!(Choices::decode(&none.encode()), Some(none));
    }

    #[test]
    fn other_versions_are_left_out() {
        let text = String::from_utf8(some().encode()).unwrap();
        let other = text.replace(VERSION, "rwkv-kernels 0.0.1 0");
        assert_ne!(other, text);
        assert_eq!(Choices::decode(other.as_bytes()), None);
    }

    proptest! {
        /// A damaged file gives nothing, or choices; never a panic.
        #[test]
        fn damage_is_harmless(at: prop::sample::Index, byte: u8, cut: prop::sample::Index) {
            let mut bytes = some().encode();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = Choices::decode(&bytes);
            bytes.truncate(cut.index(bytes.len()));
            prop_assert_eq!(Choices::decode(&bytes), None);
        }
    }
}
