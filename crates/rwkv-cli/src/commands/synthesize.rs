//! `rwkv-cli synthesize`: a file of made-up weights.

use crate::{args::SynthesizeArgs, writing};
use anyhow::Result;
use rwkv_model::export;
use std::process::ExitCode;

pub(crate) fn run(args: &SynthesizeArgs) -> Result<ExitCode> {
    writing::run(&args.output, |progress| {
        export::synthesize(&args.spec, &args.output, progress)
    })
}
