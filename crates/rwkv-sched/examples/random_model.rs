//! Token ids in, token ids out: a tiny RWKV-7 with random weights, made in memory, continues a prompt on the CPU and,
//! where there is one, on a GPU.
//!
//!     cargo run --release -p rwkv-sched --example random_model [ADAPTER]

mod tiny;

use rwkv_sched::{
    Device, Generation, LoadOptions, Result, SlotId, Wanted, WeightsDType, load, prefill,
    sampling::{Sampler, SamplerParams},
};
use std::ops::ControlFlow;

fn main() -> Result<()> {
    let model = tiny::random_model()?;
    let adapter = std::env::args().nth(1).unwrap_or_else(|| "auto".to_owned());
    for device in ["cpu", &adapter] {
        let opened = Device::open(device)?;
        if let Some(reason) = opened.fallback {
            println!("{reason}");
            continue;
        }
        let options = LoadOptions {
            weights_dtype: WeightsDType::F32,
            ..LoadOptions::default()
        };
        let mut executor = load(&model, &opened.device, &options, &mut |_| {})?;
        let (slot, prompt) = (SlotId(0), [3, 14, 15, 92, 65]);
        let chunk = executor.chunk();
        let logits = prefill(
            executor.as_mut(),
            slot,
            &prompt,
            chunk,
            Wanted::Last,
            &mut |_, _| ControlFlow::Continue(()),
        )?;
        let sampler = Sampler::new(SamplerParams {
            seed: 1,
            ..SamplerParams::default()
        })?;
        let generation = Generation::new(executor.as_mut(), slot, sampler, Vec::new(), &logits)?;
        let tokens = generation.take(12).collect::<Result<Vec<_>>>()?;
        println!("{}: {prompt:?} → {tokens:?}", executor.device());
    }
    Ok(())
}
