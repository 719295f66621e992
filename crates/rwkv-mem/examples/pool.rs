//! Takes buffers from a pool and gives them back, and prints what the pool made of it.
//!
//! `cargo run --example pool`

use rwkv_gpu::{BufferKind, Gpu, OpenOptions, Result, Selector, list_adapters};
use rwkv_mem::Pool;

fn main() -> Result<()> {
    let adapters = list_adapters();
    let Some(adapter) = adapters.iter().find(|a| a.refused.is_none()) else {
        println!("there is no usable GPU adapter here");
        return Ok(());
    };
    let gpu = Gpu::open(&Selector::Index(adapter.index), &OpenOptions::from_env()?)?;
    let pool = Pool::new(&gpu);
    println!("on {}:", gpu.name());
    for step in 0..4u64 {
        // Three activations a step, of sizes that differ a little from step to step.
        let sizes = [4096, 12_000, 50_000].map(|bytes| bytes + 64 * step);
        let taken = sizes.map(|bytes| pool.take(BufferKind::Storage, "activation", bytes));
        let during = pool.counters();
        for buffer in taken {
            drop(buffer?);
        }
        let c = pool.counters();
        println!(
            "step {step}: {} bytes in use, {:.0} % of them unasked for; {} requests made a buffer, {} took one that was free",
            during.live,
            during.fragmentation().unwrap_or_default() * 100.0,
            c.misses,
            c.hits
        );
    }
    println!("{:?}", pool.counters());
    Ok(())
}
