//! `rwkv-cli`: RWKV models from the command line.
//!
//! Results go to stdout and nothing else does; progress, notes and errors go to stderr.

mod args;
mod cache;
mod commands;
mod interrupt;
mod open;
mod output;
mod prompt_cache;
mod usage;
mod writing;

use args::{Args, Command};
use clap::Parser;
use std::process::ExitCode;
use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt, util::SubscriberInitExt};
use usage::UsageError;

fn main() -> ExitCode {
    prepare_environment();
    let args = Args::parse();
    log_to_stderr();
    let result = match args.command {
        Command::Generate(args) => commands::generate::run(&args),
        Command::Logits(args) => commands::logits::run(&args),
        Command::Inspect(args) => commands::inspect::run(&args),
        Command::Perplexity(args) => commands::perplexity::run(&args),
        Command::Quantize(args) => commands::quantize::run(&args),
        Command::Convert(args) => commands::convert::run(&args),
        Command::Synthesize(args) => commands::synthesize::run(&args),
        Command::Bench(args) => commands::bench::run(&args),
        Command::Devices(args) => commands::devices::run(&args),
    };
    match result {
        Ok(code) => code,
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", one_line(&error));
            ExitCode::from(if error.is::<UsageError>() { 2 } else { 1 })
        }
    }
}

/// An empty `RWKV_MODEL`, `RWKV_DEVICE` or `RWKV_CACHE_DIR` is the same as none.
///
/// Mesa's Vulkan layer that orders adapters asks a display server, and prints an error of its own where there is none.
/// We order adapters ourselves, so it is left out unless the user has told it which to take.
fn prepare_environment() {
    const LAYER_OFF: &str = "NODEVICE_SELECT";
    let told = ["MESA_VK_DEVICE_SELECT", "DRI_PRIME", LAYER_OFF];
    let untold = told.iter().all(|name| std::env::var_os(name).is_none());
    // SAFETY: `main` has started no thread yet, so nothing reads the environment meanwhile.
    unsafe {
        for name in ["RWKV_MODEL", "RWKV_DEVICE", "RWKV_CACHE_DIR"] {
            if std::env::var_os(name).is_some_and(|value| value.is_empty()) {
                std::env::remove_var(name);
            }
        }
        if untold {
            std::env::set_var(LAYER_OFF, "1");
        }
    }
}

/// The error and its causes on one line, each said once.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if !line.contains(&text) {
            let separator = if line.is_empty() { "" } else { ": " };
            line.push_str(separator);
            line.push_str(&text);
        }
    }
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// `RWKV_LOG` chooses what is logged, in the syntax of `tracing`'s filters; warnings of our own by default, and where
/// it cannot be read.
fn log_to_stderr() {
    let default = || EnvFilter::new("off,rwkv_gpu=warn,rwkv_model=warn,rwkv_sched=warn");
    let value = std::env::var_os("RWKV_LOG").filter(|value| !value.is_empty());
    let filter = value.map(|value| {
        let text = value.to_string_lossy().into_owned();
        EnvFilter::builder().parse(&text).map_err(|e| (text, e))
    });
    let filter = match filter {
        None => default(),
        Some(Ok(filter)) => filter,
        Some(Err((text, error))) => {
            let error = one_line(&error.into());
            eprintln!(
                "note: RWKV_LOG={text:?} is left out: {error}; such as info or rwkv_gpu=debug"
            );
            default()
        }
    };
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_filter(filter);
    let registry = tracing_subscriber::registry().with(lines);
    #[cfg(feature = "trace")]
    let registry = registry.with(tracy());
    registry.init();
}

/// What a connected Tracy window sees: the spans of our own crates.
#[cfg(feature = "trace")]
fn tracy<S>() -> impl Layer<S>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    let ours =
        EnvFilter::new("off,rwkv_cli=trace,rwkv_gpu=trace,rwkv_model=trace,rwkv_sched=trace");
    tracing_tracy::TracyLayer::default().with_filter(ours)
}
