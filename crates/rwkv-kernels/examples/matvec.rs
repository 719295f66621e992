//! Quantizes a matrix to Q8_0, multiplies it by a vector on the processor and on the GPU, and prints how far apart the
//! results are, and what quantizing cost.
//!
//! `cargo run --example matvec`

use rwkv_gpu::{BufferKind, Gpu, OpenOptions, Readback, Selector, list_adapters};
use rwkv_kernels::{
    Format, GpuMatrix, Kernels, Matrix, Result, View,
    ops::{Function, Linear, matmul},
};
use rwkv_mem::{Cols, Rows, Upload};

const ROWS: usize = 1000;
const COLS: usize = 768;

fn main() -> Result<()> {
    // Marsaglia's xorshift, as numbers from −1 to 1.
    let mut state = 1u32;
    let mut number = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / (1u32 << 31) as f32 - 1.0
    };
    let weights: Vec<f32> = (0..ROWS * COLS).map(|_| number()).collect();
    let x: Vec<f32> = (0..COLS).map(|_| number()).collect();

    let spec = Format::Q8_0.spec();
    let mut packed = vec![0; ROWS * COLS / spec.block() * spec.block_bytes()];
    spec.quantize(&weights, &mut packed);
    let quantized = Matrix::new(Format::Q8_0, Rows(ROWS), Cols(COLS), &packed)?;
    let exact = Matrix::new(
        Format::F32,
        Rows(ROWS),
        Cols(COLS),
        bytemuck::cast_slice(&weights),
    )?;
    let (mut on_cpu, mut unquantized) = (vec![0.0; ROWS], vec![0.0; ROWS]);
    matmul(&x, &quantized, &mut on_cpu)?;
    matmul(&x, &exact, &mut unquantized)?;
    println!(
        "{ROWS} × {COLS}: {} bytes as f32, {} as Q8_0; relative error of quantizing {:.1e}",
        exact.bytes().len(),
        packed.len(),
        distance(&on_cpu, &unquantized)
    );

    let adapters = list_adapters();
    let Some(adapter) = adapters.iter().find(|a| a.refused.is_none()) else {
        println!("there is no usable GPU adapter here");
        return Ok(());
    };
    let gpu = Gpu::open(&Selector::Index(adapter.index), &OpenOptions::from_env()?)?;
    let on_gpu = multiply(&gpu, &quantized, &x)?;
    println!(
        "{}: relative distance from the processor's result {:.1e}",
        gpu.name(),
        distance(&on_gpu, &on_cpu)
    );
    Ok(())
}

fn multiply(gpu: &Gpu, weight: &Matrix<'_>, x: &[f32]) -> Result<Vec<f32>> {
    let kernels = Kernels::new(gpu)?;
    let mut upload = Upload::new(gpu);
    let weight = GpuMatrix::new(gpu, "weight", weight, weight.format(), &mut upload)?;
    // An activation's rows are padded to whole vectors; COLS needs no padding.
    let (x_bytes, y_bytes) = (View::bytes(1, COLS), View::bytes(1, ROWS));
    let x_buffer = gpu.buffer(BufferKind::Storage, "x", x_bytes)?;
    let y_buffer = gpu.buffer(BufferKind::Storage, "y", y_bytes)?;
    gpu.write(&x_buffer, 0, bytemuck::cast_slice(x))?;
    let view = |buffer, width| View {
        buffer,
        offset: 0,
        rows: 1,
        width,
    };
    let dispatches = kernels.linear(&Linear {
        x: view(&x_buffer, COLS),
        weight: &weight,
        bias: None,
        function: Function::Identity,
        residual: None,
        y: view(&y_buffer, ROWS),
    })?;
    let readback = Readback::new(gpu, "result", y_bytes)?;
    let mut recorder = gpu.recorder("matvec");
    recorder.dispatch(&dispatches);
    recorder.read(&y_buffer, 0, y_bytes, &readback);
    let submission = recorder.submit()?;
    Ok(readback.view(
        gpu,
        &submission,
        (ROWS * 4) as u64,
        bytemuck::pod_collect_to_vec,
    )?)
}

/// `‖a − b‖ / ‖b‖`.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    let square = |x: f32| x * x;
    let apart: f32 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
    let size: f32 = b.iter().map(|b| square(*b)).sum();
    (apart / size).sqrt()
}
