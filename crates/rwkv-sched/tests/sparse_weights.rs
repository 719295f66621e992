//! Matrices as compressed sparse rows: on the GPU, and on the processor where they lie so, a model computes what it
//! computes with the same matrices dense.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests fail by panicking; sizes are small"
)]

mod support;

use proptest::{prelude::*, test_runner::TestRunner};
use rwkv_kernels::{Csr, CsrColumns, Format, Matrix};
use rwkv_mem::Shape;
use rwkv_sched::{
    Adapter, Batch, BlockWeight as B, DeviceMemory, Error, Executor, GpuExecutor, LoadOptions,
    LowRank, Model, PruneRatio, PrunedWeights, Result, SparseWeights, Version, Wanted, Weight,
    Weights,
};
use std::{ops::Range, sync::Arc};
use support::{
    GRAPHS, TestGpu, cpu, dimensions, feed, gpus, proptest_config,
    random_model::{Dimensions, Packing, Random},
    relative_error, run, span,
};

/// A model whose pruned matrices lie as compressed sparse rows, as a file's do: [`damage`](Self::damage) breaks those of
/// one.
struct Stored {
    model: Model,
    damage: Option<Weight>,
}

impl Weights for Stored {
    fn matrix(&self, weight: Weight) -> Result<Matrix<'_>> {
        self.model.weights().matrix(weight)
    }

    fn has(&self, weight: Weight) -> bool {
        self.model.weights().has(weight)
    }

    fn name(&self, weight: Weight) -> String {
        self.model.weights().name(weight)
    }

    fn describe(&self, weight: Weight) -> Result<(Format, Shape)> {
        self.model.weights().describe(weight)
    }

    fn is_in_place(&self, weight: Weight) -> bool {
        !weight.is_prunable()
    }

    fn with_rows(
        &self,
        weight: Weight,
        rows: Range<usize>,
        read: &mut dyn FnMut(&Matrix<'_>) -> Result<()>,
    ) -> Result<()> {
        self.model.weights().with_rows(weight, rows, read)
    }

    fn entries(&self, weight: Weight) -> Option<u64> {
        let sparse = self.sparse(weight);
        sparse.map_or(Some(1), |s| s.map(|s| s.values().len() as u64))
    }

    fn sparse(&self, weight: Weight) -> Result<Option<Csr<'_>>> {
        if !weight.is_prunable() {
            return Ok(None);
        }
        let name = self.name(weight);
        let sparse = Csr::from_dense(&name, &self.matrix(weight)?, 0.0)?;
        if self.damage == Some(weight) {
            let CsrColumns::U16(columns) = sparse.columns() else {
                panic!("narrow");
            };
            let columns: Vec<u16> = columns.iter().map(|_| u16::MAX).collect();
            let (rows, cols) = (sparse.shape().rows, sparse.shape().cols);
            let (values, offsets) = (sparse.values().to_vec(), sparse.row_offsets().to_vec());
            let columns = CsrColumns::U16(columns.into());
            return Ok(Some(Csr::new(&name, rows, cols, values, columns, offsets)?));
        }
        Ok(Some(sparse))
    }
}

fn stored(model: &Model, damage: Option<Weight>) -> Model {
    let model = model.clone();
    Model::new(model.config().clone(), Arc::new(Stored { model, damage })).unwrap()
}

fn on_gpu(model: &Model, gpu: &TestGpu, sparse: SparseWeights) -> GpuExecutor {
    let options = LoadOptions {
        slots: 3,
        sparse,
        ..LoadOptions::default()
    };
    GpuExecutor::new(model, &gpu.gpu, &options, &mut |_| {}).unwrap()
}

/// A prompt, then single tokens of one, two and three sequences: every kernel of products.
fn logits(executor: &mut dyn Executor, vocab: usize, seed: u64) -> Vec<f32> {
    let mut random = Random::new(seed);
    let mut all = feed(executor, 0, &random.tokens(13, vocab), 13).concat();
    for sequences in 1..=3 {
        let spans = (0..sequences).map(|slot| span(slot, &random.tokens(1, vocab), Wanted::All));
        let spans = spans.collect();
        all.extend(run(executor, &Batch { spans }).concat());
    }
    all
}

