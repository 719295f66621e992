//! `rwkv-cli quantize`: a smaller file of the same model.

use crate::{args::QuantizeArgs, open, usage::UsageError, writing};
use anyhow::Result;
use rwkv_model::export;
use std::process::ExitCode;

pub(crate) fn run(args: &QuantizeArgs) -> Result<ExitCode> {
    let Some(quantization) = &args.weight_type else {
        return Err(UsageError::error("--type is required without --prune"));
    };
    writing::run(&args.files.output, |progress| {
        export::quantize_with(
            &args.files.input,
            open::known(&args.files.known),
            &args.files.output,
            quantization,
            args.prune,
            args.files.tokenizer.as_deref(),
            progress,
        )
    })
}
