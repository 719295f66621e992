//! Adapters that do not fit, and values that leave their format's range.

use super::{
    SMALL,
    changes::adapter,
    logits,
    support::{
        cpu, everywhere, gpus,
        random_model::{Packing, Random},
        relative_error,
    },
};
use rwkv_kernels::Format;
use rwkv_mem::{Cols, Rows};
use rwkv_sched::{
    Adapter, BlockWeight as B, Executor, GpuExecutor, InMemoryWeights, LoadOptions, LowRank,
    Weight, Weights, WeightsDType,
};
use std::sync::Arc;

/// What does not fit is refused in one line, and what was in use stays in use.
#[test]
fn refused() {
    let model = SMALL.model(Packing::F32, 4);
    let width = SMALL.width();
    let tokens = Random::new(3).tokens(5, SMALL.vocab);
    let mut random = Random::new(5);
    let good = adapter(&model, &mut random, 0.5).adapter;
    let pair = |rank: usize, a: usize, b: usize, scale: f32| LowRank {
        rank,
        a: vec![0.1; a].into(),
        b: vec![0.1; b].into(),
        scale,
    };
    let low_rank = |weight: Weight, change: LowRank| {
        let mut adapter = Adapter::new("bad");
        adapter.add_low_rank(weight, change);
        Arc::new(adapter)
    };
    let whole = |weight: Weight, rows: usize, cols: usize, there: bool| {
        let mut tensors = InMemoryWeights::default();
        if there {
            let values = vec![0.0; rows * cols];
            tensors
                .insert(weight, Format::F32, Rows(rows), Cols(cols), &values)
                .unwrap();
        }
        let tensors: Arc<dyn Weights> = Arc::new(tensors);
        let mut adapter = Adapter::new("bad");
        adapter.add_whole(weight, &tensors);
        Arc::new(adapter)
    };
    let key = Weight::Block(1, B::AttKey);
    let fine = || pair(3, 3 * width, 3 * width, 1.0);
    let cases = [
        (good.clone(), f32::NAN, "a strength of NaN"),
        (good.clone(), f32::INFINITY, "a strength of inf"),
        (
            low_rank(Weight::Block(2, B::AttKey), fine()),
            1.0,
            "RWKV-7 does not have",
        ),
        (
            low_rank(Weight::Block(1, B::AttGate), fine()),
            1.0,
            "RWKV-7 does not have",
        ),
        (
            low_rank(Weight::Block(1, B::Bonus), fine()),
            1.0,
            "which is no matrix",
        ),
        (low_rank(key, pair(0, 0, 0, 1.0)), 1.0, "does not fit"),
        (
            low_rank(key, pair(3, 3 * width + 1, 3 * width, 1.0)),
            1.0,
            "does not fit",
        ),
        (
            low_rank(key, pair(3, 3 * width, 2 * width, 1.0)),
            1.0,
            "does not fit",
        ),
        (
            low_rank(key, pair(usize::MAX, 3, 3, 1.0)),
            1.0,
            "does not fit",
        ),
        (
            low_rank(key, pair(3, 3 * width, 3 * width, f32::NAN)),
            1.0,
            "scale",
        ),
        (
            whole(key, width, width + 1, true),
            1.0,
            "where the model's is 64×64",
        ),
        (
            whole(Weight::Block(0, B::Bonus), 1, 3, true),
            1.0,
            "where the model's is 1×64",
        ),
        (whole(key, width, width, false), 1.0, "missing"),
    ];
    for (name, mut executor) in everywhere(&model, 1) {
        executor.set_adapters(&[(good.clone(), 1.0)]).unwrap();
        let want = logits(executor.as_mut(), &tokens);
        for (bad, strength, message) in &cases {
            let blend = [(good.clone(), 0.5), (bad.clone(), *strength)];
            let error = executor.set_adapters(&blend).unwrap_err().to_string();
            assert!(error.contains(message), "{name}: {error}, not {message}");
            assert!(!error.contains('\n'), "{error}");
            assert!(executor.prepare_adapters(&blend, 1).is_err());
            assert_eq!(logits(executor.as_mut(), &tokens), want, "{name}");
        }
    }
}

/// Blended values past 65504: an error that names the tensor where F16 was asked for, else F32.
#[test]
fn outside_f16() {
    let model = SMALL.model(Packing::F16, 6);
    let width = SMALL.width();
    let tokens = Random::new(3).tokens(5, SMALL.vocab);
    let mut adapter = Adapter::new("loud");
    let mut a = vec![0.0; width];
    a[3] = 1e5;
    let key = Weight::Block(1, B::AttKey);
    adapter.add_low_rank(
        key,
        LowRank {
            rank: 1,
            a: a.into(),
            b: vec![1.0; width].into(),
            scale: 1.0,
        },
    );
    let blend = [(Arc::new(adapter), 1.0)];
    let mut oracle = cpu(&model, 1);
    oracle.set_adapters(&blend).unwrap();
    let want = logits(&mut oracle, &tokens);
    assert!(want.iter().all(|x| x.is_finite()));
    let gpu = &gpus()[0].gpu;
    for dtype in [WeightsDType::Auto, WeightsDType::F32, WeightsDType::F16] {
        let options = LoadOptions {
            weights_dtype: dtype,
            ..LoadOptions::default()
        };
        let mut executor = GpuExecutor::new(&model, gpu, &options, &mut |_| {}).unwrap();
        let result = executor.set_adapters(&blend);
        if dtype == WeightsDType::F16 {
            let error = result.unwrap_err().to_string();
            assert!(
                error.contains("AttKey") && error.contains("65504"),
                "{error}"
            );
        } else {
            result.unwrap();
            let error = relative_error(&logits(&mut executor, &tokens), &want);
            assert!(error < 2e-3, "{error:.1e}");
        }
    }
}