/// As in `executors_agree`: f16 matrices, f32 sums in another order.
const BOUND: f64 = 2e-3;

/// A sequence that the group norm of a head blows up is as far off with dense matrices: see `executors_agree`.
#[test]
fn pruned_models_agree() {
    for version in GRAPHS {
        let case = (
            dimensions(version, 1),
            0.0..0.95f64,
            any::<u64>(),
            any::<bool>(),
        );
        let cases = if version == Version::V7 { 3 } else { 1 };
        let result = TestRunner::new(proptest_config(cases)).run(
            &case,
            |(dimensions, share, seed, lies)| {
                let model = dimensions
                    .model(Packing::F16, seed)
                    .pruned(PruneRatio::new(share).unwrap());
                let want = logits(&mut cpu(&model, 3), dimensions.vocab, seed);
                let model = if lies {
                    let model = stored(&model, None);
                    let got = logits(&mut cpu(&model, 3), dimensions.vocab, seed);
                    let error = relative_error(&got, &want);
                    prop_assert!(error <= 1e-5, "{error} on the CPU");
                    model
                } else {
                    model
                };
                for gpu in gpus() {
                    for sparse in [SparseWeights::ByDensity, SparseWeights::Always] {
                        let got = logits(&mut on_gpu(&model, gpu, sparse), dimensions.vocab, seed);
                        let error = relative_error(&got, &want);
                        prop_assert!(error <= BOUND, "{error} on {}, {sparse:?}", gpu.name);
                    }
                }
                Ok(())
            },
        );
        result.unwrap_or_else(|error| panic!("{version}: {error}"));
    }
}

fn seven() -> Dimensions {
    Dimensions {
        version: Version::V7,
        layers: 2,
        heads: 2,
        head_size: 64,
        ffn: 512,
        vocab: 60,
        ranks: [8, 8, 8, 16],
    }
}

/// What a density makes of the memory that matrices take, in the estimate too.
#[test]
fn density_decides() {
    let gpu = &gpus()[0];
    let dense = seven().model(Packing::F16, 7);
    let bytes = |model: &Model, sparse| on_gpu(model, gpu, sparse).weights_bytes();
    let estimate = |model: &Model| {
        DeviceMemory::estimate(model, &LoadOptions::default())
            .unwrap()
            .weights
    };
    let whole = bytes(&dense, SparseWeights::ByDensity);
    let mut last = whole;
    for (share, smaller) in [(0.55, false), (0.85, false), (0.93, true), (0.97, true)] {
        let model = dense.pruned(PruneRatio::new(share).unwrap());
        let chosen = bytes(&model, SparseWeights::ByDensity);
        assert_eq!(chosen < last, smaller, "{share}: {chosen} after {last}");
        assert_eq!(bytes(&model, SparseWeights::Never), whole);
        // However it lies.
        assert_eq!(
            bytes(&stored(&model, None), SparseWeights::ByDensity),
            chosen
        );
        assert_eq!(bytes(&stored(&model, None), SparseWeights::Never), whole);
        assert_eq!(estimate(&model), estimate(&dense));
        assert_eq!(estimate(&stored(&model, None)) < estimate(&dense), smaller);
        last = chosen;
    }
}

/// One sparse matrix among dense ones, wherever it is: what is computed together otherwise still is right.
#[test]
fn one_of_a_group() {
    let dimensions = seven();
    let dense = dimensions.model(Packing::F16, 9);
    for block in [
        B::AttReceptance,
        B::AttKey,
        B::AttValue,
        B::AttOutput,
        B::FfnKey,
        B::FfnValue,
    ] {
        let ratio = PruneRatio::new(0.95).unwrap();
        let source = Arc::new(stored(&dense, None));
        let one = PrunedWeights::new(
            Arc::new(Delegate(source)),
            &[Weight::Block(1, block)],
            ratio,
        );
        let model = Model::new(dense.config().clone(), Arc::new(one)).unwrap();
        let want = logits(&mut cpu(&model, 3), dimensions.vocab, 1);
        for gpu in &gpus()[..1] {
            let mut executor = on_gpu(&model, gpu, SparseWeights::ByDensity);
            let error = relative_error(&logits(&mut executor, dimensions.vocab, 1), &want);
            assert!(error <= BOUND, "{block:?}: {error} on {}", gpu.name);
        }
    }
}

