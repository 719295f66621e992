//! Measures how fast each adapter copies its own memory: the yardstick for kernels that are bound by memory.
//!
//! `cargo run --release --example copy_bandwidth [-- MIB]`

use rwkv_gpu::{BufferKind, Gpu, OpenOptions, Result, Selector, list_adapters};
use std::time::Instant;

const ROUNDS: u64 = 9;

fn main() -> Result<()> {
    let mebibytes = std::env::args().nth(1).and_then(|n| n.parse().ok());
    let bytes = mebibytes.unwrap_or(64u64).clamp(1, 1 << 20) << 20;
    let adapters = list_adapters();
    if adapters.is_empty() {
        println!("there is no GPU adapter here");
    }
    for adapter in adapters {
        let title = format!(
            "{} {} ({}, {})",
            adapter.index, adapter.name, adapter.kind, adapter.backend
        );
        if let Some(reason) = &adapter.refused {
            println!("{title}: {reason}");
            continue;
        }
        let speed = measure(adapter.index, bytes)?;
        println!("{title}: {speed:.1} GB/s read and as much written");
    }
    Ok(())
}

/// The median of several copies, in 10⁹ bytes a second.
fn measure(index: usize, bytes: u64) -> Result<f64> {
    let gpu = Gpu::open(&Selector::Index(index), &OpenOptions::from_env()?)?;
    let from = gpu.buffer(BufferKind::Storage, "source", bytes)?;
    let to = gpu.buffer(BufferKind::Storage, "target", bytes)?;
    // Zeros may be faster than numbers: write some.
    let numbers: Vec<u32> = (0..1 << 18)
        .map(|i: u32| i.wrapping_mul(2_654_435_769))
        .collect();
    let numbers: &[u8] = bytemuck::cast_slice(&numbers);
    for offset in (0..bytes).step_by(numbers.len()) {
        gpu.write(&from, offset, numbers)?;
    }
    let mut seconds = Vec::new();
    for _ in 0..=ROUNDS {
        let start = Instant::now();
        // Several copies a submission, so that submitting costs little of the time.
        let mut recorder = gpu.recorder("copy");
        for _ in 0..4 {
            recorder.copy((&from, 0), (&to, 0), bytes);
        }
        gpu.wait(&recorder.submit()?)?;
        seconds.push(start.elapsed().as_secs_f64() / 4.0);
    }
    // The first round warms up.
    seconds.remove(0);
    seconds.sort_by(f64::total_cmp);
    Ok(bytes as f64 / seconds[seconds.len() / 2] / 1e9)
}
