//! `rwkv-cli perplexity`: how well a model predicts a text.

use crate::{
    args::{MethodArg, PerplexityArgs},
    interrupt::{EXIT_CODE, Interrupt},
    open,
};
use anyhow::Result;
use rwkv_model::{Method, PerplexityOptions, perplexity};
use serde::Serialize;
use std::{io::Write, ops::ControlFlow, process::ExitCode, time::Instant};

#[derive(Serialize)]
struct Report {
    model: String,
    device: String,
    method: &'static str,
    context: usize,
    chunks: usize,
    tokens: u64,
    bytes: u64,
    nats_per_token: f64,
    nats_per_byte: f64,
    perplexity: f64,
    standard_error: f64,
    seconds: f64,
}

pub(crate) fn run(args: &PerplexityArgs) -> Result<ExitCode> {
    let text = open::read_input(&args.file)?;
    let file = open::model(&args.model)?;
    let tokenizer = file.tokenizer(args.model.tokenizer.as_deref())?;
    let tokens = tokenizer.encode(&text)?;
    let mut executor = open::executor(&file, &args.device, args.batch as usize)?;
    let interrupt = Interrupt::listen()?;
    let options = PerplexityOptions {
        context: args.context as usize,
        chunks: args.chunks.map(|n| n as usize),
        method: match args.method {
            MethodArg::All => Method::All,
            MethodArg::Llama => Method::Llama,
        },
    };
    let bar = open::progress_bar("{bar:30} {pos}/{len} chunks, perplexity {msg}");
    let start = Instant::now();
    let result = perplexity(
        executor.as_mut(),
        &tokenizer,
        &tokens,
        &options,
        &mut |so_far, chunks| {
            bar.set_length(chunks as u64);
            bar.set_position(so_far.chunks as u64);
            bar.set_message(format!("{:.4}", so_far.perplexity()));
            if interrupt.pressed() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        },
    )?;
    bar.finish_and_clear();
    if interrupt.pressed() {
        return Ok(ExitCode::from(EXIT_CODE));
    }
    let report = Report {
        model: file.checkpoint().source().to_owned(),
        device: executor.device().to_owned(),
        method: match args.method {
            MethodArg::All => "all",
            MethodArg::Llama => "llama",
        },
        context: options.context,
        chunks: result.chunks,
        tokens: result.tokens,
        bytes: result.bytes,
        nats_per_token: result.nats_per_token(),
        nats_per_byte: result.nats_per_byte(),
        perplexity: result.perplexity(),
        standard_error: result.standard_error(),
        seconds: start.elapsed().as_secs_f64(),
    };
    let mut out = std::io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
    } else {
        writeln!(
            out,
            "perplexity     {:.4} ± {:.4}",
            report.perplexity, report.standard_error
        )?;
        writeln!(out, "nats a token   {:.5}", report.nats_per_token)?;
        writeln!(out, "nats a byte    {:.5}", report.nats_per_byte)?;
        writeln!(
            out,
            "counted        {} tokens, {} bytes in {} chunks of {}",
            report.tokens, report.bytes, report.chunks, report.context
        )?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}
