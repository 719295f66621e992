//! Times products that skip zeros against dense ones: inputs that are zero (weights by columns), and with `--csr`
//! weights that are (compressed sparse rows). Each product adds to the one before it, and so many matrices take turns
//! that no cache holds them.
//!
//! `cargo run --release --example sparse_speed [-- --tune] [--csr]`, where `--tune` tries every way of sharing the work
//! and prints the best three for each share of zeros.

use half::f16;
use rwkv_gpu::{Buffer, BufferKind, Dispatch, Gpu, Kind, OpenOptions, Selector, list_adapters};
use rwkv_kernels::{
    Csr, Format, GpuColumns, GpuCsr, GpuMatrix, Kernels, Matrix, Result, View,
    ops::{CsrLinear, Function, Linear, SparseLinear, SparseTuning},
};
use rwkv_mem::{Cols, Rows, Upload};
use std::time::Instant;

const ROUNDS: usize = 7;

fn main() -> Result<()> {
    let adapters = list_adapters();
    let Some(adapter) = adapters.iter().find(|a| a.refused.is_none()) else {
        println!("there is no usable GPU adapter here");
        return Ok(());
    };
    let gpu = Gpu::open(&Selector::Index(adapter.index), &OpenOptions::from_env()?)?;
    println!("{} ({})", gpu.name(), adapter.backend);
    // A processor shows that it runs, and nothing of a GPU's speed.
    let (shapes, working_set, dispatches): (&[_], usize, usize) =
        if matches!(adapter.kind, Kind::Software) {
            (&[(96, 384)], 300_000, 4)
        } else {
            (&[(768, 3072), (2048, 8192), (4096, 16384)], 450 << 20, 400)
        };
    let asked = |name| std::env::args().any(|argument| argument == name);
    let (tune, csr) = (asked("--tune"), asked("--csr"));
    let bench = Bench {
        kernels: Kernels::new(&gpu)?,
        working_set,
        dispatches,
    };
    println!(
        "{:>12} {:>30} {:>6} {:>9} {:>7} {:>8}",
        "rows×columns", "kernel", "zeros", "µs", "GB/s", "speedup"
    );
    for (rows, cols) in shapes {
        bench.inputs(*rows, *cols, tune)?;
        if csr {
            bench.weights(*rows, *cols)?;
        }
    }
    Ok(())
}

struct Bench {
    kernels: Kernels,
    /// Bytes of matrices that take turns.
    working_set: usize,
    /// Dispatches a submission, at least.
    dispatches: usize,
}

/// What the products of one shape read and write.
struct Vectors {
    x: Buffer,
    y: [Buffer; 2],
    rows: usize,
    cols: usize,
}

impl Vectors {
    fn new(gpu: &Gpu, rows: usize, cols: usize, density: f64) -> Result<Self> {
        let x = gpu.buffer(BufferKind::Storage, "x", View::bytes(1, cols))?;
        let mut numbers = Numbers(7);
        let values: Vec<f32> = (0..cols).map(|_| numbers.sparse(density)).collect();
        gpu.write(&x, 0, bytemuck::cast_slice(&values))?;
        let y = || gpu.buffer(BufferKind::Storage, "y", View::bytes(1, rows));
        Ok(Self {
            x,
            y: [y()?, y()?],
            rows,
            cols,
        })
    }

    fn x(&self) -> View<'_> {
        view(&self.x, self.cols)
    }

    /// The residual and the result of product `i` of a chain.
    fn residual_and_y(&self, i: usize) -> (View<'_>, View<'_>) {
        (
            view(&self.y[i % 2], self.rows),
            view(&self.y[(i + 1) % 2], self.rows),
        )
    }
}

fn view(buffer: &Buffer, width: usize) -> View<'_> {
    View {
        buffer,
        offset: 0,
        rows: 1,
        width,
    }
}

