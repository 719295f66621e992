//! Opening a model and a device, with what a person sees meanwhile.

use crate::{
    args::{
        DeviceArgs, KnownArgs, ModelArgs, PairsArg, ShareArg, StateOrderArg, TuningArgs,
        WeightsDTypeArg,
    },
    cache,
    usage::UsageError,
};
use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use rwkv_model::{AdapterFile, ModelFile, OpenOptions, StateOrigin, TimeStateOrder};
use rwkv_sched::{
    Adapter, CacheKey, Device, DeviceOptions, Executor, LoadOptions, LoadProgress, LoadStage,
    Model, Placement, Share, SlotId, SparseWeights, State, WeightsDType, load_placed, load_shared,
};
use std::{io::Read, path::Path, sync::Arc};

/// The model file that was named, or the demo model.
pub(crate) fn model(args: &ModelArgs) -> Result<ModelFile> {
    if let Some(path) = args.model.as_deref() {
        return Ok(ModelFile::open_with(path, known(&args.known))?);
    }
    eprintln!(
        "note: no --model and no RWKV_MODEL: this is the bundled demo model, 9 million parameters"
    );
    Ok(ModelFile::demo()?)
}

/// What a person knows of a model that its file does not say.
pub(crate) fn known(args: &KnownArgs) -> OpenOptions {
    let order = args.square_pairs;
    OpenOptions {
        group_norm_epsilon: args.group_norm_eps,
        turned_pairs: order.map(|order| matches!(order, PairsArg::OutIn)),
    }
}

/// An executor of `file` for `slots` sequences on the device that was named, with the adapters that were. All sequences
/// begin with the state that was named, or with the tuned one of an adapter, or with the model's own.
pub(crate) fn executor(
    file: &ModelFile,
    args: &DeviceArgs,
    tuning: &TuningArgs,
    slots: usize,
) -> Result<Box<dyn Executor>> {
    Ok(executor_with_key(file, args, tuning, slots)?.0)
}

/// The same, and what the states of its sequences depend on beside their tokens.
pub(crate) fn executor_with_key(
    file: &ModelFile,
    args: &DeviceArgs,
    tuning: &TuningArgs,
    slots: usize,
) -> Result<(Box<dyn Executor>, CacheKey)> {
    let model = file.model()?;
    let tuning = Tuning::read(file, &model, tuning)?;
    let devices = devices(args)?;
    let mut executor = load_model(&model, &devices, args, slots)?;
    if let Some(state) = &tuning.initial {
        executor.set_initial_state(Some(state))?;
        for slot in (0..).take(slots) {
            executor.reset(SlotId(slot))?;
        }
    }
    executor.set_adapters(&tuning.blend)?;
    let quantization = args.quant.as_ref().map(ToString::to_string);
    let weights = format!("{quantization:?} {:?}", args.weights_dtype);
    let mut key = CacheKey::new(file.fingerprint().as_bytes())
        .with(executor.device().as_bytes())
        .with(weights.as_bytes());
    for (adapter, strength) in &tuning.blend {
        let which = adapter.fingerprint().unwrap_or(adapter.name());
        key = key.with(which.as_bytes()).with(&strength.to_le_bytes());
    }
    if let Some(state) = &tuning.initial {
        key = key.with_initial_state(state);
    }
    Ok((executor, key))
}

/// The devices that were named, one at least.
pub(crate) fn devices(args: &DeviceArgs) -> Result<Vec<Device>> {
    let open = |name: &String| {
        let options = DeviceOptions {
            cache_dir: cache::folder(),
            memory_limit: args.gpu_memory,
        };
        let opened = Device::open_with(name, options)?;
        if let Some(reason) = opened.fallback {
            eprintln!("note: {reason}: running on the CPU");
        }
        Ok(opened.device)
    };
    args.device.iter().map(open).collect()
}

/// Where `--gpu-layers` places the layers of a model.
fn placement(model: &Model, devices: &[Device], on_gpu: usize) -> Result<Placement> {
    let layers = model.config().layers;
    match devices {
        [Device::Gpu(_)] if on_gpu > layers => Err(UsageError::error(format!(
            "--gpu-layers {on_gpu} is more than the {layers} layers of the model"
        ))),
        [Device::Gpu(gpu)] => Ok(Placement::first_on_gpu(layers, on_gpu, gpu.clone())?),
        [Device::Cpu] => Err(UsageError::error(
            "--gpu-layers needs a GPU, and the model would run on the CPU: choose one with --device",
        )),
        _ => Err(UsageError::error(
            "--gpu-layers is for one GPU: name one with --device, or leave it out and let all share the layers",
        )),
    }
}

