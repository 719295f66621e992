//! `rwkv-cli bench`: how fast a model runs, and where the time goes.

mod arrivals;
mod break_even;
mod copy_bandwidth;
mod host_memory;
mod kernels;
mod measure;
mod report;
mod serve;
mod spread;
mod text;
mod trace;

use crate::{
    args::BenchArgs,
    interrupt::{EXIT_CODE, Interrupt},
    open,
    usage::UsageError,
};
use anyhow::Result;
use host_memory::Watch;
use measure::{Interrupted, Workload};
use report::{Caches, DeviceInfo, DeviceMemory, HostMemory, Pipelines, Report, WorkloadReport};
use rwkv_gpu::{Gpu, Timing};
use rwkv_model::export::{SyntheticSpec, SyntheticWeights};
use rwkv_sched::{Device, Executor, Model, SparseWeights, StepTimes};
use serde::Serialize;
use std::{io::Write, process::ExitCode, sync::Arc, time::Instant};

pub(crate) fn run(args: &BenchArgs) -> Result<ExitCode> {
    let workloads = workloads(args);
    if workloads.is_empty() {
        return Err(UsageError::error(
            "there is nothing to measure: --prefill and --decode are both 0",
        ));
    }
    let interrupt = Interrupt::listen()?;
    let shown = match &args.serve_trace {
        Some(trace) => serve::run(args, trace, &interrupt),
        None if args.prune.is_empty() => whole(args, &workloads, &interrupt),
        None => break_even::run(args, &workloads, &interrupt),
    };
    match shown {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) if error.is::<Interrupted>() => Ok(ExitCode::from(EXIT_CODE)),
        Err(error) => Err(error),
    }
}

/// Measures the model as it is.
fn whole(args: &BenchArgs, workloads: &[Workload], interrupt: &Interrupt) -> Result<()> {
    let (name, model) = model(args)?;
    let devices = open::devices(&args.device)?;
    let subject = Subject {
        name,
        model: &model,
        devices: &devices,
        sparse: SparseWeights::default(),
    };
    let (report, traces) = measure(args, &subject, workloads, interrupt)?;
    if let Some(Some(path)) = &args.profile {
        trace::write(path, &traces)?;
    }
    show(args, &report, text::of)
}

/// Prints a report, for programs or for people.
fn show<T: Serialize>(args: &BenchArgs, report: &T, text: fn(&T) -> String) -> Result<()> {
    let mut out = std::io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, report)?;
        writeln!(out)?;
    } else {
        write!(out, "{}", text(report))?;
    }
    Ok(out.flush()?)
}

/// What is measured, and where.
struct Subject<'a> {
    name: String,
    model: &'a Model,
    devices: &'a [Device],
    sparse: SparseWeights,
}

/// What the command line asks to measure, in its order.
fn workloads(args: &BenchArgs) -> Vec<Workload> {
    let prefill = (args.prefill > 0).then_some(Workload::Prefill {
        tokens: args.prefill,
        prompts: args.prompts,
    });
    let decode = args.batch.iter().map(|&batch| Workload::Decode {
        tokens: args.decode,
        batch,
    });
    let decode = decode.filter(|_| args.decode > 0);
    prefill.into_iter().chain(decode).collect()
}

/// A workload's title and its steps, kernel by kernel.
type Trace = (String, Vec<StepTimes>);

