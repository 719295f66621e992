//! When requests come, and how long they are: from a file, or made up.

use anyhow::{Context, Result, ensure};
use rwkv_sched::sampling::uniform;
use serde::Deserialize;
use std::path::Path;

/// A request of a trace.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub(super) struct Arrival {
    /// Seconds after the beginning.
    pub(super) at: f64,
    /// Tokens of its prompt.
    pub(super) prompt: u32,
    /// Tokens to generate.
    pub(super) tokens: u32,
}

/// Longest trace, in requests.
const MOST: usize = 1_000_000;

/// The arrivals that a file has, one a line, in JSON: `{"at": 0.25, "prompt": 512, "tokens": 128}`.
pub(super) fn read(path: &Path) -> Result<Vec<Arrival>> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the trace {}", path.display()))?;
    let mut arrivals = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim().is_empty() {
            continue;
        }
        let place = || format!("{}, line {number}", path.display());
        let arrival: Arrival = serde_json::from_str(line).with_context(place)?;
        let plausible = arrival.at.is_finite() && (0.0..1e7).contains(&arrival.at);
        ensure!(
            plausible && arrival.prompt > 0 && arrival.tokens > 0,
            "{}: `at` must be seconds from 0 on, `prompt` and `tokens` at least 1",
            place()
        );
        arrivals.push(arrival);
        ensure!(
            arrivals.len() <= MOST,
            "{}: more than {MOST} requests",
            place()
        );
    }
    ensure!(!arrivals.is_empty(), "{} has no requests", path.display());
    arrivals.sort_by(|a, b| a.at.total_cmp(&b.at));
    Ok(arrivals)
}

/// What a made-up trace is like.
#[derive(Clone, Copy, Debug)]
pub(super) struct Synthetic {
    pub(super) requests: u32,
    /// A second, on average.
    pub(super) rate: f64,
    /// So many come at once.
    pub(super) burst: u32,
    /// Means; lengths lie evenly between half and one and a half times as many.
    pub(super) prompt: u32,
    pub(super) tokens: u32,
}

impl Synthetic {
    /// A Poisson process of bursts. The same numbers give the same arrivals.
    pub(super) fn arrivals(self) -> Vec<Arrival> {
        let mut draws = (0u64..).map(|step| f64::from(uniform(0, step)));
        let mut draw = || draws.next().unwrap_or(0.5);
        let mut at = 0.0;
        let mut arrivals = Vec::new();
        for number in 0..self.requests {
            if number > 0 && number.is_multiple_of(self.burst.max(1)) {
                let bursts_a_second = self.rate / f64::from(self.burst.max(1));
                at -= (1.0 - draw()).ln() / bursts_a_second;
            }
            let mut length = |mean: u32| {
                let length = f64::from(mean) * (0.5 + draw());
                #[allow(
                    clippy::cast_possible_truncation,
                    reason = "at most 1.5 · 2^32, which saturates"
                )]
                let length = length.round() as u32;
                length.max(1)
            };
            arrivals.push(Arrival {
                at,
                prompt: length(self.prompt),
                tokens: length(self.tokens),
            });
        }
        arrivals
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn made_up_arrivals_have_the_rate_and_the_lengths() {
        for burst in [1, 10] {
            let arrivals = Synthetic {
                requests: 10_000,
                rate: 20.0,
                burst,
                prompt: 100,
                tokens: 40,
            }
            .arrivals();
            assert_eq!(arrivals.len(), 10_000);
            assert!(arrivals.is_sorted_by(|a, b| a.at <= b.at));
            // Some 1,000 exponential times at least: 3 % are a standard deviation.
            let seconds = arrivals.last().unwrap().at;
            assert!((seconds / 500.0 - 1.0).abs() < 0.15, "{seconds}");
            let mean = |of: fn(&Arrival) -> u32| {
                arrivals.iter().map(|a| f64::from(of(a))).sum::<f64>() / 10_000.0
            };
            assert!((mean(|a| a.prompt) - 100.0).abs() < 2.0);
            assert!((mean(|a| a.tokens) - 40.0).abs() < 1.0);
            assert!(arrivals.iter().all(|a| (50..=150).contains(&a.prompt)));
            let together = arrivals.iter().filter(|a| a.at <= arrivals[0].at).count();
            assert_eq!(together, burst as usize);
        }
    }

    #[test]
    fn traces_are_read_and_checked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace.jsonl");
        let read_text = |text: &str| {
            std::fs::write(&path, text).unwrap();
            read(&path).map_err(|error| format!("{error:#}"))
        };
        let two = "{\"at\": 2, \"prompt\": 3, \"tokens\": 4}\n\n{\"at\": 0.5, \"prompt\": 1, \"tokens\": 1}\n";
        let first = Arrival {
            at: 0.5,
            prompt: 1,
            tokens: 1,
        };
        let arrivals = read_text(two).unwrap();
        assert_eq!((arrivals.len(), arrivals[0]), (2, first));
        for (text, want) in [
            ("", "no requests"),
            ("{\"at\": 0}", "line 1"),
            ("{\"at\": -1, \"prompt\": 1, \"tokens\": 1}", "`at` must be"),
            ("{\"at\": 1, \"prompt\": 0, \"tokens\": 1}", "at least 1"),
            (
                "{\"at\": 1, \"prompt\": 1, \"tokens\": 1, \"x\": 2}",
                "unknown",
            ),
            ("no", "line 1"),
        ] {
            let error = read_text(text).unwrap_err();
            assert!(error.contains(want), "{text:?}: {error}");
        }
        assert!(read(&folder.path().join("none")).is_err());
    }
}
