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

#[allow(dead_code, reason = "each program uses what it needs")]
mod speed;

use rwkv_gpu::{Dispatch, Readback};
use rwkv_kernels::{
    Format, GpuMatrix, Kernels, Result, View,
    ops::{CoopShape, HalfRows, Linear},
};
use speed::linear;
use std::{
    env,
    io::Write,
    time::{Duration, Instant},
};

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
    let arguments = speed::Arguments::new();
    let Some(gpu) = speed::open()? else {
        return Ok(());
    };
    let tiles = arguments.value("--tiles", "");
    let bench = Bench {
        kernels: Kernels::new(&gpu)?,
        tiles: tiles
            .split(',')
            .filter(|t| !t.is_empty())
            .map(str::to_owned)
            .collect(),
        all: arguments.flag("--all"),
    };
    if let Ok(seconds) = arguments.value("--apart", "").parse() {
        return bench.apart(Duration::from_secs(seconds), &arguments.0);
    }
    let only = arguments.value("--only", "");
    let formats = arguments.formats("f16,q8_0,q4_k");
    if !arguments.flag("--no-check") {
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
        let Some(weight) = speed::matrices(self.kernels.gpu(), 64, 1024, Format::F16, 1)?.pop()
        else {
            return Ok(());
        };
        let (x, y) = (
            speed::numbers(self.kernels.gpu(), View::bytes(64, 1024), -1.0, 1.0, 2)?,
            speed::numbers(self.kernels.gpu(), View::bytes(64, 64), -1.0, 1.0, 2)?,
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
            let Some(weight) = speed::matrices(self.kernels.gpu(), rows, cols, format, 1)?.pop()
            else {
                return Ok(());
            };
            let x = speed::numbers(self.kernels.gpu(), View::bytes(tokens, cols), -1.0, 1.0, 2)?;
            let y = speed::numbers(self.kernels.gpu(), View::bytes(tokens, rows), -1.0, 1.0, 2)?;
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
        let matrices = speed::matrices(self.kernels.gpu(), rows, cols, format, usize::MAX)?;
        let x = speed::numbers(self.kernels.gpu(), View::bytes(tokens, cols), -1.0, 1.0, 2)?;
        let y = speed::numbers(self.kernels.gpu(), View::bytes(tokens, rows), -1.0, 1.0, 2)?;
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
                let time = made.and_then(|made| {
                    let made: Vec<_> = made.into_iter().flatten().collect();
                    Ok((speed::seconds(self.kernels.gpu(), &made)?, made.len()))
                });
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
}

fn groups_of(shape: &CoopShape, op: &Linear<'_>) -> usize {
    let (tokens, rows) = shape.tile.size();
    op.x.rows.div_ceil(tokens) * op.y.width.div_ceil(rows)
}
