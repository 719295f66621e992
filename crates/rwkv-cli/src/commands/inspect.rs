//! `rwkv-cli inspect`: what a model file holds.

use crate::{args::InspectArgs, open, output};
use anyhow::Result;
use rwkv_model::ModelFile;
use rwkv_sched::StateLayout;
use serde::Serialize;
use std::{collections::BTreeMap, io::Write, process::ExitCode};

#[derive(Serialize)]
struct Report {
    file: String,
    version: String,
    parameters: u64,
    layers: usize,
    width: usize,
    heads: usize,
    head_size: usize,
    ffn: usize,
    vocab: usize,
    file_bytes: u64,
    /// Tensors and bytes a format.
    formats: BTreeMap<String, (usize, u64)>,
    state_bytes: u64,
    tokenizer: Result<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tensors: Vec<Tensor>,
}

#[derive(Serialize)]
struct Tensor {
    name: String,
    format: String,
    shape: Vec<usize>,
    bytes: u64,
}

pub(crate) fn run(args: &InspectArgs) -> Result<ExitCode> {
    let file = open::model(&args.model)?;
    // A file that cannot run is told here, too.
    file.model()?;
    let report = report(&file, args);
    let mut out = std::io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
    } else {
        write!(out, "{}", text(&report))?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn report(file: &ModelFile, args: &InspectArgs) -> Report {
    let config = file.config();
    let mut formats: BTreeMap<String, (usize, u64)> = BTreeMap::new();
    let mut tensors = Vec::new();
    for tensor in file.tensors() {
        let format = tensor.kind.to_string();
        let entry = formats.entry(format.clone()).or_default();
        *entry = (entry.0 + 1, entry.1 + tensor.bytes);
        if args.tensors {
            tensors.push(Tensor {
                name: tensor.name,
                format,
                shape: tensor.shape,
                bytes: tensor.bytes,
            });
        }
    }
    Report {
        file: file.checkpoint().source().to_owned(),
        version: config.version.to_string(),
        parameters: file.parameters(),
        layers: config.layers,
        width: config.width,
        heads: config.heads(),
        head_size: config.head_size,
        ffn: config.ffn,
        vocab: config.vocab,
        file_bytes: file.checkpoint().len_bytes(),
        formats,
        state_bytes: StateLayout::of(config).bytes(),
        tokenizer: file
            .tokenizer(args.model.tokenizer.as_deref())
            .map(|t| format!("{} ({} tokens)", t.name(), t.vocab_size()))
            .map_err(|e| e.to_string()),
        tensors,
    }
}

/// The report for people.
fn text(report: &Report) -> String {
    use std::fmt::Write as _;
    let mut out = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{name:<11} {value}");
    };
    line(
        "file",
        format!("{} ({})", report.file, output::bytes(report.file_bytes)),
    );
    line("version", report.version.clone());
    line(
        "parameters",
        format!("{:.1} million", report.parameters as f64 / 1e6),
    );
    line("layers", report.layers.to_string());
    line(
        "width",
        format!(
            "{} ({} heads of {})",
            report.width, report.heads, report.head_size
        ),
    );
    line("ffn", report.ffn.to_string());
    line("vocabulary", report.vocab.to_string());
    match &report.tokenizer {
        Ok(name) => line("tokenizer", name.clone()),
        Err(problem) => line("tokenizer", format!("none: {problem}")),
    }
    for (format, (count, bytes)) in &report.formats {
        line(
            "tensors",
            format!("{count} in {format}, {}", output::bytes(*bytes)),
        );
    }
    line(
        "state",
        format!("{} a sequence", output::bytes(report.state_bytes)),
    );
    for tensor in &report.tensors {
        let shape: Vec<_> = tensor.shape.iter().map(usize::to_string).collect();
        let value = format!(
            "{:<12} {:>10}  {}",
            shape.join("×"),
            output::bytes(tensor.bytes),
            tensor.name
        );
        line(&tensor.format, value);
    }
    out
}
