//! Times the recurrence over chunks of prompts.
//!
//! `cargo run --release --example wkv_speed [-- --versions 7,6] [--heads 12,32,64] [--tokens 128,512,2048] [--sequences 1,8]
//! [--head-sizes 64] [--all]`
//!
//! Tokens are those of one sequence; all sequences have as many. Each dispatch waits for the one before, as in a model;
//! times are the GPU's own, the median of seven rounds, after it was busy for 100 ms. After the usual way to cut the work
//! and the one whose sums have one order come the fastest four of the others where a prompt is longest, or with `--all` all
//! of them everywhere.

use rwkv_gpu::{
    Binding, Buffer, BufferKind, Dispatch, Gpu, Kind, OpenOptions, Selector, Timer, Timing,
    list_adapters,
};
use rwkv_kernels::{
    BatchTables, GpuVector, Kernels, Page, Result, Span, View,
    ops::{Decay, RecurrenceTile, Wkv6, Wkv7},
};
use rwkv_mem::Upload;
use std::{
    env,
    io::Write,
    time::{Duration, Instant},
};

const ROUNDS: usize = 7;
const WARM: Duration = Duration::from_millis(100);

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let flag = |name: &str| arguments.iter().any(|a| a == name);
    let numbers = |name: &str, default: &str| -> Vec<usize> {
        let at = arguments.iter().position(|a| a == name);
        let given = at.and_then(|at| arguments.get(at + 1));
        let list = given.map_or(default, String::as_str).split(',');
        list.filter_map(|n| n.parse().ok()).collect()
    };
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
            return Ok(());
        }
    };
    let gpu = Gpu::open(&selector, &OpenOptions::from_env()?)?;
    if !gpu.has_timestamps() {
        println!("{} has no timestamps, which this measures with", gpu.name());
        return Ok(());
    }
    println!("{}\n", gpu.name());
    println!("| version | heads | sequences | tokens | cut | µs | µs a token |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    let kernels = Kernels::new(&gpu)?;
    for head_size in numbers("--head-sizes", "64") {
        for heads in numbers("--heads", "12,32,64") {
            for sequences in numbers("--sequences", "1,8") {
                let lengths = numbers("--tokens", "128,512,2048");
                let longest = lengths.iter().copied().max();
                for tokens in lengths {
                    let bench = Bench::new(&kernels, heads, head_size, sequences, tokens)?;
                    for version in numbers("--versions", "7,6") {
                        let others = match flag("--all") {
                            true => usize::MAX,
                            false if longest == Some(tokens) => 4,
                            false => 0,
                        };
                        bench.run(version, others)?;
                    }
                }
            }
        }
    }
    Ok(())
}

/// One shape, with noise for activations and states.
struct Bench<'a> {
    kernels: &'a Kernels,
    heads: usize,
    head_size: usize,
    sequences: usize,
    tokens: usize,
    /// Activations, all of one shape: receptance, decay, keys, value, rate.
    activations: [Buffer; 5],
    /// What version 6 weighs the current token by.
    weights: GpuVector,
    spans: Buffer,
    state: Buffer,
    y: Buffer,
}

impl<'a> Bench<'a> {
    fn new(
        kernels: &'a Kernels,
        heads: usize,
        head_size: usize,
        sequences: usize,
        tokens: usize,
    ) -> Result<Self> {
        let gpu = kernels.gpu();
        let width = heads * head_size;
        let bytes = View::block_bytes(sequences * tokens, width);
        let mut seed = 0;
        let mut noise = |bytes: u64, from: f32, to: f32| {
            seed += 1;
            numbers(gpu, bytes, from, to, seed)
        };
        // A removal key of length 1, about: the state stays in bounds. It follows the replacement key.
        let long = 1.7 / (head_size as f32).sqrt();
        let activations = [
            noise(bytes, -1.0, 1.0)?,
            noise(bytes, 0.6, 1.0)?,
            noise(2 * bytes, -long, long)?,
            noise(bytes, -1.0, 1.0)?,
            noise(bytes, 0.0, 1.0)?,
        ];
        let mut upload = Upload::new(gpu);
        let weights = GpuVector::new(gpu, "weights", &vec![0.3; width], &mut upload)?;
        upload.flush()?;
        let state = noise((sequences * width * head_size * 4) as u64, -1.0, 1.0)?;
        let [count, length] = [sequences, tokens].map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        let spans = (0..count).map(|slot| Span {
            start: slot * length,
            length,
            slot,
            padding: 0,
        });
        let spans: Vec<_> = spans.collect();
        let table = gpu.buffer(BufferKind::Storage, "spans", size_of_val(&*spans) as u64)?;
        gpu.write(&table, 0, bytemuck::cast_slice(&spans))?;
        Ok(Self {
            kernels,
            heads,
            head_size,
            sequences,
            tokens,
            activations,
            weights,
            spans: table,
            state,
            y: gpu.buffer(BufferKind::Storage, "result", bytes)?,
        })
    }