impl Bench {
    /// Inputs that are zero.
    fn inputs(&self, rows: usize, cols: usize, tune: bool) -> Result<()> {
        let gpu = self.kernels.gpu();
        let bytes = random_rows(rows, cols, 1.0);
        let matrix = Matrix::new(Format::F16, Rows(rows), Cols(cols), &bytes)?;
        let copies = self.working_set.div_ceil(bytes.len());
        let mut upload = Upload::new(gpu);
        let by_rows = (0..copies)
            .map(|_| GpuMatrix::new(gpu, "rows", &matrix, Format::F16, &mut upload))
            .collect::<Result<Vec<_>>>()?;
        let size = bytes.len() as f64;
        let report = |kernel: &str, zeros: f64, seconds: f64, dense: f64| {
            report(
                [rows, cols],
                kernel,
                zeros,
                seconds,
                size * (1.0 - zeros),
                dense,
            );
        };
        let dense = self.time_rows(&Vectors::new(gpu, rows, cols, 1.0)?, &by_rows)?;
        report("by rows, dense", 0.0, dense, dense);
        drop(by_rows);
        let by_columns = (0..copies)
            .map(|_| GpuColumns::new(&self.kernels, "columns", &matrix, &mut upload))
            .collect::<Result<Vec<_>>>()?;
        upload.flush()?;
        let vectors = Vectors::new(gpu, rows, cols, 1.0)?;
        let default = SparseTuning::default();
        let all = self.time_columns(&vectors, &by_columns, true, default)?;
        report("by columns, dense", 0.0, all, dense);
        for zeros in [0.0, 0.5, 0.9, 0.95] {
            let vectors = Vectors::new(gpu, rows, cols, 1.0 - zeros)?;
            let seconds = self.time_columns(&vectors, &by_columns, false, default)?;
            report("by columns, skipping", zeros, seconds, dense);
            if !tune {
                continue;
            }
            let mut timed = Vec::new();
            for tuning in SparseTuning::candidates() {
                // Not every adapter has every way.
                if let Ok(seconds) = self.time_columns(&vectors, &by_columns, false, tuning) {
                    timed.push((seconds, tuning));
                }
            }
            timed.sort_by(|a, b| a.0.total_cmp(&b.0));
            for (seconds, tuning) in timed.iter().take(3) {
                report(&describe(*tuning), zeros, *seconds, dense);
            }
        }
        Ok(())
    }

    /// Weights that are zero.
    fn weights(&self, rows: usize, cols: usize) -> Result<()> {
        let gpu = self.kernels.gpu();
        let mut upload = Upload::new(gpu);
        let bytes = random_rows(rows, cols, 1.0);
        let matrix = Matrix::new(Format::F16, Rows(rows), Cols(cols), &bytes)?;
        let copies = self.working_set.div_ceil(bytes.len());
        let by_rows = (0..copies)
            .map(|_| GpuMatrix::new(gpu, "rows", &matrix, Format::F16, &mut upload))
            .collect::<Result<Vec<_>>>()?;
        let vectors = Vectors::new(gpu, rows, cols, 1.0)?;
        let dense = self.time_rows(&vectors, &by_rows)?;
        drop(by_rows);
        for density in [0.5, 0.3, 0.2, 0.1, 0.05] {
            let pruned = random_rows(rows, cols, density);
            let pruned = Matrix::new(Format::F16, Rows(rows), Cols(cols), &pruned)?;
            let sparse = Csr::from_dense("pruned", &pruned, 0.0)?;
            let copies = self.working_set.div_ceil(sparse.bytes());
            let matrices = (0..copies)
                .map(|_| GpuCsr::new(gpu, "pruned", &sparse, &mut upload))
                .collect::<Result<Vec<_>>>()?;
            upload.flush()?;
            let seconds = self.time(&matrices, |i, weight| {
                let (residual, y) = vectors.residual_and_y(i);
                self.kernels.csr_linear(&CsrLinear {
                    x: vectors.x(),
                    weight,
                    bias: None,
                    function: Function::Identity,
                    residual: Some(residual),
                    y,
                })
            })?;
            let name = if sparse.pays() {
                "csr"
            } else {
                "csr, not smaller"
            };
            let bytes = sparse.bytes() as f64;
            report([rows, cols], name, 1.0 - density, seconds, bytes, dense);
        }
        Ok(())
    }

