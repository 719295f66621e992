//! `rwkv-cli logits`: the numbers behind a choice.

use crate::{args::LogitsArgs, open, usage::UsageError};
use anyhow::{Context, Result};
use rwkv_model::ModelFile;
use rwkv_sched::{Logits, SlotId, Wanted, prefill};
use std::{
    io::{BufWriter, Write},
    ops::ControlFlow,
    path::Path,
    process::ExitCode,
};

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
    let mut executor = open::executor(&file, &args.device)?;
    let chunk = args.chunk.map_or(executor.chunk(), |n| n as usize);
    let wanted = if args.all { Wanted::All } else { Wanted::Last };
    let mut sink = Sink::create(&args.output)?;
    let mut failed = None;
    prefill(
        executor.as_mut(),
        SlotId(0),
        &tokens,
        chunk,
        wanted,
        &mut |_, logits| match sink.write(logits) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        },
    )?;
    match failed {
        Some(error) => Err(error),
        None => sink.finish().map(|()| ExitCode::SUCCESS),
    }
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

/// Where logits go. A file appears under its name only when it is complete.
enum Sink<'a> {
    Lines(BufWriter<std::io::StdoutLock<'static>>),
    File(BufWriter<tempfile::NamedTempFile>, &'a Path),
}

impl<'a> Sink<'a> {
    fn create(path: &'a Path) -> Result<Self> {
        if path == Path::new("-") {
            return Ok(Self::Lines(BufWriter::new(std::io::stdout().lock())));
        }
        let folder = path
            .parent()
            .filter(|p| !p.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        let file = tempfile::NamedTempFile::new_in(folder)
            .with_context(|| format!("cannot write to {}", path.display()))?;
        Ok(Self::File(BufWriter::new(file), path))
    }

    fn write(&mut self, logits: &Logits) -> Result<()> {
        for value in logits.rows().flatten() {
            match self {
                // The shortest digits that read back as the same f32.
                Self::Lines(out) => writeln!(out, "{value}")?,
                Self::File(out, path) => out
                    .write_all(&value.to_le_bytes())
                    .with_context(|| format!("cannot write to {}", path.display()))?,
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<()> {
        match self {
            Self::Lines(mut out) => Ok(out.flush()?),
            Self::File(out, path) => {
                let context = || format!("cannot write to {}", path.display());
                let file = out
                    .into_inner()
                    .map_err(std::io::IntoInnerError::into_error)
                    .with_context(context)?;
                file.persist(path)
                    .map_err(|e| e.error)
                    .with_context(context)?;
                Ok(())
            }
        }
    }
}