    fn run(&self, version: usize, others: usize) -> Result<()> {
        let states = self.sequences * self.heads;
        let time = |tile| self.seconds(&self.dispatch(version, tile)?);
        let usual = RecurrenceTile::usual(
            self.kernels,
            states,
            self.head_size,
            if version == 7 { 4 } else { 2 },
        );
        let one_order = RecurrenceTile::in_one_order(self.kernels, self.head_size);
        self.print(version, "usual: ", usual, time(usual)?);
        self.print(version, "one order: ", one_order, time(one_order)?);
        if others > 0 {
            let mut times = Vec::new();
            for tile in RecurrenceTile::candidates() {
                if tile.fits(self.kernels, self.head_size) {
                    times.push((time(tile)?, tile));
                }
            }
            times.sort_by(|a, b| a.0.total_cmp(&b.0));
            for (seconds, tile) in times.into_iter().take(others) {
                self.print(version, "", tile, seconds);
            }
        }
        Ok(())
    }

    fn print(&self, version: usize, name: &str, tile: RecurrenceTile, seconds: f64) {
        let heads = if self.head_size == 64 {
            self.heads.to_string()
        } else {
            format!("{} of {}", self.heads, self.head_size)
        };
        println!(
            "| {version} | {heads} | {} | {} | {name}{} rows a team of {}, {} threads, stage {}, block {} | {:.1} | {:.3} |",
            self.sequences,
            self.tokens,
            tile.rows,
            tile.team,
            tile.threads,
            tile.stage,
            tile.block,
            seconds * 1e6,
            seconds * 1e6 / self.tokens as f64,
        );
        // What is there is there when a later cut takes too long.
        let _ = std::io::stdout().flush();
    }

    fn dispatch(&self, version: usize, tile: RecurrenceTile) -> Result<Dispatch> {
        let view = |buffer| View {
            buffer,
            offset: 0,
            rows: self.sequences * self.tokens,
            width: self.heads * self.head_size,
        };
        let [r, w, keys, v, a] = self.activations.each_ref().map(view);
        let batch = BatchTables {
            tokens: Binding::from(&self.spans),
            spans: Binding::from(&self.spans),
            outputs: Binding::from(&self.spans),
            span_count: self.sequences,
        };
        let page = Page {
            first_slot: 0,
            slots: u32::try_from(self.sequences).unwrap_or(u32::MAX),
            padding: [0; 2],
        };
        if version == 6 {
            let op = Wkv6 {
                batch,
                r,
                w: Decay::Tokens(w),
                k: keys,
                v,
                u: &self.weights,
                head_size: self.head_size,
                state: &self.state,
                page,
                y: view(&self.y),
            };
            return self.kernels.wkv6_tiled(&op, tile);
        }
        let op = Wkv7 {
            batch,
            r,
            w,
            keys,
            v,
            a,
            head_size: self.head_size,
            state: &self.state,
            page,
            y: view(&self.y),
        };
        self.kernels.wkv7_tiled(&op, tile)
    }

    /// Seconds a dispatch.
    fn seconds(&self, dispatch: &Dispatch) -> Result<f64> {
        let gpu = self.kernels.gpu();
        let Some(mut timer) = Timer::new(gpu, Timing::Passes)? else {
            return Ok(f64::NAN);
        };
        let mut once = |count: usize| -> Result<f64> {
            let mut recorder = gpu.recorder("measured");
            timer.dispatch(&mut recorder, "all", std::iter::repeat_n(dispatch, count))?;
            let submission = recorder.submit()?;
            timer.submitted()?;
            gpu.wait(&submission)?;
            let spans = timer.take().unwrap_or_default();
            Ok(spans.iter().map(rwkv_gpu::TimedSpan::seconds).sum::<f64>() / count as f64)
        };
        let start = Instant::now();
        let mut first = once(1)?;
        while start.elapsed() < WARM {
            first = once(1)?;
        }
        // About 5 ms, on whatever adapter.
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "clamped"
        )]
        let count = ((5e-3 / first.max(1e-7)) as usize).clamp(2, 500);
        let mut seconds = (0..ROUNDS)
            .map(|_| once(count))
            .collect::<Result<Vec<_>>>()?;
        seconds.sort_by(f64::total_cmp);
        Ok(seconds[ROUNDS / 2].max(1e-9))
    }
}

/// A buffer of random numbers from `from` to `to`, by Marsaglia's xorshift.
fn numbers(gpu: &Gpu, bytes: u64, from: f32, to: f32, seed: u32) -> Result<Buffer> {
    let buffer = gpu.buffer(BufferKind::Storage, "noise", bytes)?;
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let values: Vec<f32> = (0..bytes / 4)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            from + (to - from) * (state as f32 / u32::MAX as f32)
        })
        .collect();
    gpu.write(&buffer, 0, bytemuck::cast_slice(&values))?;
    Ok(buffer)
}