    fn time_rows(&self, vectors: &Vectors, matrices: &[GpuMatrix]) -> Result<f64> {
        self.time(matrices, |i, weight| {
            let (residual, y) = vectors.residual_and_y(i);
            self.kernels.linear(&Linear {
                x: vectors.x(),
                weight,
                bias: None,
                function: Function::Identity,
                residual: Some(residual),
                y,
            })
        })
    }

    fn time_columns(
        &self,
        vectors: &Vectors,
        matrices: &[GpuColumns],
        dense: bool,
        tuning: SparseTuning,
    ) -> Result<f64> {
        self.time(matrices, |i, weight| {
            let (residual, y) = vectors.residual_and_y(i);
            self.kernels.sparse_linear(&SparseLinear {
                x: vectors.x(),
                weight,
                residual: Some(residual),
                y,
                store: None,
                dense,
                tuning,
            })
        })
    }

    /// The median of the seconds that a product takes in a chain of many.
    fn time<M>(
        &self,
        matrices: &[M],
        product: impl Fn(usize, &M) -> Result<Vec<Dispatch>>,
    ) -> Result<f64> {
        let gpu = self.kernels.gpu();
        let count = self.dispatches.next_multiple_of(2 * matrices.len());
        let mut dispatches = Vec::new();
        for (i, matrix) in matrices.iter().cycle().take(count).enumerate() {
            dispatches.extend(product(i, matrix)?);
        }
        let mut seconds = Vec::new();
        for _ in 0..=ROUNDS {
            let mut recorder = gpu.recorder("products");
            recorder.dispatch(&dispatches);
            let submission = recorder.submit()?;
            // Recording ends with the submission.
            let start = Instant::now();
            gpu.wait(&submission)?;
            seconds.push(start.elapsed().as_secs_f64() / count as f64);
        }
        // The first round warms up.
        seconds.remove(0);
        seconds.sort_by(f64::total_cmp);
        Ok(seconds[seconds.len() / 2])
    }
}

/// Threads, outputs and loads of a workgroup, and how many workgroups.
fn describe(tuning: SparseTuning) -> String {
    let number = |n: Option<u32>| n.map_or("default".to_owned(), |n| n.to_string());
    format!(
        "{} threads, {} out, {} deep, {}",
        number(tuning.threads),
        number(tuning.outputs),
        number(tuning.depth),
        number(tuning.workgroups)
    )
}

fn report(shape: [usize; 2], kernel: &str, zeros: f64, seconds: f64, bytes: f64, dense: f64) {
    println!(
        "{:>12} {kernel:>30} {:>5.0}% {:>9.2} {:>7.0} {:>7.2}×",
        format!("{}×{}", shape[0], shape[1]),
        zeros * 100.0,
        seconds * 1e6,
        bytes / seconds / 1e9,
        dense / seconds
    );
}

/// `rows × cols` of F16, of which this share is not zero.
fn random_rows(rows: usize, cols: usize, density: f64) -> Vec<u8> {
    let mut numbers = Numbers(3);
    let weights = (0..rows * cols).map(|_| f16::from_f32(0.01 * numbers.sparse(density)));
    weights.flat_map(f16::to_le_bytes).collect()
}

/// Marsaglia's xorshift64.
struct Numbers(u64);

impl Numbers {
    /// From 0 to 1.
    fn next(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 40) as f32 / (1 << 24) as f32
    }

    /// From 0.5 to 1 with this probability, else zero.
    fn sparse(&mut self, density: f64) -> f32 {
        if f64::from(self.next()) < density {
            0.5 + self.next() / 2.0
        } else {
            0.0
        }
    }
}
