//! What ran when on the GPU, as a file for Perfetto or Chrome: JSON of "complete" events (Trace Event Format, `ph: "X"`,
//! times in microseconds), a process for each workload.

use anyhow::{Context, Result};
use rwkv_model::output_file::OutputFile;
use rwkv_sched::StepTimes;
use serde_json::{Value, json};
use std::path::Path;

/// Writes the steps of each named workload to `path`, which appears when it is complete.
pub(super) fn write(path: &Path, workloads: &[(String, Vec<StepTimes>)]) -> Result<()> {
    let context = || format!("cannot write the trace to {}", path.display());
    let mut file = OutputFile::create(path).with_context(context)?;
    serde_json::to_writer(file.writer(), &events(workloads)).with_context(context)?;
    file.finish().with_context(context)?;
    Ok(())
}

fn events(workloads: &[(String, Vec<StepTimes>)]) -> Value {
    let mut events = Vec::new();
    for (process, (name, steps)) in (1u32..).zip(workloads) {
        events.push(json!({
            "ph": "M", "name": "process_name", "pid": process, "tid": 1, "args": { "name": name },
        }));
        events.push(json!({
            "ph": "M", "name": "thread_name", "pid": process, "tid": 1, "args": { "name": "GPU" },
        }));
        // The driver's origin is of no interest; each workload begins at 0.
        let spans = || steps.iter().flat_map(|step| &step.spans);
        let origin = spans().map(|s| s.begin).reduce(f64::min).unwrap_or(0.0);
        for (index, step) in steps.iter().enumerate() {
            for span in &step.spans {
                events.push(json!({
                    "ph": "X",
                    "cat": "kernel",
                    "name": span.name,
                    "pid": process,
                    "tid": 1,
                    "ts": (span.begin - origin) * 1e6,
                    "dur": span.seconds() * 1e6,
                    "args": { "step": index },
                }));
            }
        }
    }
    json!({ "displayTimeUnit": "ns", "traceEvents": events })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use rwkv_gpu::TimedSpan;

    #[test]
    fn complete_events_from_zero() {
        let span = |name: &str, begin, end| TimedSpan {
            name: name.to_owned(),
            begin,
            end,
        };
        let steps = vec![
            StepTimes {
                spans: vec![span("a \"b\"", 100.0, 100.5)],
            },
            StepTimes {
                spans: vec![span("c", 101.0, 101.25)],
            },
        ];
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace.json");
        write(&path, &[("decode".to_owned(), steps)]).unwrap();
        let value: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let kernels: Vec<_> = value["traceEvents"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|e| e["ph"] == "X")
            .map(|e| {
                (
                    e["name"].as_str().unwrap(),
                    e["ts"].as_f64(),
                    e["dur"].as_f64(),
                )
            })
            .collect();
        assert_eq!(
            kernels,
            [
                ("a \"b\"", Some(0.0), Some(5e5)),
                ("c", Some(1e6), Some(2.5e5))
            ]
        );
        // Nothing else is left in the folder.
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(write(&folder.path().join("no/such"), &[]).is_err());
    }
}
