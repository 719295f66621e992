//! `rwkv-cli inspect`: what a model file holds.

use crate::{args::InspectArgs, open, output};
use anyhow::Result;
use rwkv_model::{ModelFile, TensorSummary};
use rwkv_sched::{
    self as sched, DeviceMemory, Model, Quantization, StateLayout, Weight, WeightsDType,
};
use serde::Serialize;
use std::{
    collections::{BTreeMap, HashMap},
    io::Write,
    process::ExitCode,
};

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
    /// From 0 to 1: the share of elements that sparse matrices keep, all together.
    #[serde(skip_serializing_if = "Option::is_none")]
    density: Option<f64>,
    state_bytes: u64,
    /// What a GPU will need.
    device: Device,
    /// What `--quant` makes of the matrices.
    #[serde(skip_serializing_if = "Option::is_none")]
    quant: Option<Quant>,
    tokenizer: Result<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tensors: Vec<Tensor>,
}

#[derive(Serialize)]
struct Device {
    weights: u64,
    state: u64,
    activations: u64,
}

#[derive(Serialize)]
struct Quant {
    weight_type: String,
    /// Matrices a format.
    formats: BTreeMap<String, usize>,
    /// The largest error of a matrix, where the choice of its format measured one.
    #[serde(skip_serializing_if = "Option::is_none")]
    worst_error: Option<f64>,
    matrices: Vec<Chosen>,
}

#[derive(Serialize)]
struct Chosen {
    name: String,
    format: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<f64>,
}

#[derive(Serialize)]
struct Tensor {
    name: String,
    format: String,
    shape: Vec<usize>,
    bytes: u64,
    /// From 0 to 1: the share of elements that a sparse matrix keeps.
    #[serde(skip_serializing_if = "Option::is_none")]
    density: Option<f64>,
    /// What packing it lost, where the file says.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<f64>,
}

pub(crate) fn run(args: &InspectArgs) -> Result<ExitCode> {
    let file = open::model(&args.model)?;
    // A file that cannot run is told here, too.
    let model = file.model()?;
    let report = report(&file, &model, args)?;
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

fn report(file: &ModelFile, model: &Model, args: &InspectArgs) -> Result<Report> {
    let errors = file.encoding_errors();
    // Choosing looks at whole matrices: once.
    let chosen = match &args.quant {
        Some(quantization) => quantization.choose_all(model)?,
        None => HashMap::new(),
    };
    let memory = DeviceMemory::with_chosen(model, &chosen, WeightsDType::default())?;
    let config = file.config();
    let mut formats: BTreeMap<String, (usize, u64)> = BTreeMap::new();
    let mut tensors = Vec::new();
    // Of sparse matrices.
    let (mut entries, mut elements) = (0, 0);
    for tensor in file.tensors() {
        if let Some(kept) = tensor.entries {
            entries += kept;
            elements += tensor.shape.iter().map(|n| *n as u64).product::<u64>();
        }
        let format = tensor.kind.to_string();
        let entry = formats.entry(format.clone()).or_default();
        *entry = (entry.0 + 1, entry.1 + tensor.bytes);
        if args.tensors {
            tensors.push(Tensor {
                error: errors.get(&tensor.name).copied(),
                density: density(&tensor),
                name: tensor.name,
                format,
                shape: tensor.shape,
                bytes: tensor.bytes,
            });
        }
    }
    Ok(Report {
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
        density: (elements > 0).then(|| entries as f64 / elements as f64),
        state_bytes: StateLayout::of(config).bytes(),
        device: Device {
            weights: memory.weights,
            state: memory.state,
            activations: memory.activations,
        },
        quant: args.quant.as_ref().map(|q| quant(model, q, &chosen)),
        tokenizer: file
            .tokenizer(args.model.tokenizer.as_deref())
            .map(|t| format!("{} ({} tokens)", t.name(), t.vocab_size()))
            .map_err(|e| e.to_string()),
        tensors,
    })
}

/// The share of elements that a sparse matrix keeps.
fn density(tensor: &TensorSummary) -> Option<f64> {
    let elements: f64 = tensor.shape.iter().map(|n| *n as f64).product();
    Some(tensor.entries? as f64 / elements.max(1.0))
}

/// What `--quant` makes of each matrix.
fn quant(
    model: &Model,
    quantization: &Quantization,
    chosen: &HashMap<Weight, sched::Chosen>,
) -> Quant {
    let mut report = Quant {
        weight_type: quantization.to_string(),
        formats: BTreeMap::new(),
        worst_error: None,
        matrices: Vec::new(),
    };
    for (weight, chosen) in chosen {
        let format = chosen.format.to_string();
        *report.formats.entry(format.clone()).or_default() += 1;
        report.worst_error = match (report.worst_error, chosen.error) {
            (Some(a), Some(b)) => Some(a.max(b)),
            (a, b) => a.or(b),
        };
        report.matrices.push(Chosen {
            name: model.weights().name(*weight),
            format,
            error: chosen.error,
        });
    }
    report.matrices.sort_by(|a, b| a.name.cmp(&b.name));
    report
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
    if let Some(density) = report.density {
        line("density", format!("{:.1} % of the csr", density * 100.0));
    }
    line(
        "state",
        format!("{} a sequence", output::bytes(report.state_bytes)),
    );
    if let Some(quant) = &report.quant {
        for (format, count) in &quant.formats {
            line(
                "quantized",
                format!("{count} matrices to {format} ({})", quant.weight_type),
            );
        }
        if let Some(error) = quant.worst_error {
            line("error", format!("{:.2} % at most", error * 100.0));
        }
    }
    let Device {
        weights,
        state,
        activations,
    } = report.device;
    line(
        "GPU memory",
        format!(
            "about {}: weights {}, one state {}, activations of long prompts {}",
            output::bytes(weights + state + activations),
            output::bytes(weights),
            output::bytes(state),
            output::bytes(activations)
        ),
    );
    let chosen = report.quant.iter().flat_map(|quant| &quant.matrices);
    let chosen: BTreeMap<_, _> = chosen.map(|c| (c.name.as_str(), c)).collect();
    for tensor in &report.tensors {
        let shape: Vec<_> = tensor.shape.iter().map(usize::to_string).collect();
        let mut value = format!(
            "{:<12} {:>10}  {}",
            shape.join("×"),
            output::bytes(tensor.bytes),
            tensor.name
        );
        if let Some(density) = tensor.density {
            let _ = write!(value, "  (density {:.1} %)", density * 100.0);
        }
        if let Some(error) = tensor.error {
            let _ = write!(value, "  (error {:.2} %)", error * 100.0);
        }
        if let Some(chosen) = chosen.get(tensor.name.as_str()) {
            let _ = write!(value, "  → {}", chosen.format);
            if let Some(error) = chosen.error {
                let _ = write!(value, " (error {:.2} %)", error * 100.0);
            }
        }
        line(&tensor.format, value);
    }
    out
}
