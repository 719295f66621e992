//! `rwkv-cli quantize`: a smaller file of the same model.

use crate::{args::QuantizeArgs, open, writing};
use anyhow::Result;
use rwkv_model::export;
use std::process::ExitCode;

pub(crate) fn run(args: &QuantizeArgs) -> Result<ExitCode> {
    writing::run(&args.files.output, |progress| {
        export::quantize_with(
            &args.files.input,
            open::known(&args.files.known),
            &args.files.output,
            &args.weight_type,
            args.files.tokenizer.as_deref(),
            progress,
        )
    })
}
