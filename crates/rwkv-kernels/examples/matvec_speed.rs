//! Measures the matrix-vector kernels that any adapter can run: products alone, and several as RWKV-7 has them. (Those
//! that adapters with subgroups run instead: `token_speed`.)
//!
//! `cargo run --release --example matvec_speed [-- --chained] [--all] [--only TEXT] [--formats f16,q4_k] [--tokens 1,8]`
//!
//! Each row is a product: GB/s are bytes of weights read per second. The matrices are as many as pass any cache.
//! `--chained` makes each dispatch wait for the one before, as in a model; `--all` tries every candidate shape and
//! prints the fastest three after the default one; `--only` keeps rows whose name contains TEXT.

#[allow(dead_code, reason = "each program uses what it needs")]
mod speed;

use rwkv_gpu::{Buffer, BufferKind, Dispatch, Gpu, Kind, OpenOptions, Selector, list_adapters};
use rwkv_kernels::{
    Error, Format, GpuMatrix, Kernels, Matrix, Result, View,
    ops::{Function, Linear, MatvecShape, Projections, Segment, Stack},
};
use rwkv_mem::{Cols, Rows, Upload};
use speed::{Noise, view};
use std::{env, time::Instant};

/// Bytes of weights that the dispatches cycle through, at least.
const CYCLE: u64 = 256 << 20;
/// Rounds, of which the median counts.
const ROUNDS: usize = 7;

/// Rows × columns of single products: those of the published models, and the head.
const LINEAR: [(usize, usize); 11] = [
    (768, 768),
    (3072, 768),
    (768, 3072),
    (2048, 2048),
    (8192, 2048),
    (2048, 8192),
    (4096, 4096),
    (16384, 4096),
    (4096, 16384),
    (65536, 768),
    (65536, 4096),
];

/// RWKV-7's width, and low ranks of decay, rate, value and gate.
const MODELS: [(&str, usize, [usize; 4]); 3] = [
    ("0.1B", 768, [64, 64, 32, 128]),
    ("1.5B", 2048, [96, 96, 64, 256]),
    ("7.2B", 4096, [128, 128, 96, 480]),
];

struct Options {
    chained: bool,
    all: bool,
    only: String,
    formats: Vec<Format>,
    tokens: Vec<usize>,
}

