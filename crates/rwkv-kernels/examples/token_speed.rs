//! Times the products of several tokens that read each weight once, beside that of one token.
//!
//! `cargo run --release --example token_speed [-- --only 4096×4096] [--formats f16,q8_0,q4_k] [--tokens 1,2,4,8,16]
//! [--all] [--old]`
//!
//! GB/s are bytes of weights read per second; the last column is the time over that of one token. Each dispatch waits for
//! the one before, as in a model; matrices take turns, as many as pass any cache; times are the GPU's own, the median of
//! seven rounds, after it was busy for 200 ms. After the default shape come the fastest three of a few others, or with
//! `--all` of all candidates; `--old` adds the kernels that are used where these do not suit.

use rwkv_gpu::{
    Buffer, BufferKind, Dispatch, Gpu, Kind, OpenOptions, Selector, Timer, Timing, list_adapters,
};
use rwkv_kernels::{
    Error, Format, GpuMatrix, Kernels, Matrix, Result, View,
    ops::{Function, Linear, StreamLinear, TokenShape},
};
use rwkv_mem::{Cols, Rows, Upload};
use std::{
    env,
    time::{Duration, Instant},
};

/// Bytes of weights that take turns, at least.
const CYCLE: usize = 256 << 20;
const ROUNDS: usize = 7;
const WARM: Duration = Duration::from_millis(200);

