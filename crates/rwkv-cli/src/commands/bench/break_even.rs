//! From which density on sparse matrices are faster: a pruned model measured with dense matrices and with sparse ones.

use super::{
    Subject, measure,
    measure::{Interrupted, Workload},
    model,
    report::Report,
    show, text,
};
use crate::{args::BenchArgs, interrupt::Interrupt, open};
use anyhow::Result;
use rwkv_sched::{Device, SparseWeights};
use serde::Serialize;

/// Each share, in the order in which they were asked for.
#[derive(Serialize)]
pub(super) struct BreakEven {
    pub(super) shares: Vec<Share>,
}

/// A model pruned by a share.
#[derive(Serialize)]
pub(super) struct Share {
    /// From 0 to 1: the share of elements of each matrix of a layer that was made zero.
    pub(super) pruned: f64,
    /// With all matrices dense: the value matrix of the channel mix lies input by input.
    pub(super) dense: Report,
    /// With all pruned matrices as compressed sparse rows, whatever their density.
    pub(super) csr: Report,
}

/// Measures each share twice.
pub(super) fn run(args: &BenchArgs, workloads: &[Workload], interrupt: &Interrupt) -> Result<()> {
    let (name, model) = model(args)?;
    let devices = open::devices(&args.device)?;
    anyhow::ensure!(
        devices
            .iter()
            .all(|device| matches!(device, Device::Gpu(_))),
        "--prune compares how a GPU keeps matrices, and the CPU uses them as they are; choose a GPU with --device"
    );
    let mut shares = Vec::new();
    for ratio in &args.prune {
        let pruned = model.pruned(*ratio);
        let measured = |sparse| -> Result<Report> {
            if interrupt.pressed() {
                return Err(Interrupted.into());
            }
            let subject = Subject {
                name: name.clone(),
                model: &pruned,
                devices: &devices,
                sparse,
            };
            Ok(measure(args, &subject, workloads, interrupt)?.0)
        };
        shares.push(Share {
            pruned: ratio.share(),
            dense: measured(SparseWeights::Never)?,
            csr: measured(SparseWeights::Always)?,
        });
    }
    show(args, &BreakEven { shares }, text::of_pruned)
}
