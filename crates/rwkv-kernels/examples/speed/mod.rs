//! What the programs that time kernels share: their arguments, the GPU, random operands, and times.

use rwkv_gpu::{
    Buffer, BufferKind, Dispatch, Gpu, Kind, OpenOptions, Selector, TimedSpan, Timer, Timing,
    list_adapters,
};
use rwkv_kernels::{
    Error, Format, GpuMatrix, Matrix, Result, View,
    ops::{Function, Linear},
};
use rwkv_mem::{Cols, Rows, Upload};
use std::{
    env,
    time::{Duration, Instant},
};

/// Bytes of weights that take turns, at least.
const CYCLE: usize = 256 << 20;
const ROUNDS: usize = 7;
/// How long a GPU is busy until its clocks are where they stay.
pub(crate) const WARM: Duration = Duration::from_millis(200);

/// The program's arguments.
pub(crate) struct Arguments(pub(crate) Vec<String>);

impl Arguments {
    pub(crate) fn new() -> Self {
        Self(env::args().skip(1).collect())
    }

    pub(crate) fn flag(&self, name: &str) -> bool {
        self.0.iter().any(|a| a == name)
    }

    /// What follows `name`.
    pub(crate) fn value(&self, name: &str, default: &str) -> String {
        let at = self.0.iter().position(|a| a == name);
        let given = at.and_then(|at| self.0.get(at + 1));
        given.map_or(default, String::as_str).to_owned()
    }

    pub(crate) fn numbers(&self, name: &str, default: &str) -> Vec<usize> {
        let list = self.value(name, default);
        list.split(',').filter_map(|n| n.parse().ok()).collect()
    }

    pub(crate) fn formats(&self, default: &str) -> Vec<Format> {
        let formats = self.value("--formats", default);
        let named = |f: &Format| formats.split(',').any(|name| name == f.to_string());
        Format::ALL.into_iter().filter(named).collect()
    }
}

/// The GPU that `RWKV_DEVICE` names, or the first that is no software; none, and why is printed, where there is none whose
/// times say something.
pub(crate) fn open() -> Result<Option<Gpu>> {
    let adapters = list_adapters();
    let fast = adapters
        .iter()
        .find(|a| a.refused.is_none() && a.kind != Kind::Software);
    let selector = match (env::var("RWKV_DEVICE"), fast) {
        (Ok(device), _) => device.parse()?,
        (Err(_), Some(adapter)) => Selector::Index(adapter.index),
        (Err(_), None) => {
            println!(
                "there is no GPU adapter here, or a software one, whose speed says nothing: name it in RWKV_DEVICE"
            );
            return Ok(None);
        }
    };
    let gpu = Gpu::open(&selector, &OpenOptions::from_env()?)?;
    if !gpu.has_timestamps() {
        println!("{} has no timestamps, which this measures with", gpu.name());
        return Ok(None);
    }
    println!("{}\n", gpu.name());
    Ok(Some(gpu))
}

/// Seconds a dispatch of `dispatches` one after the other, by the GPU's clock: the median of seven rounds of whole turns,
/// about 5 ms each, after it was busy for 200 ms.
pub(crate) fn seconds(gpu: &Gpu, dispatches: &[Dispatch]) -> Result<f64> {
    seconds_after(gpu, dispatches, WARM, 5e-3)
}

/// As [`seconds`], after it was busy for `warm`, in rounds of about `round` seconds.
pub(crate) fn seconds_after(
    gpu: &Gpu,
    dispatches: &[Dispatch],
    warm: Duration,
    round: f64,
) -> Result<f64> {
    let Some(mut timer) = Timer::new(gpu, Timing::Passes)? else {
        return Ok(f64::NAN);
    };
    let mut once = |count: usize| -> Result<f64> {
        let mut recorder = gpu.recorder("measured");
        timer.dispatch(&mut recorder, "all", dispatches.iter().cycle().take(count))?;
        let submission = recorder.submit()?;
        timer.submitted()?;
        gpu.wait(&submission)?;
        let spans = timer.take().unwrap_or_default();
        Ok(spans.iter().map(TimedSpan::seconds).sum::<f64>() / count as f64)
    };
    let start = Instant::now();
    let mut first = once(dispatches.len())?;
    while start.elapsed() < warm {
        first = once(dispatches.len())?;
    }
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped"
    )]
    let count = ((round / first.max(1e-7)) as usize).clamp(2, 2000);
    let count = count.next_multiple_of(dispatches.len());
    let mut seconds = (0..ROUNDS)
        .map(|_| once(count))
        .collect::<Result<Vec<_>>>()?;
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[ROUNDS / 2].max(1e-9))
}

/// As many matrices as pass any cache, but no more than `most`: a few random rows, again and again.
pub(crate) fn matrices(
    gpu: &Gpu,
    rows: usize,
    cols: usize,
    format: Format,
    most: usize,
) -> Result<Vec<GpuMatrix>> {
    let row = format.row_bytes(cols).ok_or(Error::Shape {
        what: "measuring".to_owned(),
        problem: format!("{cols} columns of {format}"),
    })?;
    let mut noise = Noise(1);
    let values: Vec<f32> = (0..16 * cols).map(|_| noise.next() * 0.05).collect();
    let mut few = vec![0; 16 * row];
    for (values, row) in values.chunks_exact(cols).zip(few.chunks_exact_mut(row)) {
        format.spec().quantize(values, row);
    }
    let bytes: Vec<u8> = few.iter().copied().cycle().take(rows * row).collect();
    let matrix = Matrix::new(format, Rows(rows), Cols(cols), &bytes)?;
    let mut upload = Upload::new(gpu);
    let made = (0..((CYCLE / bytes.len()).clamp(1, 255) + 1).min(most))
        .map(|_| GpuMatrix::new(gpu, "measured", &matrix, format, &mut upload));
    let made = made.collect::<Result<Vec<_>>>()?;
    upload.flush()?;
    Ok(made)
}

/// A buffer of random numbers from `from` to `to`.
pub(crate) fn numbers(gpu: &Gpu, bytes: u64, from: f32, to: f32, seed: u32) -> Result<Buffer> {
    let buffer = gpu.buffer(BufferKind::Storage, "noise", bytes)?;
    let mut noise = Noise(seed.wrapping_mul(2_654_435_761) | 1);
    let values: Vec<f32> = (0..bytes / 4)
        .map(|_| from + (to - from) * (noise.next() + 1.0) / 2.0)
        .collect();
    gpu.write(&buffer, 0, bytemuck::cast_slice(&values))?;
    Ok(buffer)
}

pub(crate) fn view(buffer: &Buffer, rows: usize, width: usize) -> View<'_> {
    View {
        buffer,
        offset: 0,
        rows,
        width,
    }
}

/// The product alone.
pub(crate) fn linear<'a>(
    weight: &'a GpuMatrix,
    x: &'a Buffer,
    y: &'a Buffer,
    tokens: usize,
) -> Linear<'a> {
    Linear {
        x: view(x, tokens, weight.shape().cols.0),
        weight,
        bias: None,
        function: Function::Identity,
        residual: None,
        y: view(y, tokens, weight.shape().rows.0),
    }
}

/// Marsaglia's xorshift, as numbers from −1 to 1.
pub(crate) struct Noise(pub(crate) u32);

impl Noise {
    pub(crate) fn next(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0 as f32 / (1u32 << 31) as f32 - 1.0
    }
}
