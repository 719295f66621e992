//! Measures the published crate web-rwkv on a model file: loading, prefill and decode. One line of JSON on stdout.

mod checkpoint;
mod measure;

use crate::{checkpoint::Checkpoint, measure::Workload};
use anyhow::{Context as _, Result, bail};
use clap::{Parser, ValueEnum, builder::RangedU64ValueParser};
use memmap2::Mmap;
use serde_json::{Value, json};
use std::{fs::File, panic, path::PathBuf, process::exit, time::Instant};
use web_rwkv::{
    context::{Context, ContextBuilder, InstanceExt},
    runtime::{
        loader::Loader,
        model::{ContextAutoLimits, ModelBuilder, ModelInfo, ModelVersion, Quant},
    },
    wgpu,
};

/// Measure web-rwkv 0.10.20 on an RWKV-7 model
#[derive(Parser)]
#[command(version)]
struct Args {
    /// A .st or .safetensors file with the original names, in f16, bf16 or f32
    model: PathBuf,
    /// What the matrices of all layers become while loading
    #[arg(long, value_enum, default_value = "none")]
    quant: QuantArg,
    /// Number of the adapter; without it, the one that wgpu calls high-performance. A wrong one lists all
    #[arg(long, value_name = "INDEX")]
    adapter: Option<usize>,
    /// Lengths of the prompts to measure; 0 measures none
    #[arg(
        long,
        value_name = "N,…",
        value_delimiter = ',',
        default_value = "512,2048"
    )]
    prefill: Vec<u32>,
    /// Steps of a round of decoding; 0 measures none
    #[arg(long, value_name = "N", default_value_t = 128)]
    decode: u32,
    /// Sequences to decode at once
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1", value_parser = from_one())]
    batch: Vec<u32>,
    /// Rounds that count, after one of each workload that does not
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = from_one())]
    repeat: u32,
    /// web-rwkv's `token_chunk_size`: the most tokens of a step; becomes a multiple of 32
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = from_one())]
    chunk: u32,
}

fn from_one() -> RangedU64ValueParser<u32> {
    RangedU64ValueParser::new().range(1..=65_536)
}

#[derive(Clone, Copy, ValueEnum)]
enum QuantArg {
    None,
    Int8,
    Nf4,
}

impl QuantArg {
    fn quant(self) -> Quant {
        match self {
            Self::None => Quant::None,
            Self::Int8 => Quant::Int8,
            Self::Nf4 => Quant::NF4,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Int8 => "int8",
            Self::Nf4 => "nf4",
        }
    }
}

/// A device with the limits that web-rwkv's examples ask for.
async fn open_device(info: &ModelInfo, index: Option<usize>) -> Result<Context> {
    let instance = wgpu::Instance::default();
    let adapter = match index {
        None => {
            instance
                .adapter(wgpu::PowerPreference::HighPerformance)
                .await?
        }
        Some(index) => {
            let mut adapters = instance.enumerate_adapters(wgpu::Backends::all()).await;
            if index >= adapters.len() {
                let infos = adapters.iter().map(wgpu::Adapter::get_info).enumerate();
                let names = infos.map(|(i, a)| format!("{i}: {} ({})", a.name, a.backend));
                bail!(
                    "no adapter {index}; there are [{}]",
                    names.collect::<Vec<_>>().join(", ")
                );
            }
            adapters.swap_remove(index)
        }
    };
    Ok(ContextBuilder::new(adapter)
        .auto_limits(info)
        .build()
        .await?)
}

async fn run(args: &Args) -> Result<Value> {
    let path = args.model.display();
    let file = File::open(&args.model).with_context(|| format!("opening {path}"))?;
    // SAFETY: a benchmark's own input; nobody writes to it meanwhile.
    let bytes = unsafe { Mmap::map(&file) }.with_context(|| format!("mapping {path}"))?;
    let reading = || format!("reading {path}");
    let checkpoint = Checkpoint::parse(&bytes).with_context(reading)?;
    let info = Loader::info(&checkpoint).with_context(reading)?;
    if info.version != ModelVersion::V7 {
        bail!(
            "{path} is an RWKV {:?}; only RWKV-7 is measured",
            info.version
        );
    }
    let context = open_device(&info, args.adapter).await?;
    let adapter = context.adapter.get_info();

    let quant = (0..info.num_layer)
        .map(|layer| (layer, args.quant.quant()))
        .collect();
    let start = Instant::now();
    let model = ModelBuilder::new(&context, checkpoint)
        .quant(quant)
        .build_v7()
        .await;
    let model = model.with_context(|| format!("loading {path}"))?;
    let load_seconds = start.elapsed().as_secs_f64();

    let (mut prefill, mut decode) = (Vec::new(), Vec::new());
    for &tokens in args.prefill.iter().filter(|tokens| **tokens > 0) {
        prefill.push(Workload::Prefill { tokens }.measure(&model, args).await?);
    }
    for &batch in args.batch.iter().filter(|_| args.decode > 0) {
        let workload = Workload::Decode {
            steps: args.decode,
            batch,
        };
        decode.push(workload.measure(&model, args).await?);
    }
    Ok(json!({
        "program": "web-rwkv 0.10.20",
        "debug_build": cfg!(debug_assertions),
        "model": {
            "name": args.model.file_name().map(|name| name.to_string_lossy()),
            "version": "7",
            "layers": info.num_layer,
            "width": info.num_emb,
            "vocab": info.num_vocab,
        },
        "quant": args.quant.name(),
        "device": {
            "name": adapter.name,
            "backend": adapter.backend.to_string(),
            "driver": format!("{} {}", adapter.driver, adapter.driver_info),
        },
        "repeat": args.repeat,
        "chunk": args.chunk.next_multiple_of(32),
        "batch": args.batch,
        "load_seconds": load_seconds,
        "prefill": prefill,
        "decode": decode,
    }))
}

/// Says `error` in one line, and ends the program.
fn fail(error: &str) -> ! {
    eprintln!(
        "error: {}",
        error.split_whitespace().collect::<Vec<_>>().join(" ")
    );
    exit(1)
}

#[tokio::main]
async fn main() {
    let args = Args::parse();
    // wgpu's errors are panics, some of them in web-rwkv's own threads: without this they would leave it waiting.
    panic::set_hook(Box::new(|panic| fail(&panic.to_string())));
    match run(&args).await {
        Ok(report) => println!("{report}"),
        Err(error) => fail(&format!("{error:#}")),
    }
}
