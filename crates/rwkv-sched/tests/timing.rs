//! What executors count and time: the same results with timing as without, a span for each kernel, and nothing made
//! once a batch's shape is known.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::float_cmp,
    reason = "tests fail by panicking; the same kernels give the same bits"
)]

mod support;

use rwkv_gpu::Timing;
use rwkv_sched::{Batch, Executor, Version, Wanted, WeightsDType};
use support::{
    cpu, gpus, on_gpu,
    random_model::{Dimensions, Packing},
    run, span,
};

fn dimensions() -> Dimensions {
    Dimensions {
        version: Version::V7,
        layers: 2,
        heads: 2,
        head_size: 32,
        ffn: 96,
        vocab: 50,
        ranks: [8, 8, 8, 8],
    }
}

#[test]
fn timing_changes_nothing() {
    let model = dimensions().model(Packing::F32, 3);
    let batches = [
        Batch {
            spans: vec![
                span(0, &[7, 0, 49], Wanted::Last),
                span(1, &[3], Wanted::None),
            ],
        },
        Batch {
            spans: vec![span(1, &[9], Wanted::Last)],
        },
        Batch {
            spans: vec![span(0, &[1, 2], Wanted::None)],
        },
        Batch {
            spans: vec![span(1, &[30], Wanted::Last)],
        },
    ];
    // The third batch has no logits; the second and the fourth have the shape that is ready from the start.
    let (steps, shapes) = (4, 2);
    let gpu = &gpus()[0].gpu;
    assert!(gpu.has_timestamps(), "this test needs timestamps");
    let results = |timing| {
        let mut executor = on_gpu(&model, 2, gpu, WeightsDType::F32);
        assert_eq!(executor.set_timing(timing).unwrap(), timing != Timing::Off);
        let mut launched = Vec::new();
        let logits: Vec<_> = batches
            .iter()
            .map(|batch| {
                let before = executor.stats();
                let logits = run(&mut executor, batch);
                launched.push(executor.stats().since(&before).dispatches);
                logits
            })
            .collect();
        let stats = executor.stats();
        assert_eq!((stats.steps, stats.plans.misses), (steps, shapes));
        assert_eq!(stats.dispatches, launched.iter().sum::<u64>());
        assert!(stats.params.misses > 0 && stats.pipelines.hits > 0 && stats.buffers.misses > 0);
        // A known shape makes nothing and looks nothing up but its plan.
        run(&mut executor, &batches[1]);
        let more = executor.stats().since(&stats);
        assert_eq!((more.plans.hits, more.buffers_made), (1, 0));
        assert_eq!(more.params.rate().or(more.pipelines.rate()), None);

        let times = executor.take_times();
        assert!(executor.take_times().is_empty());
        let spans: Vec<_> = times.iter().map(|step| step.spans.len() as u64).collect();
        launched.push(launched[1]);
        match timing {
            Timing::Off => assert!(spans.is_empty()),
            Timing::Passes => assert_eq!(spans, [1; 5]),
            Timing::Kernels => assert_eq!(spans, launched),
        }
        assert!(times.iter().all(|step| step.seconds() > 0.0));
        // Switched off, nothing is taken.
        executor.set_timing(Timing::Off).unwrap();
        run(&mut executor, &batches[1]);
        assert!(executor.take_times().is_empty());
        logits
    };
    let want = results(Timing::Off);
    assert_eq!(results(Timing::Passes), want);
    assert_eq!(results(Timing::Kernels), want);
}

/// Both executors read the same weights where both keep F32; the CPU executor has nothing else to tell.
#[test]
fn weight_reads() {
    let dimensions = dimensions();
    let model = dimensions.model(Packing::F32, 3);
    let mut cpu = cpu(&model, 1);
    let gpu = on_gpu(&model, 1, &gpus()[0].gpu, WeightsDType::F32);
    let reads = cpu.weight_reads();
    assert_eq!(reads, gpu.weight_reads());
    let row = dimensions.width() as u64 * 4;
    assert_eq!(reads.token, row);
    assert_eq!(
        reads.bytes(3, true) - reads.bytes(2, false),
        row + reads.outputs
    );
    assert!(reads.outputs >= row * dimensions.vocab as u64);
    assert!(!cpu.set_timing(Timing::Kernels).unwrap());
    run(
        &mut cpu,
        &Batch::single(rwkv_sched::SlotId(0), &[1], Wanted::Last),
    );
    assert_eq!(cpu.stats(), rwkv_sched::ExecutorStats::default());
    assert!(cpu.take_times().is_empty());
}