/// The dense tensors of a model.
struct Delegate(Arc<Model>);

impl Weights for Delegate {
    fn matrix(&self, weight: Weight) -> Result<Matrix<'_>> {
        self.0.weights().matrix(weight)
    }

    fn has(&self, weight: Weight) -> bool {
        self.0.weights().has(weight)
    }

    fn name(&self, weight: Weight) -> String {
        self.0.weights().name(weight)
    }
}

/// A blend of a sparse matrix is dense, and goes away again.
#[test]
fn adapters() {
    let dimensions = seven();
    let model = dimensions
        .model(Packing::F16, 3)
        .pruned(PruneRatio::new(0.93).unwrap());
    let mut random = Random::new(4);
    let mut adapter = Adapter::new("test");
    for block in [B::AttKey, B::AttOutput, B::FfnKey, B::FfnValue] {
        let weight = Weight::Block(1, block);
        let shape = model.weights().describe(weight).unwrap().1;
        let mut noise = |count: usize| -> Vec<f32> {
            (0..count)
                .map(|_| random.below(1000) as f32 / 5e3 - 0.1)
                .collect()
        };
        let change = LowRank {
            rank: 4,
            a: noise(4 * shape.cols.0).into(),
            b: noise(shape.rows.0 * 4).into(),
            scale: 1.0,
        };
        adapter.add_low_rank(weight, change);
    }
    let adapter = [(Arc::new(adapter), 0.7)];
    let mut oracle = cpu(&model, 3);
    let plain = logits(&mut oracle, dimensions.vocab, 2);
    let reset = |executor: &mut dyn Executor| {
        for slot in 0..3 {
            executor.reset(rwkv_sched::SlotId(slot)).unwrap();
        }
    };
    reset(&mut oracle);
    oracle.set_adapters(&adapter).unwrap();
    let blended = logits(&mut oracle, dimensions.vocab, 2);
    assert!(relative_error(&blended, &plain) > 10.0 * BOUND);
    let stored = stored(&model, None);
    let subjects = gpus()
        .iter()
        .map(|gpu| {
            let executor: Box<dyn Executor> =
                Box::new(on_gpu(&stored, gpu, SparseWeights::ByDensity));
            (gpu.name.clone(), executor)
        })
        .chain([(
            "CPU".to_owned(),
            Box::new(cpu(&stored, 3)) as Box<dyn Executor>,
        )]);
    for (name, mut executor) in subjects {
        for (blend, want) in [
            (&[][..], &plain),
            (&adapter[..], &blended),
            (&[][..], &plain),
        ] {
            executor.set_adapters(blend).unwrap();
            reset(executor.as_mut());
            let got = logits(executor.as_mut(), dimensions.vocab, 2);
            let error = relative_error(&got, want);
            assert!(error <= BOUND, "{error} on {name}");
        }
    }
}

/// Entries that make no matrix are told before anything runs.
#[test]
fn damaged() {
    let weight = Weight::Block(1, B::FfnKey);
    let model = seven()
        .model(Packing::F16, 5)
        .pruned(PruneRatio::new(0.8).unwrap());
    let model = stored(&model, Some(weight));
    let check = |result: Result<()>| {
        let error = result.err().unwrap();
        assert!(matches!(error, Error::Kernel(_)), "{error}");
        let text = error.to_string();
        assert!(
            text.starts_with("Block(1, FfnKey): the columns of row"),
            "{text}"
        );
    };
    check(rwkv_sched::CpuExecutor::new(&model, 1).map(drop));
    let gpu = &gpus()[0].gpu;
    let options = LoadOptions {
        sparse: SparseWeights::Always,
        ..LoadOptions::default()
    };
    check(GpuExecutor::new(&model, gpu, &options, &mut |_| {}).map(drop));
}
