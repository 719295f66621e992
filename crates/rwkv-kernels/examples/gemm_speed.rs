//! Times the products of many tokens: cooperative matrices in each tile, and the kernel that adapters without them run.
//!
//! `cargo run --release --example gemm_speed [-- --only 2048×4096×4096] [--formats f16,q8_0,q4_k] [--tiles 128x128x32-4]
//! [--all] [--no-check] [--apart 60]`
//!
//! A product of tokens × rows × columns. Times of tiles are without rounding x to f16, which the line `linear` includes:
//! that is what a model runs. Each dispatch waits for the one before; matrices take turns, as many as pass any cache; times
//! are the GPU's own, the median of seven rounds, after it was busy for 200 ms. `--all` has every tile in every number of
//! slices, otherwise those that have about as many workgroups as a large GPU wants. Each line is printed when it is known,
//! and its tile named before it is compiled; `--apart` gives each tile a process of its own, which may take as many seconds
//! (a driver's compiler may not end).
//!
//! First the tiles' results are compared with those of the other kernel, in ragged shapes too: the largest difference, over
//! the root mean square of the results. Rounding to f16 makes about 5e-4 of it.

use rwkv_gpu::{
    Buffer, BufferKind, Dispatch, Gpu, Kind, OpenOptions, Readback, Selector, Timer, Timing,
    list_adapters,
};
use rwkv_kernels::{
    Error, Format, GpuMatrix, Kernels, Matrix, Result, View,
    ops::{CoopShape, Function, HalfRows, Linear},
};
use rwkv_mem::{Cols, Rows, Upload};
use std::{
    env,
    io::Write,
    time::{Duration, Instant},
};

/// Bytes of weights that take turns, at least.
const CYCLE: usize = 256 << 20;
const ROUNDS: usize = 7;
const WARM: Duration = Duration::from_millis(200);

/// Tokens, rows, columns.
const PRODUCTS: [(usize, usize, usize); 7] = [
    (2048, 4096, 4096),
    (512, 4096, 4096),
    (128, 4096, 4096),
    (64, 4096, 4096),
    (32, 4096, 4096),
    (2048, 16384, 4096),
    (2048, 4096, 16384),
];
/// Those whose results are compared.
const COMPARED: [(usize, usize, usize); 3] = [(300, 384, 1024), (77, 333, 1024), (256, 512, 4096)];

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
    println!("{}", gpu.name());
    println!("{:?}\n", gpu.capabilities());
    let formats = value("--formats", "f16,q8_0,q4_k");
    let named = |f: &Format| formats.split(',').any(|name| name == f.to_string());
    let tiles = value("--tiles", "");
    let bench = Bench {
        kernels: Kernels::new(&gpu)?,
        tiles: tiles
            .split(',')
            .filter(|t| !t.is_empty())
            .map(str::to_owned)
            .collect(),
        all: flag("--all"),
    };
    if let Ok(seconds) = value("--apart", "").parse() {
        return bench.apart(Duration::from_secs(seconds), &arguments);
    }
    let only = value("--only", "");
    let formats: Vec<Format> = Format::ALL.into_iter().filter(named).collect();
    if !flag("--no-check") {
        println!("| format | tile | differences |");
        println!("| --- | --- | --- |");
        for format in formats.iter().copied() {
            bench.compare(format)?;
        }
        println!();
    }
    println!("| product | format | tile | slices | compiled in ms | µs | TFLOP/s |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for (tokens, rows, cols) in PRODUCTS {
        if format!("{tokens}×{rows}×{cols}").contains(&only) {
            for format in formats.iter().copied() {
                bench.product(tokens, rows, cols, format)?;
            }
        }
    }
    Ok(())
}

/// Prints at once: what follows may take long, or never end.
fn print(text: &str) {
    print!("{text}");
    let _ = std::io::stdout().flush();
}

struct Bench {
    kernels: Kernels,
    tiles: Vec<String>,
    all: bool,
}