fn measure(
    args: &BenchArgs,
    subject: &Subject<'_>,
    workloads: &[Workload],
    interrupt: &Interrupt,
) -> Result<(Report, Vec<Trace>)> {
    let &Subject { model, devices, .. } = subject;
    let slots = workloads.iter().map(|workload| workload.sequences()).max();
    let slots = slots.unwrap_or(1) as usize;
    let watch = Watch::start();
    let start = Instant::now();
    let executor = open::load_as(model, devices, &args.device, slots, subject.sparse);
    let load_time = start.elapsed();
    let mut private = watch.stop();
    let mut executor = executor?;
    let executor = executor.as_mut();
    let stats = executor.stats();
    let load_seconds = load_time.saturating_sub(stats.tuning).as_secs_f64();
    let pipelines = Pipelines::of(&stats);
    let profile = args.profile.is_some();
    if profile {
        check_timestamps(executor)?;
    }

    let reads = executor.weight_reads();
    let bar = open::progress_bar("measuring {bar:30} {pos}/{len} {msg}");
    bar.set_length(workloads.len() as u64);
    let (mut reports, mut traces) = (Vec::new(), Vec::new());
    let mut rounds = Vec::new();
    for &workload in workloads {
        let stop = || interrupt.pressed();
        let measured = workload.measure(executor, args.repeat, profile, &stop);
        bar.inc(1);
        private = private.max(host_memory::private_bytes());
        let measured = measured.inspect_err(|_| bar.finish_and_clear())?;
        let report = WorkloadReport::of(workload, &measured, reads, executor);
        rounds.extend(measured.rounds.iter().map(|round| round.stats));
        if let Some(round) = measured.kernels {
            traces.push((report.title(), round.times));
        }
        reports.push(report);
    }
    bar.finish_and_clear();

    // Before the copy, whose buffers are no part of running a model.
    let host_memory = HostMemory {
        peak_resident_bytes: host_memory::peak_resident_bytes(),
        peak_private_bytes: private,
    };
    let device_memory = DeviceMemory {
        used_bytes: executor.device_bytes(),
        reserved_bytes: gpus(devices)
            .map(Gpu::reserved_bytes)
            .reduce(|one, other| Some(one? + other?))
            .flatten(),
    };
    // Weights that lie on several devices are read at none's pace.
    let all = model.config().layers;
    let split = args.device.gpu_layers.is_some_and(|layers| layers < all);
    let copy = match devices {
        [device] if !split => copy_bandwidth::measure(device),
        _ => None,
    };
    for report in &mut reports {
        report.relate(copy.as_ref());
    }
    let quant = args.device.quant.as_ref().map(ToString::to_string);
    let report = Report {
        program: concat!("rwkv-cli ", env!("CARGO_PKG_VERSION")),
        debug_build: cfg!(debug_assertions),
        model: report::Model::of(subject.name.clone(), model.config(), quant, reads),
        device: device_info(devices, executor.device()),
        repeat: args.repeat,
        load_seconds,
        pipelines,
        host_memory,
        device_memory,
        copy,
        workloads: reports,
        caches: Caches::of(&executor.stats(), &rounds),
    };
    Ok((report, traces))
}

/// The model to measure, and what to call it.
fn model(args: &BenchArgs) -> Result<(String, Model)> {
    let Some(spec) = &args.synthetic else {
        let file = open::model(&args.model)?;
        return Ok((file.checkpoint().source().to_owned(), file.model()?));
    };
    // RWKV_MODEL is a default, --model is a wish.
    let wished = args.model.model.as_deref().map(std::path::Path::as_os_str);
    if wished.is_some() && wished != std::env::var_os("RWKV_MODEL").as_deref() {
        return Err(UsageError::error(
            "--model and --synthetic exclude each other",
        ));
    }
    Ok((format!("synthetic {spec}"), synthetic(spec)?))
}

/// A model of made-up weights, whose rows are made when they are asked for.
fn synthetic(spec: &SyntheticSpec) -> Result<Model> {
    let weights = SyntheticWeights::new(spec);
    let config = weights.config().clone();
    Ok(Model::new(config, Arc::new(weights))?)
}

/// Fails where kernels cannot be timed.
fn check_timestamps(executor: &mut dyn Executor) -> Result<()> {
    let possible = executor.set_timing(Timing::Kernels)?;
    executor.set_timing(Timing::Off)?;
    anyhow::ensure!(
        possible,
        "--profile needs a GPU with timestamps, and {} has none",
        executor.device()
    );
    Ok(())
}

/// Those of the devices that are GPUs.
fn gpus(devices: &[Device]) -> impl Iterator<Item = &Gpu> {
    devices.iter().filter_map(|device| match device {
        Device::Cpu => None,
        Device::Gpu(gpu) => Some(gpu),
    })
}

/// What is known of the devices, by the first GPU among them.
fn device_info(devices: &[Device], name: &str) -> DeviceInfo {
    let gpu = gpus(devices).next();
    DeviceInfo {
        name: name.to_owned(),
        backend: gpu.map(|gpu| gpu.backend().to_owned()),
        driver: gpu.map(|gpu| gpu.driver().to_owned()),
        checks: gpus(devices).any(Gpu::checks),
    }
}
