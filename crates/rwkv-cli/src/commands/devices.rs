//! `rwkv-cli devices`: what can run a model here.

use crate::{args::DevicesArgs, output};
use anyhow::Result;
use rwkv_gpu::{AdapterSummary, list_adapters};
use serde::Serialize;
use std::{io::Write, process::ExitCode};

#[derive(Serialize)]
struct Row {
    /// What `--device` takes.
    device: String,
    name: String,
    kind: String,
    backend: String,
    driver: String,
    features: Vec<String>,
    /// Bytes of a tensor that need not be cut.
    largest_binding: Option<u64>,
    refused: Option<String>,
}

pub(crate) fn run(args: &DevicesArgs) -> Result<ExitCode> {
    let mut rows: Vec<_> = list_adapters().iter().map(row).collect();
    rows.push(cpu());
    let mut out = std::io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &rows)?;
        writeln!(out)?;
    } else {
        for row in &rows {
            let what = [&row.kind, &row.backend, &row.driver];
            let what: Vec<_> = what
                .into_iter()
                .filter(|text| !text.is_empty())
                .map(String::as_str)
                .collect();
            writeln!(out, "{:<4} {} ({})", row.device, row.name, what.join(", "))?;
            match &row.refused {
                Some(reason) => writeln!(out, "     cannot be used: {reason}")?,
                None if row.features.is_empty() => {}
                None => writeln!(out, "     {}", row.features.join(", "))?,
            }
        }
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// The CPU executor.
fn cpu() -> Row {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    Row {
        device: "cpu".to_owned(),
        name: "the CPU executor".to_owned(),
        kind: format!("{threads} threads"),
        backend: String::new(),
        driver: String::new(),
        features: Vec::new(),
        largest_binding: None,
        refused: None,
    }
}

fn row(adapter: &AdapterSummary) -> Row {
    let have = &adapter.capabilities;
    let mut features = Vec::new();
    if let Some(sizes) = have.subgroups {
        let range = if sizes.min == sizes.max {
            sizes.min.to_string()
        } else {
            format!("{}–{}", sizes.min, sizes.max)
        };
        features.push(format!("subgroups of {range}"));
    }
    let named = [
        (have.f16, "f16"),
        (have.float_atomics, "float atomics"),
        (
            !have.cooperative_matrices.is_empty(),
            "cooperative matrices",
        ),
        (have.timestamps, "timestamps"),
        (have.pipeline_cache, "pipeline cache"),
        (have.mappable_buffers, "mappable buffers"),
    ];
    features.extend(
        named
            .iter()
            .filter(|(there, _)| *there)
            .map(|(_, name)| (*name).to_owned()),
    );
    features.push(format!(
        "tensors up to {} in one piece",
        output::bytes(have.limits.binding_bytes)
    ));
    Row {
        device: adapter.index.to_string(),
        name: adapter.name.clone(),
        kind: adapter.kind.to_string(),
        backend: adapter.backend.clone(),
        driver: adapter.driver.clone(),
        features,
        largest_binding: Some(have.limits.binding_bytes),
        refused: adapter.refused.clone(),
    }
}
