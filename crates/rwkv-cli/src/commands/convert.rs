//! `rwkv-cli convert`: the same model in another container.

use crate::{args::ConvertArgs, writing};
use anyhow::Result;
use rwkv_model::export;
use std::process::ExitCode;

pub(crate) fn run(args: &ConvertArgs) -> Result<ExitCode> {
    writing::run(&args.files.output, |progress| {
        export::convert(
            &args.files.input,
            &args.files.output,
            args.files.tokenizer.as_deref(),
            progress,
        )
    })
}