fn main() -> Result<()> {
    let arguments = speed::Arguments::new();
    let options = Options {
        chained: arguments.flag("--chained"),
        all: arguments.flag("--all"),
        only: arguments.value("--only", ""),
        formats: arguments.formats("f16,q8_0,q4_0,q4_k"),
        tokens: arguments.numbers("--tokens", "1"),
    };
    let adapters = list_adapters();
    let selector = match (
        env::var("RWKV_DEVICE"),
        adapters
            .iter()
            .find(|a| a.refused.is_none() && a.kind != Kind::Software),
    ) {
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
    println!(
        "{}, {}",
        gpu.name(),
        if options.chained {
            "each dispatch after the one before"
        } else {
            "independent dispatches"
        }
    );
    println!(
        "| product | format | tokens | shape | µs | GB/s |\n| --- | --- | --- | --- | --- | --- |"
    );
    let bench = Bench {
        kernels: Kernels::new(&gpu)?,
        options,
    };
    for format in bench.options.formats.clone() {
        for tokens in bench.options.tokens.clone() {
            for (rows, cols) in LINEAR {
                bench.linear(rows, cols, format, tokens)?;
            }
            for (model, width, ranks) in MODELS {
                bench.projections(model, width, ranks, format, tokens)?;
            }
        }
    }
    Ok(())
}

struct Bench {
    kernels: Kernels,
    options: Options,
}

impl Bench {
    fn gpu(&self) -> &Gpu {
        self.kernels.gpu()
    }

    fn wanted(&self, name: &str) -> bool {
        name.contains(&self.options.only)
    }

    /// Prints the default shape and, if asked for, the fastest candidates. `make` has the dispatches that cycle.
    fn rows(
        &self,
        name: &str,
        format: Format,
        tokens: usize,
        bytes: u64,
        default: MatvecShape,
        make: impl Fn(MatvecShape) -> Result<Vec<Dispatch>>,
    ) -> Result<()> {
        let print = |label: &str, shape: MatvecShape, seconds: f64| {
            println!(
                "| {name} | {format} | {tokens} | {label}{} | {:.2} | {:.0} |",
                described(shape),
                seconds * 1e6,
                bytes as f64 / seconds / 1e9
            );
        };
        print("default ", default, self.seconds(&make(default)?)?);
        if self.options.all {
            let mut times = Vec::new();
            for shape in MatvecShape::candidates() {
                let shape = MatvecShape {
                    workgroups: default.workgroups,
                    ..shape
                };
                times.push((self.seconds(&make(shape)?)?, shape));
            }
            times.sort_by(|a, b| a.0.total_cmp(&b.0));
            for (seconds, shape) in times.into_iter().take(3) {
                print("", shape, seconds);
            }
        }
        Ok(())
    }

    /// Seconds a dispatch: the difference between long and short submissions, which leaves out what a submission costs.
    fn seconds(&self, dispatches: &[Dispatch]) -> Result<f64> {
        let once = |times: usize| -> Result<f64> {
            let mut recorder = self.gpu().recorder("measure");
            recorder.dispatch(dispatches.iter().cycle().take(times));
            let start = Instant::now();
            let submission = recorder.submit()?;
            self.gpu().wait(&submission)?;
            Ok(start.elapsed().as_secs_f64())
        };
        // About 5 ms for the difference, on whatever adapter.
        let first = once(dispatches.len())?.max(once(dispatches.len())?) / dispatches.len() as f64;
        #[allow(clippy::cast_possible_truncation, reason = "clamped")]
        let count = ((5e-3 / first.max(1e-7)) as usize).clamp(2, 4000);
        let mut seconds = Vec::new();
        for _ in 0..ROUNDS {
            let short = once(count)?;
            seconds.push((once(3 * count)? - short) / (2 * count) as f64);
        }
        seconds.sort_by(f64::total_cmp);
        Ok(seconds[ROUNDS / 2].max(1e-9))
    }

    /// As many matrices as pass any cache, each with the members' rows.
    fn matrices(
        &self,
        members: &[usize],
        cols: usize,
        format: Format,
        copies: Option<usize>,
    ) -> Result<Vec<GpuMatrix>> {
        let rows: usize = members.iter().sum();
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
        let cycle = usize::try_from(CYCLE).unwrap_or(usize::MAX);
        let copies = copies.unwrap_or((cycle / bytes.len().max(1)).clamp(1, 255) + 1);
        let mut upload = Upload::new(self.gpu());
        let made = (0..copies)
            .map(|_| GpuMatrix::new(self.gpu(), "measured", &matrix, format, &mut upload));
        let made = made.collect::<Result<Vec<_>>>()?;
        upload.flush()?;
        Ok(made)
    }

    /// Buffers of `bytes` for the results of `copies` dispatches: one for all of them where they wait for each other.
    fn results(&self, bytes: u64, copies: usize) -> Result<Vec<Buffer>> {
        let count = if self.options.chained { 1 } else { copies };
        let make = |_| self.gpu().buffer(BufferKind::Storage, "results", bytes);
        Ok((0..count).map(make).collect::<rwkv_gpu::Result<_>>()?)
    }

    fn input(&self, bytes: u64) -> Result<Buffer> {
        let buffer = self.gpu().buffer(BufferKind::Storage, "inputs", bytes)?;
        let mut noise = Noise(2);
        let values: Vec<f32> = (0..bytes / 4).map(|_| noise.next()).collect();
        self.gpu()
            .write(&buffer, 0, bytemuck::cast_slice(&values))?;
        Ok(buffer)
    }

    fn linear(&self, rows: usize, cols: usize, format: Format, tokens: usize) -> Result<()> {
        let name = format!("{rows}×{cols}");
        if !self.wanted(&name) || format.row_bytes(cols).is_none() {
            return Ok(());
        }
        let matrices = self.matrices(&[rows], cols, format, None)?;
        let x = self.input(View::bytes(tokens, cols))?;
        let results = self.results(View::bytes(tokens, rows), matrices.len())?;
        let default = self.kernels.matvec_shape(&matrices[0], tokens);
        self.rows(
            &name,
            format,
            tokens,
            matrices[0].bytes(),
            default,
            |shape| {
                let mut all = Vec::new();
                for (weight, y) in matrices.iter().zip(results.iter().cycle()) {
                    let op = Linear {
                        x: view(&x, tokens, cols),
                        weight,
                        bias: None,
                        function: Function::Identity,
                        residual: None,
                        y: view(y, tokens, rows),
                    };
                    all.extend(self.kernels.linear_shaped(&op, Some(shape))?);
                }
                Ok(all)
            },
        )
    }

    fn projections(
        &self,
        model: &str,
        width: usize,
        ranks: [usize; 4],
        format: Format,
        tokens: usize,
    ) -> Result<()> {
        let name = format!("{model} projections");
        if !self.wanted(&name) || format.row_bytes(width).is_none() {
            return Ok(());
        }
        let matrices = self.matrices(&[width; 3], width, format, None)?;
        let pairs = self.matrices(&ranks, width, Format::F16, Some(matrices.len()))?;
        let x = self.input(6 * View::block_bytes(tokens, width))?;
        let mut segments = Vec::new();
        let mut end = 0;
        let functions = [
            Function::Tanh,
            Function::Identity,
            Function::Identity,
            Function::Sigmoid,
        ];
        for (stack, sizes) in [
            (Stack::Weights, &[width; 3][..]),
            (Stack::Pairs, &ranks[..]),
        ] {
            let mut first = 0;
            for (number, rows) in sizes.iter().enumerate() {
                segments.push(Segment {
                    stack,
                    rows: first..first + rows,
                    x: segments.len() % 6,
                    function: match stack {
                        Stack::Weights => Function::Identity,
                        Stack::Pairs => functions[number],
                    },
                    y_offset: end,
                });
                first += rows;
                end += View::block_bytes(tokens, *rows);
            }
        }
        let results = self.results(end, matrices.len())?;
        // The default shape, which `projections` finds from all rows, is close to that of one matrix.
        let default = self.kernels.matvec_shape(&matrices[0], tokens);
        let bytes = matrices[0].bytes() + pairs[0].bytes();
        self.rows(&name, format, tokens, bytes, default, |shape| {
            let each = matrices.iter().zip(&pairs).zip(results.iter().cycle());
            each.map(|((weights, pairs), y)| {
                let op = Projections {
                    x: view(&x, tokens, width),
                    blocks: 6,
                    weights,
                    pairs: Some(pairs),
                    segments: &segments,
                    y,
                };
                self.kernels.projections(&op, Some(shape))
            })
            .collect()
        })
    }
}

fn described(shape: MatvecShape) -> String {
    format!(
        "{} threads, split {}, rows {}, unroll {}{}{}",
        shape.threads,
        shape.split,
        shape.rows,
        shape.unroll,
        if shape.staged { ", staged" } else { "" },
        match shape.workgroups {
            0 => String::new(),
            n => format!(", {n} workgroups"),
        }
    )
}
