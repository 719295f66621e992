//! The demo model on the CPU executor, and on a GPU where there is one.
#![allow(
    missing_docs,
    reason = "criterion's macros make undocumented functions"
)]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rwkv_model::ModelFile;
use rwkv_sched::{Batch, Device, LoadOptions, SlotId, Wanted, load};
use std::hint::black_box;

fn demo(c: &mut Criterion) {
    let model = ModelFile::demo().and_then(|f| f.model());
    let (Ok(model), Ok(best)) = (model, Device::open("auto")) else {
        return;
    };
    let mut devices = vec![Device::Cpu];
    if matches!(best.device, Device::Gpu(_)) {
        devices.push(best.device);
    }
    for device in devices {
        let Ok(mut executor) = load(&model, &device, &LoadOptions::default(), &mut |_| {}) else {
            continue;
        };
        let mut group = c.benchmark_group(executor.device());
        for tokens in [1u32, 32] {
            let prompt: Vec<u32> = (1..=tokens).collect();
            group.throughput(Throughput::Elements(u64::from(tokens)));
            group.bench_function(format!("{tokens} tokens"), |b| {
                b.iter(|| {
                    executor.run(black_box(&Batch::single(SlotId(0), &prompt, Wanted::Last)))
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, demo);
criterion_main!(benches);