const PRODUCTS: [(usize, usize); 4] = [(4096, 4096), (16384, 4096), (65536, 4096), (2048, 2048)];

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let flag = |name: &str| arguments.iter().any(|a| a == name);
    let value = |name: &str, default: &str| -> String {
        let at = arguments.iter().position(|a| a == name);
        let given = at.and_then(|at| arguments.get(at + 1));
        given.map_or(default, String::as_str).to_owned()
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
    println!("| product | format | tokens | shape | µs | GB/s | of one |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    let formats = value("--formats", "f16,q8_0,q4_k");
    let named = |f: &Format| formats.split(',').any(|name| name == f.to_string());
    let tokens = value("--tokens", "1,2,4,8,16");
    let bench = Bench {
        kernels: Kernels::new(&gpu)?,
        tokens: tokens.split(',').filter_map(|n| n.parse().ok()).collect(),
        all: flag("--all"),
        old: flag("--old"),
    };
    let only = value("--only", "");
    for (rows, cols) in PRODUCTS {
        if format!("{rows}×{cols}").contains(&only) {
            for format in Format::ALL.into_iter().filter(named) {
                bench.product(rows, cols, format)?;
            }
        }
    }
    Ok(())
}

struct Bench {
    kernels: Kernels,
    tokens: Vec<usize>,
    all: bool,
    old: bool,
}

impl Bench {
    fn product(&self, rows: usize, cols: usize, format: Format) -> Result<()> {
        let matrices = self.matrices(rows, cols, format)?;
        let most = self.tokens.iter().copied().max().unwrap_or(1);
        let x = self.numbers(View::bytes(most, cols))?;
        let y = self.numbers(View::bytes(most, rows))?;
        let mut one = None;
        for tokens in self.tokens.iter().copied() {
            let mut print = |shape: &str, seconds: f64| {
                if tokens == 1 {
                    one = one.or(Some(seconds));
                }
                println!(
                    "| {rows}×{cols} | {format} | {tokens} | {shape} | {:.2} | {:.0} | {} |",
                    seconds * 1e6,
                    matrices[0].bytes() as f64 / seconds / 1e9,
                    one.map_or_else(String::new, |one| format!("{:.2}", seconds / one)),
                );
            };
            let each = |make: &dyn Fn(&GpuMatrix) -> Result<Vec<Dispatch>>| -> Result<f64> {
                let made = matrices.iter().map(make).collect::<Result<Vec<_>>>()?;
                self.seconds(&made.into_iter().flatten().collect::<Vec<_>>())
            };
            if tokens == 1 {
                let seconds = each(&|weight| {
                    let op = StreamLinear {
                        x: view(&x, 1, cols),
                        weight,
                        function: Function::Identity,
                        residual: None,
                        y: view(&y, 1, rows),
                        stores: None,
                    };
                    self.kernels.stream_linear(&op, None)
                })?;
                print("one token's", seconds);
                continue;
            }
            if self.old {
                let seconds = each(&|weight| {
                    self.kernels
                        .linear_shaped(&linear(weight, &x, &y, tokens), None)
                })?;
                print("old", seconds);
            }
            if !self.kernels.stream_tokens_suit(&matrices[0], tokens) {
                continue;
            }
            let default = self.kernels.token_shape(&matrices[0], tokens);
            let time = |shape: TokenShape| {
                each(&|weight| {
                    self.kernels
                        .token_linear(&linear(weight, &x, &y, tokens), Some(shape))
                })
            };
            print(&format!("default: {}", described(default)), time(default)?);
            let mut times = Vec::new();
            for shape in self.shapes(default) {
                times.push((time(shape)?, shape));
            }
            times.sort_by(|a, b| a.0.total_cmp(&b.0));
            for (seconds, shape) in times.into_iter().take(3) {
                print(&described(shape), seconds);
            }
        }
        Ok(())
    }

    fn shapes(&self, default: TokenShape) -> Vec<TokenShape> {
        if self.all {
            return TokenShape::candidates();
        }
        let mut shapes = Vec::new();
        for (threads, lanes, apart, slices) in [
            (256, 8, true, default.slices),
            (256, 4, false, default.slices),
            (256, 16, false, default.slices),
            (256, 16, true, default.slices),
            (256, 32, false, default.slices),
            (256, 8, false, default.slices * 2),
            (256, 8, false, default.slices.div_ceil(2)),
            (256, 8, false, 1),
        ] {
            for (threads, workgroups) in [
                (threads, default.workgroups),
                (threads / 2, 2 * default.workgroups),
                (threads * 2, default.workgroups / 2),
            ] {
                shapes.push(TokenShape {
                    threads,
                    lanes,
                    apart,
                    workgroups,
                    slices,
                });
            }
        }
        shapes
    }

    /// Seconds a dispatch.
    fn seconds(&self, dispatches: &[Dispatch]) -> Result<f64> {
        let gpu = self.kernels.gpu();
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
            Ok(spans.iter().map(rwkv_gpu::TimedSpan::seconds).sum::<f64>() / count as f64)
        };
        let start = Instant::now();
        let mut first = once(dispatches.len())?;
        while start.elapsed() < WARM {
            first = once(dispatches.len())?;
        }
        // About 5 ms, on whatever adapter.
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "clamped"
        )]
        let count = ((5e-3 / first.max(1e-7)) as usize).clamp(2, 2000);
        let mut seconds = (0..ROUNDS)
            .map(|_| once(count))
            .collect::<Result<Vec<_>>>()?;
        seconds.sort_by(f64::total_cmp);
        Ok(seconds[ROUNDS / 2].max(1e-9))
    }

    /// As many matrices as pass any cache.
    fn matrices(&self, rows: usize, cols: usize, format: Format) -> Result<Vec<GpuMatrix>> {
        let row = format.row_bytes(cols).ok_or(Error::Shape {
            what: "measuring".to_owned(),
            problem: format!("{cols} columns of {format}"),
        })?;
        // A few random rows, again and again.
        let mut noise = Noise(1);
        let values: Vec<f32> = (0..16 * cols).map(|_| noise.next() * 0.05).collect();
        let mut few = vec![0; 16 * row];
        for (values, row) in values.chunks_exact(cols).zip(few.chunks_exact_mut(row)) {
            format.spec().quantize(values, row);
        }
        let bytes: Vec<u8> = few.iter().copied().cycle().take(rows * row).collect();
        let matrix = Matrix::new(format, Rows(rows), Cols(cols), &bytes)?;
        let mut upload = Upload::new(self.kernels.gpu());
        let made = (0..=(CYCLE / bytes.len()).clamp(1, 255))
            .map(|_| GpuMatrix::new(self.kernels.gpu(), "measured", &matrix, format, &mut upload));
        let made = made.collect::<Result<Vec<_>>>()?;
        upload.flush()?;
        Ok(made)
    }

    fn numbers(&self, bytes: u64) -> Result<Buffer> {
        let gpu = self.kernels.gpu();
        let buffer = gpu.buffer(BufferKind::Storage, "activations", bytes)?;
        let mut noise = Noise(2);
        let values: Vec<f32> = (0..bytes / 4).map(|_| noise.next()).collect();
        gpu.write(&buffer, 0, bytemuck::cast_slice(&values))?;
        Ok(buffer)
    }
}

fn linear<'a>(weight: &'a GpuMatrix, x: &'a Buffer, y: &'a Buffer, tokens: usize) -> Linear<'a> {
    Linear {
        x: view(x, tokens, weight.shape().cols.0),
        weight,
        bias: None,
        function: Function::Identity,
        residual: None,
        y: view(y, tokens, weight.shape().rows.0),
    }
}

fn described(shape: TokenShape) -> String {
    format!(
        "{} threads, {} lanes{}, {} workgroups, {} slices",
        shape.threads,
        shape.lanes,
        if shape.apart { " apart" } else { "" },
        shape.workgroups,
        shape.slices,
    )
}

fn view(buffer: &Buffer, rows: usize, width: usize) -> View<'_> {
    View {
        buffer,
        offset: 0,
        rows,
        width,
    }
}

/// Marsaglia's xorshift, as numbers from −1 to 1.
struct Noise(u32);

impl Noise {
    fn next(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0 as f32 / (1u32 << 31) as f32 - 1.0
    }
}
