//! Where a round's time went, kernel by kernel.

use rwkv_sched::StepTimes;
use serde::Serialize;
use std::collections::BTreeMap;

/// A kernel's time in a round, by the GPU's clock.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct KernelTime {
    pub(super) name: String,
    /// Launches.
    pub(super) count: u64,
    pub(super) total_microseconds: f64,
    /// Among all kernels, from 0 to 1.
    pub(super) share: f64,
    pub(super) mean_microseconds: f64,
}

/// The kernels of `steps`, the longest in all first.
pub(super) fn table(steps: &[StepTimes]) -> Vec<KernelTime> {
    let mut sums: BTreeMap<&str, (u64, f64)> = BTreeMap::new();
    for span in steps.iter().flat_map(|step| &step.spans) {
        let sum = sums.entry(&span.name).or_default();
        sum.0 += 1;
        sum.1 += span.seconds() * 1e6;
    }
    let all: f64 = sums.values().map(|(_, total)| total).sum();
    let mut rows: Vec<_> = sums
        .into_iter()
        .map(|(name, (count, total))| KernelTime {
            name: name.to_owned(),
            count,
            total_microseconds: total,
            share: if all > 0.0 { total / all } else { 0.0 },
            mean_microseconds: total / count as f64,
        })
        .collect();
    rows.sort_by(|a, b| b.total_microseconds.total_cmp(&a.total_microseconds));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use rwkv_gpu::TimedSpan;

    #[test]
    fn sums_by_name() {
        let step = |spans: &[(&str, f64, f64)]| StepTimes {
            spans: spans
                .iter()
                .map(|&(name, begin, end)| TimedSpan {
                    name: name.to_owned(),
                    begin,
                    end,
                })
                .collect(),
        };
        let rows = table(&[
            step(&[("norm", 0.0, 1.0), ("matvec", 1.0, 3.0)]),
            step(&[("matvec", 8.0, 12.0), ("norm", 13.0, 12.0)]),
        ]);
        let rows: Vec<_> = rows
            .iter()
            .map(|r| (r.name.as_str(), r.count, r.total_microseconds.round()))
            .collect();
        assert_eq!(rows, [("matvec", 2, 6e6), ("norm", 2, 1e6)]);
        assert!(table(&[]).is_empty());
        assert!(table(&[step(&[("idle", 1.0, 1.0)])])[0].share.abs() < 1e-12);
    }
}
