//! `rwkv-cli logits`: the numbers behind a choice.

use crate::{
    args::LogitsArgs,
    interrupt::{EXIT_CODE, Interrupt},
    open,
    usage::UsageError,
};
use anyhow::{Context, Result};
use rwkv_model::{
    ModelFile,
    output_file::{OutputFile, same_file},
};
use rwkv_sched::{Logits, SlotId, Wanted, prefill};
use std::{
    fs::{File, OpenOptions},
    io::{BufWriter, Write},
    ops::ControlFlow,
    path::Path,
    process::ExitCode,
};

/// Tokens whose logits are held at a time, unless more are asked for: 64 MiB of a large vocabulary.
const ALL: usize = 256;

pub(crate) fn run(args: &LogitsArgs) -> Result<ExitCode> {
    // What is wrong with the tokens is told before a model is read.
    let listed = listed_tokens(args)?;
    let file = open::model(&args.model)?;
    let tokens = match listed {
        Some(tokens) => tokens,
        None => prompt_tokens(&file, args)?,
    };
    if tokens.is_empty() {
        return Err(UsageError::error("there are no tokens: give at least one"));
    }
    let mut executor = open::executor(&file, &args.device, &args.tuning, 1)?;
    let most = if args.all { ALL } else { usize::MAX };
    let chunk = args
        .chunk
        .map_or(executor.chunk().min(most), |n| n as usize);
    let wanted = if args.all { Wanted::All } else { Wanted::Last };
    if let Some(model) = &args.model.model
        && same_file(model, &args.output)
    {
        return Err(UsageError::error("--output is the model file itself"));
    }
    let interrupt = Interrupt::listen()?;
    let mut sink = Sink::create(&args.output)?;
    let mut failed = None;
    prefill(
        executor.as_mut(),
        SlotId(0),
        &tokens,
        chunk,
        wanted,
        &mut |_, logits| {
            failed = sink.write(logits).err();
            if failed.is_some() || interrupt.pressed() {
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        },
    )?;
    if let Some(error) = failed {
        return Err(error);
    }
    if interrupt.pressed() {
        return Ok(ExitCode::from(EXIT_CODE));
    }
    sink.finish()?;
    Ok(ExitCode::SUCCESS)
}

/// The tokens of `--tokens` or `--tokens-file`.
fn listed_tokens(args: &LogitsArgs) -> Result<Option<Vec<u32>>> {
    let text = match (&args.input.tokens, &args.input.tokens_file) {
        (Some(list), _) => list.clone(),
        (None, Some(path)) => String::from_utf8(open::read_input(path)?).map_err(|_| {
            UsageError::error(format!("{}: not a list of token numbers", path.display()))
        })?,
        (None, None) => return Ok(None),
    };
    text.split(|c: char| c == ',' || c.is_whitespace())
        .filter(|word| !word.is_empty())
        .map(|word| {
            word.parse()
                .map_err(|_| UsageError::error(format!("`{word}` is no token number")))
        })
        .collect::<Result<Vec<u32>>>()
        .map(Some)
}

fn prompt_tokens(file: &ModelFile, args: &LogitsArgs) -> Result<Vec<u32>> {
    let prompt = args.input.prompt.as_deref().unwrap_or_default();
    Ok(file
        .tokenizer(args.model.tokenizer.as_deref())?
        .encode(prompt.as_bytes())?)
}

/// Where logits go. A regular file appears under its name only when it is complete.
enum Sink<'a> {
    Lines(BufWriter<std::io::StdoutLock<'static>>),
    /// What is no regular file (a device, a pipe) is written as it is.
    Special(BufWriter<File>, &'a Path),
    /// A file in the making, and its name.
    File(OutputFile, &'a Path),
}

impl<'a> Sink<'a> {
    fn create(path: &'a Path) -> Result<Self> {
        if path == Path::new("-") {
            return Ok(Self::Lines(BufWriter::new(std::io::stdout().lock())));
        }
        if path.exists() && !path.is_file() {
            let file = OpenOptions::new().write(true).open(path);
            let file = file.with_context(|| failed(path))?;
            return Ok(Self::Special(BufWriter::new(file), path));
        }
        let file = OutputFile::create(path).with_context(|| failed(path))?;
        Ok(Self::File(file, path))
    }

    fn write(&mut self, logits: &Logits) -> Result<()> {
        for value in logits.rows().flatten() {
            if !value.is_finite() {
                anyhow::bail!(
                    "a logit is {value}: the model's weights overflow or hold values that are no numbers"
                );
            }
            match self {
                // The shortest digits that read back as the same f32.
                Self::Lines(out) => writeln!(out, "{value}")?,
                Self::Special(out, path) => out
                    .write_all(&value.to_le_bytes())
                    .with_context(|| failed(path))?,
                Self::File(out, path) => out
                    .writer()
                    .write_all(&value.to_le_bytes())
                    .with_context(|| failed(path))?,
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<()> {
        match self {
            Self::Lines(mut out) => Ok(out.flush()?),
            Self::Special(mut out, path) => out.flush().with_context(|| failed(path)),
            Self::File(out, path) => out.finish().map(drop).with_context(|| failed(path)),
        }
    }
}

fn failed(path: &Path) -> String {
    format!("cannot write to {}", path.display())
}
