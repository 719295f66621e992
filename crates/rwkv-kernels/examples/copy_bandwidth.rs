//! Measures how fast each adapter copies its own memory: the yardstick for kernels that are bound by memory.
//!
//! `cargo run --release --example copy_bandwidth [-- MIB]`

use rwkv_gpu::{Gpu, OpenOptions, Selector, list_adapters};
use rwkv_kernels::{Kernels, Result};

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
        let gpu = Gpu::open(&Selector::Index(adapter.index), &OpenOptions::from_env()?)?;
        let copied = Kernels::new(&gpu)?.copy_bandwidth(bytes)?;
        let clock = if copied.timestamps { "GPU" } else { "host" };
        println!(
            "{title}: {:.1} GB/s, read and written together, by the {clock}'s clock",
            copied.bytes_per_second / 1e9
        );
    }
    Ok(())
}
