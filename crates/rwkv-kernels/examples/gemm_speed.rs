//! Times the products of many tokens: cooperative matrices in each tile, and the kernel that adapters without them run.
//!
//! `cargo run --release --example gemm_speed [-- --only 32×4096×4096] [--weights f16,columns,q4_k] [--tiles 32x128x64-4]
//! [--all] [--no-check] [--apart 60]`
//!
//! A product of tokens × rows × columns, with weights of a format by rows, or F16 by `columns`. Each line has the times of a
//! tile in µs, by the number of slices. They are without rounding x to f16, which the line `model` includes: that is what
//! a model runs. `none` is the f32 kernel. Slices that leave most of a large GPU at rest, or cut it too fine, are left out
//! but with `--all`. Products by columns and those marked `+` have a residual.
//!
//! Each dispatch waits for the one before; matrices take turns, as many as pass any cache; times are the GPU's own, the
//! median of seven rounds, after it was busy for 200 ms at first. A product's tiles are named before they are compiled;
//! `--apart` gives each tile a process of its own, which may take as many seconds (a driver's compiler may not end).
//!
//! First the results are compared with those of the f32 kernel, in ragged shapes too, each with a residual: the largest
//! difference, over the root mean square of the results. Rounding to f16 makes about 5e-4 of it.

#[allow(dead_code, reason = "each program uses what it needs")]
mod speed;

use rwkv_gpu::{Buffer, Dispatch, Readback};
use rwkv_kernels::{
    Error, Format, GpuColumns, GpuMatrix, Kernels, Matrix, Result, View,
    ops::{CoopShape, CoopTile, Function, HalfRows, Linear, SparseLinear, SparseTuning},
};
use rwkv_mem::{Cols, Rows, Upload};
use std::{
    env,
    io::Write,
    time::{Duration, Instant},
};

/// Weights, with `+` for a residual, rows, columns, and numbers of tokens.
const PRODUCTS: [(&str, usize, usize, &[usize]); 9] = [
    ("f16", 4096, 4096, &[16, 32, 64, 128, 512, 2048]),
    ("f16+", 4096, 4096, &[512, 2048]),
    ("f16", 16384, 4096, &[16, 32, 64, 128, 2048]),
    ("f16", 2048, 2048, &[16, 32, 64, 128]),
    ("columns", 4096, 16384, &[16, 32, 64, 128, 256, 2048]),
    ("columns", 16384, 4096, &[32, 512]),
    ("columns", 2048, 8192, &[32, 64, 128, 256]),
    ("q4_k", 4096, 4096, &[32, 128, 512]),
    ("q8_0", 4096, 4096, &[32, 512]),
];
/// Those whose results are compared: tokens, rows, columns, and inputs of a part of columns.
const COMPARED: [(usize, usize, usize, usize); 4] = [
    (300, 384, 1024, 512),
    (77, 333, 1024, 192),
    (13, 77, 1280, 1280),
    (256, 512, 4096, 4096),
];
/// Between two candidates the GPU has rested for as long as it takes to bind a product.
const WARM_AGAIN: Duration = Duration::from_millis(10);

