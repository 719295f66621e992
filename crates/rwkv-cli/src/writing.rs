//! Writing a model file, with what a person sees meanwhile.

use crate::{
    interrupt::{EXIT_CODE, Interrupt},
    open, output,
};
use anyhow::Result;
use rwkv_model::{
    Error,
    export::{ExportError, OnProgress, Written},
    files::TensorType,
};
use std::{collections::BTreeMap, ops::ControlFlow, path::Path, process::ExitCode};

/// Runs `write` with a progress bar; Ctrl-C stops it and leaves nothing.
pub(crate) fn run(
    path: &Path,
    write: impl FnOnce(OnProgress<'_>) -> rwkv_model::Result<Written>,
) -> Result<ExitCode> {
    let interrupt = Interrupt::listen()?;
    let bar = open::progress_bar("writing {bar:30} {bytes}/{total_bytes} {bytes_per_sec}");
    let written = write(&mut |progress| {
        bar.set_length(progress.total);
        bar.set_position(progress.done);
        if interrupt.pressed() {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    });
    bar.finish_and_clear();
    match written {
        Ok(written) => {
            eprintln!("{}", summary(path, &written));
            Ok(ExitCode::SUCCESS)
        }
        Err(Error::Export(ExportError::Interrupted)) => Ok(ExitCode::from(EXIT_CODE)),
        Err(error) => Err(error.into()),
    }
}

/// What was written, on one line.
fn summary(path: &Path, written: &Written) -> String {
    let mut formats: BTreeMap<String, u64> = BTreeMap::new();
    for tensor in &written.tensors {
        let format = match tensor.entries {
            Some(_) => TensorType::Csr.to_string(),
            None => tensor.format.to_string(),
        };
        *formats.entry(format).or_default() += tensor.bytes;
    }
    let parts: Vec<_> = formats
        .iter()
        .map(|(format, bytes)| format!("{} in {format}", output::bytes(*bytes)))
        .collect();
    format!(
        "{}: {}, {} tensors ({})",
        path.display(),
        output::bytes(written.bytes),
        written.tensors.len(),
        parts.join(", ")
    )
}
