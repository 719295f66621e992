//! `rwkv-cli perplexity`: how well a model predicts a text.

use crate::{
    args::{CountedArg, PerplexityArgs},
    interrupt::{EXIT_CODE, Interrupt},
    open,
    usage::UsageError,
};
use anyhow::Result;
use rwkv_model::perplexity::{Counted, Perplexity, PerplexityOptions, perplexity};
use serde::Serialize;
use std::{
    io::Write,
    ops::ControlFlow,
    process::ExitCode,
    time::{Duration, Instant},
};

#[derive(Serialize)]
struct Report {
    model: String,
    device: String,
    tokenizer: String,
    method: &'static str,
    context: usize,
    chunks: usize,
    /// Tokens of the whole text.
    text_tokens: usize,
    /// Tokens that were counted, and their bytes.
    tokens: u64,
    bytes: u64,
    nats_per_token: f64,
    /// Absent where the counted tokens have no text.
    nats_per_byte: Option<f64>,
    perplexity: f64,
    standard_error: f64,
    seconds: f64,
}

pub(crate) fn run(args: &PerplexityArgs) -> Result<ExitCode> {
    let text = open::read_input(&args.file)?;
    let method = match args.method {
        CountedArg::All => ("all", Counted::All),
        CountedArg::Llama => ("llama", Counted::Llama),
    };
    let options = PerplexityOptions {
        context: args.context as usize,
        chunks: args.chunks.map(|n| n as usize),
        counted: method.1,
    };
    let file = open::model(&args.model)?;
    let tokenizer = file.tokenizer(args.model.tokenizer.as_deref())?;
    let tokens = tokenizer.encode(&text)?;
    // A text that is too short is told before the model is loaded.
    let chunks = options
        .chunks_of(tokens.len())
        .map_err(|e| UsageError::error(e.to_string()))?;
    let slots = chunks.min(args.batch as usize);
    let mut executor = open::executor(&file, &args.device, &args.tuning, slots)?;
    let interrupt = Interrupt::listen()?;

    let bar = open::progress_bar("measuring {bar:30} {pos}/{len} tokens {per_sec} eta {eta} {msg}");
    bar.set_length(options.fed_of(tokens.len())? as u64);
    bar.enable_steady_tick(Duration::from_millis(200));
    let start = Instant::now();
    let measured = perplexity(
        executor.as_mut(),
        &tokenizer,
        &tokens,
        &options,
        &mut |so_far, fed| {
            bar.set_position(fed as u64);
            if so_far.chunks > 0 {
                bar.set_message(format!("perplexity {:.3}", so_far.perplexity()));
            }
            if interrupt.pressed() {
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        },
    );
    let seconds = start.elapsed().as_secs_f64();
    bar.finish_and_clear();
    let measured = measured?;
    // A part of the text is no answer to the question.
    if interrupt.pressed() {
        return Ok(ExitCode::from(EXIT_CODE));
    }
    let report = Report {
        model: file.checkpoint().source().to_owned(),
        device: executor.device().to_owned(),
        tokenizer: tokenizer.name().to_owned(),
        method: method.0,
        context: options.context,
        text_tokens: tokens.len(),
        seconds,
        ..Report::of(&measured)
    };
    let mut out = std::io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
    } else {
        write!(out, "{}", text_of(&report))?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

impl Report {
    /// The numbers; what they belong to is left empty.
    fn of(measured: &Perplexity) -> Self {
        Self {
            model: String::new(),
            device: String::new(),
            tokenizer: String::new(),
            method: "",
            context: 0,
            chunks: measured.chunks,
            text_tokens: 0,
            tokens: measured.tokens,
            bytes: measured.bytes,
            nats_per_token: measured.nats_per_token(),
            nats_per_byte: Some(measured.nats_per_byte()).filter(|nats| nats.is_finite()),
            perplexity: measured.perplexity(),
            standard_error: measured.standard_error(),
            seconds: 0.0,
        }
    }
}

fn text_of(report: &Report) -> String {
    let per_byte = report
        .nats_per_byte
        .map_or_else(|| "-".to_owned(), |nats| format!("{nats:.4}"));
    format!(
        "perplexity      {:.4} ± {:.4}\n\
         nats per token  {:.4}\n\
         nats per byte   {per_byte}\n\
         counted         {} tokens, {} bytes, in {} × {} tokens (method {})\n",
        report.perplexity,
        report.standard_error,
        report.nats_per_token,
        report.tokens,
        report.bytes,
        report.chunks,
        report.context,
        report.method,
    )
}
