//! Prompt and decode speed of a synthetic RWKV-7:
//!
//! ```text
//! cargo run --release -p rwkv-benches --example speed -- 24x2048 [f16|q8_0|…] [DEVICE]
//! ```

use rwkv_sched::{
    Batch, Device, DeviceMemory, LoadOptions, Quantization, SlotId, Wanted, load, prefill,
};
use std::{error::Error, ops::ControlFlow, time::Instant};

const PROMPT: u32 = 512;
const DECODE: u32 = 128;
const REPEAT: usize = 5;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let shape = args.next().unwrap_or_else(|| "12x768".to_owned());
    let format = args.next().unwrap_or_else(|| "f16".to_owned());
    let quantization: Quantization = format.parse()?;
    let device = Device::open(&args.next().unwrap_or_else(|| "auto".to_owned()))?.device;
    let model = rwkv_benches::synthetic(&rwkv_benches::spec_v7(&shape, 65_536)?)?;
    // The weights are F16 already: converting a part into what it is costs nothing.
    let options = LoadOptions {
        quantization: Some(quantization),
        ..LoadOptions::default()
    };
    let start = Instant::now();
    let mut executor = load(&model, &device, &options, &mut |_| {})?;
    let loaded = start.elapsed();
    let slot = SlotId(0);
    let prompt: Vec<u32> = (0..PROMPT).map(|i| i * 7919 % 65_536).collect();
    let (mut prompts, mut decodes) = (Vec::new(), Vec::new());
    // The first round compiles kernels and is not counted.
    for round in 0..=REPEAT {
        executor.reset(slot)?;
        let chunk = executor.chunk();
        let start = Instant::now();
        prefill(
            executor.as_mut(),
            slot,
            &prompt,
            chunk,
            Wanted::Last,
            &mut |_, _| ControlFlow::Continue(()),
        )?;
        let prompt_time = start.elapsed();
        let start = Instant::now();
        for token in 0..DECODE {
            executor.run(&Batch::single(slot, &[token + 1], Wanted::Last))?;
        }
        if round > 0 {
            prompts.push(f64::from(PROMPT) / prompt_time.as_secs_f64());
            decodes.push(f64::from(DECODE) / start.elapsed().as_secs_f64());
        }
    }
    let weights = DeviceMemory::estimate(&model, &options)?.weights;
    let middle = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let (prompt, decode) = (middle(prompts), middle(decodes));
    // What wgpu's allocator has taken from the driver, where it says.
    let reserved = match &device {
        Device::Gpu(gpu) => gpu.reserved_bytes(),
        Device::Cpu => None,
    };
    println!(
        "{}: {shape} {format}, {:.3} GB of weights, {:.3} GB on the device ({:.3} GB reserved), loaded in {:.1} s: prompt of {PROMPT} {prompt:.0} tokens/s, decode {decode:.0} tokens/s ({:.0} GB/s of weights)",
        executor.device(),
        weights as f64 / 1e9,
        executor.device_bytes() as f64 / 1e9,
        reserved.unwrap_or(0) as f64 / 1e9,
        loaded.as_secs_f64(),
        decode * weights as f64 / 1e9,
    );
    Ok(())
}