fn main() -> Result<()> {
    let arguments = speed::Arguments::new();
    let Some(gpu) = speed::open()? else {
        return Ok(());
    };
    let list = |name: &str, default: &str| -> Vec<String> {
        let value = arguments.value(name, default);
        let names = value.split(',').filter(|t| !t.is_empty());
        names.map(str::to_owned).collect()
    };
    let bench = Bench {
        kernels: Kernels::new(&gpu)?,
        tiles: list("--tiles", ""),
        all: arguments.flag("--all"),
    };
    if let Ok(seconds) = arguments.value("--apart", "").parse() {
        bench.apart(Duration::from_secs(seconds), &arguments.0);
        return Ok(());
    }
    let weights = list("--weights", "f16,columns,q4_k,q8_0");
    if !arguments.flag("--no-check") {
        println!("| weights | tile | whole | slices |");
        println!("| --- | --- | --- | --- |");
        for name in &weights {
            bench.compare(name)?;
        }
        println!();
    }
    let only = arguments.value("--only", "");
    println!("| product | weights | tile | µs by slices |");
    println!("| --- | --- | --- | --- |");
    for (name, rows, cols, tokens) in PRODUCTS {
        let named = |t: &&usize| format!("{t}×{rows}×{cols}").contains(&only);
        let tokens: Vec<usize> = tokens.iter().filter(named).copied().collect();
        let format = name.trim_end_matches('+');
        if !tokens.is_empty() && weights.iter().any(|w| w == format) {
            let weights = Weights::new(&bench.kernels, format, rows, cols, usize::MAX, u64::MAX)?;
            let adds = format != name || format == "columns";
            for tokens in tokens {
                let product = Product::new(&bench.kernels, &weights, tokens, adds)?;
                bench.product(name, &product)?;
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

/// Copies of one matrix that take turns.
enum Weights {
    Rows(Vec<GpuMatrix>),
    Columns(Vec<GpuColumns>),
}

impl Weights {
    /// As many as pass any cache, at most `most`; columns in parts of at most `part` bytes.
    fn new(
        kernels: &Kernels,
        name: &str,
        rows: usize,
        cols: usize,
        most: usize,
        part: u64,
    ) -> Result<Self> {
        let gpu = kernels.gpu();
        if name != "columns" {
            let format = Format::ALL.into_iter().find(|f| f.to_string() == name);
            let format = format.ok_or_else(|| Error::Shape {
                what: "measuring".to_owned(),
                problem: format!("there is no format {name}"),
            })?;
            return Ok(Self::Rows(speed::matrices(gpu, rows, cols, format, most)?));
        }
        let mut noise = speed::Noise(1);
        let few: Vec<u8> = (0..16 * cols)
            .flat_map(|_| half::f16::from_f32(noise.next() * 0.05).to_le_bytes())
            .collect();
        let bytes: Vec<u8> = few.iter().copied().cycle().take(rows * cols * 2).collect();
        let matrix = Matrix::new(Format::F16, Rows(rows), Cols(cols), &bytes)?;
        let mut upload = Upload::new(gpu);
        let count = ((256 << 20) / bytes.len()).clamp(1, 255) + 1;
        let made = (0..count.min(most))
            .map(|_| GpuColumns::in_parts(kernels, "measured", &matrix, &mut upload, part));
        Ok(Self::Columns(made.collect::<Result<_>>()?))
    }

    fn count(&self) -> usize {
        match self {
            Self::Rows(all) => all.len(),
            Self::Columns(all) => all.len(),
        }
    }
}

/// Operands of a product.
struct Product<'a> {
    kernels: &'a Kernels,
    weights: &'a Weights,
    tokens: usize,
    rows: usize,
    cols: usize,
    x: Buffer,
    residual: Option<Buffer>,
    y: Buffer,
    halves: HalfRows,
}

/// One of the two operations.
enum Op<'a> {
    Rows(Linear<'a>),
    Columns(SparseLinear<'a>),
}

impl<'a> Product<'a> {
    fn new(kernels: &'a Kernels, weights: &'a Weights, tokens: usize, adds: bool) -> Result<Self> {
        let gpu = kernels.gpu();
        let shape = match weights {
            Weights::Rows(all) => all.first().map(GpuMatrix::shape),
            Weights::Columns(all) => all.first().map(GpuColumns::shape),
        };
        let (rows, cols) = shape.map_or((0, 0), |s| (s.rows.0, s.cols.0));
        let numbers =
            |width, seed| speed::numbers(gpu, View::bytes(tokens, width), -1.0, 1.0, seed);
        Ok(Self {
            kernels,
            weights,
            tokens,
            rows,
            cols,
            x: numbers(cols, 2)?,
            residual: adds.then(|| numbers(rows, 3)).transpose()?,
            y: numbers(rows, 4)?,
            halves: HalfRows::new(gpu, "halves", tokens, cols)?,
        })
    }

    /// The operation with matrix `at`.
    fn op(&self, at: usize) -> Op<'_> {
        let view = |buffer, width| speed::view(buffer, self.tokens, width);
        let (x, y) = (view(&self.x, self.cols), view(&self.y, self.rows));
        let residual = self.residual.as_ref().map(|r| view(r, self.rows));
        match self.weights {
            Weights::Rows(all) => Op::Rows(Linear {
                x,
                weight: &all[at],
                bias: None,
                function: Function::Identity,
                residual,
                y,
            }),
            Weights::Columns(all) => Op::Columns(SparseLinear {
                x,
                weight: &all[at],
                residual,
                y,
                store: None,
                dense: false,
                tuning: SparseTuning::default(),
            }),
        }
    }

    fn shapes(&self) -> (Vec<CoopShape>, Option<CoopShape>) {
        let kernels = self.kernels;
        match self.op(0) {
            Op::Rows(op) => (kernels.coop_shapes(&op), kernels.coop_shape(&op)),
            Op::Columns(op) => (
                kernels.coop_column_shapes(&op),
                kernels.coop_column_shape(&op),
            ),
        }
    }

    fn rounding(&self) -> Result<Dispatch> {
        let x = speed::view(&self.x, self.tokens, self.cols);
        self.kernels.half_rows(&x, &self.halves)
    }

    fn coop(&self, at: usize, shape: CoopShape) -> Result<Vec<Dispatch>> {
        match self.op(at) {
            Op::Rows(op) => self.kernels.coop_linear(&op, &self.halves, shape),
            Op::Columns(op) => self.kernels.coop_columns(&op, &self.halves, shape),
        }
    }

    /// What a model runs.
    fn model(&self, at: usize) -> Result<Vec<Dispatch>> {
        match self.op(at) {
            Op::Rows(op) => self.kernels.linear(&op),
            Op::Columns(op) => self.kernels.sparse_linear(&op),
        }
    }

    /// The f32 kernel.
    fn plain(&self, at: usize) -> Result<Vec<Dispatch>> {
        match self.op(at) {
            Op::Rows(op) => self.kernels.linear_shaped(&op, None),
            Op::Columns(op) => self
                .kernels
                .sparse_linear(&SparseLinear { dense: true, ..op }),
        }
    }

    /// y after `dispatches`, which was NaN before.
    fn result(&self, dispatches: &[Dispatch]) -> Result<Vec<f32>> {
        let gpu = self.kernels.gpu();
        let (stride, bytes) = (View::stride(self.rows), View::bytes(self.tokens, self.rows));
        let nothing = vec![f32::NAN; stride * self.tokens];
        gpu.write(&self.y, 0, bytemuck::cast_slice(&nothing))?;
        let readback = Readback::new(gpu, "compared", bytes)?;
        let mut recorder = gpu.recorder("compared");
        recorder.dispatch(dispatches);
        recorder.read(&self.y, 0, bytes, &readback);
        let submission = recorder.submit()?;
        let all: Vec<f32> = readback.view(gpu, &submission, bytes, bytemuck::pod_collect_to_vec)?;
        let rows = all.chunks_exact(stride);
        Ok(rows
            .flat_map(|row| row.iter().copied().take(self.rows))
            .collect())
    }

    /// Compiles what the shapes need side by side.
    fn compile(&self, shapes: &[CoopShape]) {
        std::thread::scope(|scope| {
            for shape in shapes {
                scope.spawn(move || self.coop(0, *shape).is_ok());
            }
        });
    }

    /// µs of one product, of however many dispatches.
    fn micros(&self, make: impl Fn(usize) -> Result<Vec<Dispatch>>) -> Result<f64> {
        let made: Vec<_> = (0..self.weights.count()).map(make).collect::<Result<_>>()?;
        let made: Vec<_> = made.into_iter().flatten().collect();
        let each = speed::seconds_after(self.kernels.gpu(), &made, WARM_AGAIN, 3e-3)?;
        Ok(each * made.len() as f64 / self.weights.count() as f64 * 1e6)
    }
}

struct Bench {
    kernels: Kernels,
    tiles: Vec<String>,
    all: bool,
}

impl Bench {
    /// Runs this program again for each tile.
    fn apart(&self, most: Duration, arguments: &[String]) {
        let at = arguments.iter().position(|a| a == "--apart").unwrap_or(0);
        let others = arguments.iter().enumerate();
        let others: Vec<_> = others
            .filter(|(i, _)| *i != at && *i != at + 1)
            .map(|(_, a)| a)
            .collect();
        for tile in CoopTile::all().filter(|tile| self.named(tile.name())) {
            let program = env::current_exe().map(std::process::Command::new);
            let name = ["--tiles", tile.name()];
            let child = program.and_then(|mut p| p.args(&others).args(name).spawn());
            let Ok(mut child) = child else {
                continue;
            };
            let start = Instant::now();
            while matches!(child.try_wait(), Ok(None)) {
                if start.elapsed() > most {
                    let seconds = most.as_secs();
                    print(&format!("\n{}: not done after {seconds} s\n", tile.name()));
                    let _ = child.kill();
                    let _ = child.wait();
                    break;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }

    fn named(&self, tile: &str) -> bool {
        self.tiles.is_empty() || self.tiles.iter().any(|t| t == tile)
    }

    /// Those of `shapes` that are to be tried, tile by tile.
    fn tried(
        &self,
        shapes: &[CoopShape],
        product: &Product<'_>,
    ) -> Vec<(CoopTile, Vec<CoopShape>)> {
        let tokens = product.tokens;
        let wanted = |shape: &&CoopShape| {
            let (high, wide) = shape.tile.size();
            let workgroups = tokens.div_ceil(high) * product.rows.div_ceil(wide) * shape.slices;
            let some = [1, 2, 4, 8, 16].contains(&shape.slices);
            let busy = shape.slices == 1 && workgroups > 90 || (90..=600).contains(&workgroups);
            // A tile that is mostly empty, or reads W often.
            let full = high < 2 * tokens && high >= tokens.min(64) && high * 2 >= tokens.min(256);
            self.all || some && busy && full
        };
        let mut tiles: Vec<(CoopTile, Vec<CoopShape>)> = Vec::new();
        for shape in shapes.iter().filter(wanted) {
            if !self.named(shape.tile.name()) {
                continue;
            }
            match tiles.iter_mut().find(|(tile, _)| *tile == shape.tile) {
                Some((_, of_tile)) => of_tile.push(*shape),
                None => tiles.push((shape.tile, vec![*shape])),
            }
        }
        tiles
    }

    fn compare(&self, name: &str) -> Result<()> {
        let mut worst: Vec<(&str, [f64; 2])> = Vec::new();
        for (tokens, rows, cols, part) in COMPARED {
            let part = (part * rows.next_multiple_of(8) * 2) as u64;
            let weights = Weights::new(&self.kernels, name, rows, cols, 1, part)?;
            let product = Product::new(&self.kernels, &weights, tokens, true)?;
            let want = product.result(&product.plain(0)?)?;
            let size = want.iter().map(|w| f64::from(w * w)).sum::<f64>() / want.len() as f64;
            let few = |shape: &CoopShape| {
                [1, 2, 3, 8].contains(&shape.slices) && self.named(shape.tile.name())
            };
            let (mut shapes, _) = product.shapes();
            shapes.retain(few);
            product.compile(&shapes);
            for shape in shapes {
                let mut dispatches = vec![product.rounding()?];
                dispatches.extend(product.coop(0, shape)?);
                let got = product.result(&dispatches)?;
                let apart = got.iter().zip(&want).map(|(g, w)| f64::from((g - w).abs()));
                // Not `max`: a NaN is to be seen.
                let larger = |m: f64, a: f64| if a <= m { m } else { a };
                let most = apart.fold(0.0, larger) / size.sqrt();
                let tile = shape.tile.name();
                let at = worst.iter().position(|(t, _)| *t == tile);
                let at = at.unwrap_or_else(|| {
                    worst.push((tile, [0.0; 2]));
                    worst.len() - 1
                });
                let end = usize::from(shape.slices > 1);
                let of_end = &mut worst[at].1[end];
                *of_end = larger(*of_end, most);
            }
        }
        for (tile, [whole, slices]) in worst {
            println!("| {name} | {tile} | {whole:.1e} | {slices:.1e} |");
        }
        Ok(())
    }

    fn product(&self, name: &str, product: &Product<'_>) -> Result<()> {
        let (tokens, rows, cols) = (product.tokens, product.rows, product.cols);
        let start = |tile: &str| print(&format!("| {tokens}×{rows}×{cols} | {name} | {tile} |"));
        let time = |label: &str, made: Result<f64>| match made {
            Ok(micros) => print(&format!(" {label}{micros:.1}")),
            Err(error) => print(&format!(" {label}{error}")),
        };
        let label = |shape: &CoopShape| format!("{}: ", shape.slices);
        let (shapes, chosen) = product.shapes();
        // While something compiles the GPU rests, and its clocks fall: what comes next would take three times as long.
        let plain = product.plain(0)?;
        let warm = || speed::seconds_after(self.kernels.gpu(), &plain, speed::WARM, 1e-3);
        for (tile, shapes) in self.tried(&shapes, product) {
            start(tile.name());
            product.compile(&shapes);
            warm()?;
            for shape in shapes {
                time(&label(&shape), product.micros(|at| product.coop(at, shape)));
            }
            print(" |\n");
        }
        if let Some(chosen) = chosen.filter(|_| self.tiles.is_empty()) {
            start("model");
            time("", product.micros(|at| product.model(at)));
            print(&format!(" ({} {}", chosen.tile.name(), label(&chosen)));
            time("", product.micros(|at| product.coop(at, chosen)));
            time(
                "+ rounding ",
                product.micros(|_| Ok(vec![product.rounding()?])),
            );
            print(") |\n");
        }
        // It takes long, and does not depend on the matrix.
        if self.tiles.is_empty() && (tokens <= 128 || self.all) {
            start("none");
            time("", product.micros(|at| product.plain(at)));
            print(" |\n");
        }
        Ok(())
    }
}
