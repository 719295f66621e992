//! Opening a model and a device, with what a person sees meanwhile.

use crate::{
    args::{DeviceArgs, ModelArgs, PairsArg, WeightsDTypeArg},
    usage::UsageError,
};
use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use rwkv_model::{AdapterFile, ModelFile, OpenOptions};
use rwkv_sched::{Device, Executor, LoadOptions, SlotId, WeightsDType, load};
use std::{io::Read, path::Path};

/// The model file that was named, or the demo model.
pub(crate) fn model(args: &ModelArgs) -> Result<ModelFile> {
    if let Some(path) = args.model.as_deref() {
        let options = OpenOptions {
            group_norm_epsilon: args.group_norm_eps,
            turned_pairs: args
                .square_pairs
                .map(|order| matches!(order, PairsArg::OutIn)),
        };
        return Ok(ModelFile::open_with(path, options)?);
    }
    eprintln!(
        "note: no --model and no RWKV_MODEL: this is the bundled demo model, 9 million parameters"
    );
    Ok(ModelFile::demo()?)
}

/// An executor of `file` for `slots` sequences on the device that was named, with the adapters that were. A tuned state
/// among them is where the first sequence begins.
pub(crate) fn executor(
    file: &ModelFile,
    args: &DeviceArgs,
    slots: usize,
) -> Result<Box<dyn Executor>> {
    let model = file.model()?;
    let opened = Device::open(&args.device)?;
    if let Some(reason) = opened.fallback {
        eprintln!("note: {reason}: running on the CPU");
    }
    let weights_dtype = match args.weights_dtype {
        WeightsDTypeArg::F16 => WeightsDType::F16,
        WeightsDTypeArg::F32 => WeightsDType::F32,
        WeightsDTypeArg::Auto => WeightsDType::Auto,
    };
    let bar = progress_bar("loading {bar:30} {bytes}/{total_bytes} {bytes_per_sec}");
    let executor = load(
        &model,
        &opened.device,
        &LoadOptions {
            slots,
            weights_dtype,
            quantization: args.quant.clone(),
        },
        &mut |progress| {
            bar.set_length(progress.total);
            bar.set_position(progress.done);
        },
    );
    bar.finish_and_clear();
    let mut executor = executor?;
    let mut blend = Vec::new();
    for (path, strength) in &args.lora {
        let adapter = AdapterFile::open(path, &model)?;
        if let Some(state) = &adapter.initial_state {
            executor.set_state(SlotId(0), state)?;
        }
        blend.push((adapter.adapter, *strength));
    }
    executor.set_adapters(&blend)?;
    Ok(executor)
}

/// A bar on stderr, which shows nothing where stderr is no terminal.
pub(crate) fn progress_bar(template: &'static str) -> ProgressBar {
    let style =
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style)
}

/// The bytes of a file, or of stdin for `-`.
pub(crate) fn read_input(path: &Path) -> Result<Vec<u8>> {
    if path == Path::new("-") {
        let mut bytes = Vec::new();
        std::io::stdin()
            .lock()
            .read_to_end(&mut bytes)
            .map_err(|e| UsageError::error(format!("cannot read stdin: {e}")))?;
        return Ok(bytes);
    }
    std::fs::read(path)
        .map_err(|e| UsageError::error(format!("cannot read {}: {e}", path.display())))
}
