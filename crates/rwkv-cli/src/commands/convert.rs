//! `rwkv-cli convert`: the same model in another container.

use crate::{args::ConvertArgs, open, writing};
use anyhow::Result;
use rwkv_model::export;
use std::process::ExitCode;

pub(crate) fn run(args: &ConvertArgs) -> Result<ExitCode> {
    writing::run(&args.files.output, |progress| {
        export::convert_with(
            &args.files.input,
            open::known(&args.files.known),
            &args.files.output,
            args.files.tokenizer.as_deref(),
            progress,
        )
    })
}