/// An executor of a model, which need not be a file's, on devices that are open.
pub(crate) fn load_model(
    model: &Model,
    devices: &[Device],
    args: &DeviceArgs,
    slots: usize,
) -> Result<Box<dyn Executor>> {
    load_as(model, devices, args, slots, SparseWeights::default())
}

/// The same with a say in which matrices are sparse.
pub(crate) fn load_as(
    model: &Model,
    devices: &[Device],
    args: &DeviceArgs,
    slots: usize,
    sparse: SparseWeights,
) -> Result<Box<dyn Executor>> {
    let weights_dtype = match args.weights_dtype {
        WeightsDTypeArg::F16 => WeightsDType::F16,
        WeightsDTypeArg::F32 => WeightsDType::F32,
        WeightsDTypeArg::Auto => WeightsDType::Auto,
    };
    let share = args.share.map(|share| match share {
        ShareArg::Layers => Share::Layers,
        ShareArg::Sequences => Share::Sequences,
    });
    let placed = args
        .gpu_layers
        .map(|on_gpu| placement(model, devices, on_gpu));
    let placed = placed.transpose()?;
    let options = LoadOptions {
        slots,
        weights_dtype,
        quantization: args.quant.clone(),
        deterministic: args.deterministic,
        tune: !args.no_tune,
        micro_batches: args.micro_batches.map(|count| count as usize),
        sparse,
        ..LoadOptions::default()
    };
    let bar = progress_bar(LOADING);
    let mut stage = LoadStage::Tensors;
    let progress = &mut |progress: LoadProgress| {
        if progress.stage != stage {
            stage = progress.stage;
            bar.set_style(bar_style(match stage {
                LoadStage::Tuning => "timing kernels {bar:30} {pos}/{len}",
                _ => LOADING,
            }));
        }
        bar.set_length(progress.total);
        bar.set_position(progress.done);
    };
    let executor = match placed {
        Some(placement) => load_placed(model, &placement, &options, progress),
        None => load_shared(model, devices, share, &options, progress),
    };
    bar.finish_and_clear();
    Ok(executor?)
}

/// How a bar shows tensors that are loaded.
const LOADING: &str = "loading {bar:30} {bytes}/{total_bytes} {bytes_per_sec}";

/// What [`TuningArgs`] name, read.
struct Tuning {
    blend: Vec<(Arc<Adapter>, f32)>,
    /// What sequences begin with, where it is not what the model says.
    initial: Option<State>,
}

impl Tuning {
    fn read(file: &ModelFile, model: &Model, args: &TuningArgs) -> Result<Self> {
        if args.state_order.is_some() && args.state.is_none() && args.lora.is_empty() {
            let problem =
                "--state-order says how a tuned state lies: name one with --state or --lora";
            return Err(UsageError::error(problem));
        }
        let order = match args.state_order {
            None => TimeStateOrder::Auto,
            Some(StateOrderArg::ValueKey) => TimeStateOrder::ValueKey,
            Some(StateOrderArg::KeyValue) => TimeStateOrder::KeyValue,
        };
        let mut blend = Vec::new();
        let mut tuned: Option<(&Path, State)> = None;
        let mut begin = |path, state| {
            if let Some((other, _)) = &tuned {
                return Err(two_states(other, path));
            }
            tuned = Some((path, state));
            Ok(())
        };
        for (path, strength) in &args.lora {
            let adapter = AdapterFile::open_with(path, model, order)?;
            blend.push((adapter.adapter, *strength));
            // An adapter of strength 0 is as none.
            if let Some(state) = adapter.initial_state.filter(|_| *strength != 0.0) {
                begin(path, state)?;
            }
        }
        let mut session = None;
        if let Some(path) = &args.state {
            let loaded = file.load_state(path, order)?;
            match loaded.origin {
                StateOrigin::Tuned => begin(path, loaded.state)?,
                // It began with whatever was tuned then, and goes on.
                StateOrigin::Session { .. } => session = Some(loaded.state),
            }
        }
        let initial = session.or(tuned.map(|(_, state)| state));
        Ok(Self { blend, initial })
    }
}

fn two_states(one: &Path, other: &Path) -> anyhow::Error {
    UsageError::error(format!(
        "two tuned states, in {} and in {}: a sequence begins with one, so leave one of them out",
        one.display(),
        other.display()
    ))
}

/// A bar on stderr, which shows nothing where stderr is no terminal.
pub(crate) fn progress_bar(template: &'static str) -> ProgressBar {
    ProgressBar::new(0).with_style(bar_style(template))
}

fn bar_style(template: &'static str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
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
