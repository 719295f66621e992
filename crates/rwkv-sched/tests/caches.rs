//! Caches that steps ask: in a file of its own, since the GPU's counters are those of all executors on it.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod support;

use rwkv_sched::{
    Batch, Decoding, Executor, GpuExecutor, SlotId, Version, Wanted, WeightsDType,
    sampling::{Sampler, SamplerParams},
};
use std::ops::ControlFlow;
use support::{
    gpus, on_gpu,
    random_model::{Dimensions, Packing},
    run, span,
};

/// After ten steps of every kind, whatever a step asks of a cache is there: its plan, and for the sampler its parameters,
/// its pipeline and its buffers. From the load on, what the layers share is made once.
#[test]
fn caches_have_what_steps_ask_for() {
    let dimensions = Dimensions {
        version: Version::V7,
        layers: 12,
        heads: 2,
        head_size: 32,
        ffn: 96,
        vocab: 50,
        ranks: [8, 8, 8, 8],
    };
    let model = dimensions.model(Packing::F32, 3);
    let mut executor = on_gpu(&model, 2, &gpus()[0].gpu, WeightsDType::F32);
    let round = |executor: &mut GpuExecutor| {
        let all = [
            Batch::single(SlotId(0), &[1; 20], Wanted::None),
            Batch::single(SlotId(0), &[2; 20], Wanted::Last),
            Batch {
                spans: vec![span(0, &[3], Wanted::Last), span(1, &[4; 5], Wanted::Last)],
            },
        ];
        for batch in &all {
            run(executor, batch);
        }
        let mut sequences = [0u32, 1].map(|slot| Decoding {
            slot: SlotId(slot),
            token: 5,
            sampler: Sampler::new(SamplerParams::default()).unwrap(),
        });
        let take = &mut |_: &[u32]| ControlFlow::Continue(());
        executor.decode(&mut sequences, 4, &|_| true, take).unwrap();
    };
    for _ in 0..10 {
        round(&mut executor);
    }
    let ten = executor.stats();
    for cache in [ten.params, ten.pipelines] {
        assert!(cache.rate().unwrap() > 0.9, "{ten:?}");
    }
    round(&mut executor);
    let more = executor.stats().since(&ten);
    for cache in [more.plans, more.params, more.pipelines, more.buffers] {
        assert_eq!(cache.misses, 0, "{more:?}");
    }
    assert!(more.plans.hits > 0 && more.buffers.hits > 0);
    assert_eq!(more.buffers_made, 0);
}