impl Bench {
    /// Runs this program again for each tile.
    fn apart(&self, most: Duration, arguments: &[String]) -> Result<()> {
        let Some(weight) = self.matrices(64, 1024, Format::F16, 1)?.pop() else {
            return Ok(());
        };
        let (x, y) = (
            self.numbers(View::bytes(64, 1024))?,
            self.numbers(View::bytes(64, 64))?,
        );
        let mut tiles: Vec<_> = self
            .kernels
            .coop_shapes(&linear(&weight, &x, &y, 64))
            .iter()
            .map(|s| s.tile.name())
            .collect();
        tiles.dedup();
        let at = arguments.iter().position(|a| a == "--apart").unwrap_or(0);
        let others: Vec<_> = arguments
            .iter()
            .enumerate()
            .filter(|(i, _)| *i != at && *i != at + 1)
            .map(|(_, a)| a)
            .collect();
        for tile in tiles {
            let program = env::current_exe().map(std::process::Command::new);
            let child = program.and_then(|mut p| p.args(&others).args(["--tiles", tile]).spawn());
            let Ok(mut child) = child else {
                continue;
            };
            let start = Instant::now();
            while matches!(child.try_wait(), Ok(None)) {
                if start.elapsed() > most {
                    print(&format!("\n{tile}: not done after {} s\n", most.as_secs()));
                    let _ = child.kill();
                    let _ = child.wait();
                    break;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        Ok(())
    }

    /// The shapes to be tried.
    fn shapes(&self, op: &Linear<'_>) -> Vec<CoopShape> {
        let chosen = self.kernels.coop_shape(op);
        let all = self.kernels.coop_shapes(op);
        let wanted = |shape: &CoopShape| {
            let workgroups = |shape: &CoopShape| groups_of(shape, op) * shape.slices;
            let mut enough = all
                .iter()
                .filter(|other| other.tile == shape.tile && workgroups(other) >= 120);
            let enough = enough.next().map_or(16, |other| other.slices);
            // As many as give each core of a large GPU a workgroup, or two.
            let two = shape.slices == 2 * enough && workgroups(shape) < 600;
            self.all || shape.slices == enough || two
        };
        let named = |shape: &CoopShape| {
            self.tiles.is_empty() || self.tiles.iter().any(|t| t == shape.tile.name())
        };
        // A tile that is mostly empty is not tried.
        let full = |shape: &CoopShape| {
            let (tokens, rows) = shape.tile.size();
            let large = op.x.rows <= 128 || tokens * rows >= 64 * 128;
            self.all || (tokens < 2 * op.x.rows && large)
        };
        let mut shapes: Vec<_> = all
            .iter()
            .copied()
            .filter(|s| named(s) && full(s) && wanted(s))
            .collect();
        if let Some(chosen) = chosen.filter(|c| self.tiles.is_empty() && !shapes.contains(c)) {
            shapes.push(chosen);
        }
        shapes
    }

    fn compare(&self, format: Format) -> Result<()> {
        let mut cases = Vec::new();
        for (tokens, rows, cols) in COMPARED {
            let Some(weight) = self.matrices(rows, cols, format, 1)?.pop() else {
                return Ok(());
            };
            let x = self.numbers(View::bytes(tokens, cols))?;
            let y = self.numbers(View::bytes(tokens, rows))?;
            let op = linear(&weight, &x, &y, tokens);
            let want = self.result(&op, &self.kernels.linear_shaped(&op, None)?)?;
            let shapes = self.kernels.coop_shapes(&op);
            cases.push((weight, x, y, want, shapes));
        }
        let shapes = cases.iter().flat_map(|case| &case.4);
        let mut tiles: Vec<_> = shapes.map(|shape| shape.tile.name()).collect();
        tiles.sort_unstable();
        tiles.dedup();
        tiles.retain(|tile| self.tiles.is_empty() || self.tiles.iter().any(|t| t == tile));
        for tile in tiles {
            print(&format!("| {format} | {tile} |"));
            for ((weight, x, y, want, shapes), (tokens, _, cols)) in cases.iter().zip(COMPARED) {
                let op = linear(weight, x, y, tokens);
                let halves = HalfRows::new(self.kernels.gpu(), "halves", tokens, cols)?;
                let size = want.iter().map(|w| f64::from(w * w)).sum::<f64>() / want.len() as f64;
                for shape in shapes
                    .iter()
                    .filter(|s| s.tile.name() == tile && s.slices <= 2)
                {
                    let found = self.kernels.half_rows(&op.x, &halves).and_then(|rounded| {
                        let mut dispatches = vec![rounded];
                        dispatches.extend(self.kernels.coop_linear(&op, &halves, *shape)?);
                        self.result(&op, &dispatches)
                    });
                    match found {
                        Ok(got) => {
                            let apart = got.iter().zip(want).map(|(g, w)| f64::from((g - w).abs()));
                            // Not `max`: a NaN is to be seen.
                            let most = apart.fold(0.0, |m: f64, a| if a <= m { m } else { a });
                            print(&format!(" {:.1e}", most / size.sqrt()));
                        }
                        Err(error) => print(&format!(" {error}")),
                    }
                }
            }
            print(" |\n");
        }
        Ok(())
    }

    /// y after `dispatches`, which was NaN before.
    fn result(&self, op: &Linear<'_>, dispatches: &[Dispatch]) -> Result<Vec<f32>> {
        let gpu = self.kernels.gpu();
        let (stride, bytes) = (View::stride(op.y.width), View::bytes(op.y.rows, op.y.width));
        let nothing = vec![f32::NAN; stride * op.y.rows];
        gpu.write(op.y.buffer, 0, bytemuck::cast_slice(&nothing))?;
        let readback = Readback::new(gpu, "compared", bytes)?;
        let mut recorder = gpu.recorder("compared");
        recorder.dispatch(dispatches);
        recorder.read(op.y.buffer, 0, bytes, &readback);
        let submission = recorder.submit()?;
        let all: Vec<f32> = readback.view(gpu, &submission, bytes, bytemuck::pod_collect_to_vec)?;
        let rows = all.chunks_exact(stride);
        Ok(rows
            .flat_map(|row| row.iter().copied().take(op.y.width))
            .collect())
    }

    fn product(&self, tokens: usize, rows: usize, cols: usize, format: Format) -> Result<()> {
        let matrices = self.matrices(rows, cols, format, usize::MAX)?;
        let x = self.numbers(View::bytes(tokens, cols))?;
        let y = self.numbers(View::bytes(tokens, rows))?;
        let flops = 2.0 * tokens as f64 * rows as f64 * cols as f64;
        let halves = HalfRows::new(self.kernels.gpu(), "halves", tokens, cols);
        let time =
            |tile: &str, slices: usize, make: &dyn Fn(&GpuMatrix) -> Result<Vec<Dispatch>>| {
                print(&format!(
                    "| {tokens}×{rows}×{cols} | {format} | {tile} | {slices} | "
                ));
                let start = Instant::now();
                let made = matrices.iter().map(make).collect::<Result<Vec<_>>>();
                let compiled = start.elapsed().as_millis();
                let time = made
                    .and_then(|made| self.seconds(&made.into_iter().flatten().collect::<Vec<_>>()));
                match time {
                    // Of one product, of however many dispatches.
                    Ok((seconds, dispatches)) => {
                        let seconds = seconds * dispatches as f64 / matrices.len() as f64;
                        let speed = flops / seconds / 1e12;
                        print(&format!(
                            "{compiled} | {:.1} | {speed:.1} |\n",
                            seconds * 1e6
                        ));
                    }
                    Err(error) => print(&format!("{error} |\n")),
                }
            };
        let Some(first) = matrices.first() else {
            return Ok(());
        };
        let op = linear(first, &x, &y, tokens);
        if let (Some(shape), Ok(halves)) = (self.kernels.coop_shape(&op), &halves) {
            if self.tiles.is_empty() {
                time("rounding x", 1, &|_| {
                    Ok(vec![self.kernels.half_rows(&op.x, halves)?])
                });
                time(
                    &format!("linear: {}", shape.tile.name()),
                    shape.slices,
                    &|weight| self.kernels.linear(&linear(weight, &x, &y, tokens)),
                );
            }
            for shape in self.shapes(&op) {
                time(shape.tile.name(), shape.slices, &|weight| {
                    let op = linear(weight, &x, &y, tokens);
                    self.kernels.coop_linear(&op, halves, shape)
                });
            }
        }
        if !self.all && self.tiles.is_empty() {
            time("none", 1, &|weight| {
                self.kernels
                    .linear_shaped(&linear(weight, &x, &y, tokens), None)
            });
        }
        Ok(())
    }

    /// Seconds a dispatch, and how many these are.
    fn seconds(&self, dispatches: &[Dispatch]) -> Result<(f64, usize)> {
        let gpu = self.kernels.gpu();
        let Some(mut timer) = Timer::new(gpu, Timing::Passes)? else {
            return Ok((f64::NAN, 1));
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
        // Whole turns, so that each kind of dispatch counts as often as it should.
        let count = count.next_multiple_of(dispatches.len());
        let mut seconds = (0..ROUNDS)
            .map(|_| once(count))
            .collect::<Result<Vec<_>>>()?;
        seconds.sort_by(f64::total_cmp);
        Ok((seconds[ROUNDS / 2].max(1e-9), dispatches.len()))
    }

    /// As many matrices as pass any cache.
    fn matrices(
        &self,
        rows: usize,
        cols: usize,
        format: Format,
        most: usize,
    ) -> Result<Vec<GpuMatrix>> {
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
        let made = (0..=(CYCLE / bytes.len()).clamp(1, 255).min(most - 1))
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

fn groups_of(shape: &CoopShape, op: &Linear<'_>) -> usize {
    let (tokens, rows) = shape.tile.size();
    op.x.rows.div_ceil(tokens) * op.y.width.div_ceil(rows)
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
