//! What a quantized model will take, told without looking at its matrices twice.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod support;

use rwkv_kernels::{Format, Matrix};
use rwkv_mem::Shape;
use rwkv_sched::{
    DeviceMemory, LoadOptions, Model, Quantization, Result, Version, Weight, Weights, WeightsDType,
};
use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};
use support::random_model::{Dimensions, Packing};

/// Counts how often the elements of a tensor are looked at.
struct Counted(Model, Arc<AtomicUsize>);

impl Weights for Counted {
    fn matrix(&self, weight: Weight) -> Result<Matrix<'_>> {
        self.0.weights().matrix(weight)
    }

    fn has(&self, weight: Weight) -> bool {
        self.0.weights().has(weight)
    }

    fn name(&self, weight: Weight) -> String {
        self.0.weights().name(weight)
    }

    fn describe(&self, weight: Weight) -> Result<(Format, Shape)> {
        self.0.weights().describe(weight)
    }

    fn with_rows(
        &self,
        weight: Weight,
        rows: Range<usize>,
        on: &mut dyn FnMut(&Matrix<'_>) -> Result<()>,
    ) -> Result<()> {
        self.1.fetch_add(1, Relaxed);
        self.0.weights().with_rows(weight, rows, on)
    }
}

#[test]
fn matrices_are_looked_at_once() {
    let dimensions = Dimensions {
        version: Version::V7,
        layers: 2,
        heads: 2,
        head_size: 32,
        ffn: 128,
        vocab: 70,
        ranks: [5, 6, 7, 8],
    };
    let model = dimensions.model(Packing::F32, 1);
    let looks = Arc::new(AtomicUsize::new(0));
    let weights = Arc::new(Counted(model.clone(), looks.clone()));
    let model = Model::new(model.config().clone(), weights).unwrap();
    looks.store(0, Relaxed);
    let quantization: Quantization = "int8".parse().unwrap();
    let chosen = quantization.choose_all(&model).unwrap();
    // Embedding, head, and six matrices a layer.
    assert_eq!([chosen.len(), looks.load(Relaxed)], [14, 14]);
    let memory = DeviceMemory::with_chosen(&model, &chosen, WeightsDType::F16).unwrap();
    assert_eq!(looks.load(Relaxed), 14);
    let options = LoadOptions {
        quantization: Some(quantization),
        ..LoadOptions::default()
    };
    assert_eq!(DeviceMemory::estimate(&model, &options).unwrap(), memory);
}
