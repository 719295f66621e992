//! What a quantized model will take, told without looking at its matrices twice.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod support;

use rwkv_kernels::{Format, Matrix};
use rwkv_mem::Shape;
use rwkv_sched::{
    DeviceMemory, Executor, GpuExecutor, LoadOptions, Model, Quantization, Result, Version, Weight,
    Weights, WeightsDType,
};
use std::{
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};
use support::{
    feed, gpus, on_gpu,
    random_model::{Dimensions, Packing, Random},
};

/// Counts how often the elements of a tensor are looked at, and how many at a time.
struct Counted {
    model: Model,
    looks: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    in_place: bool,
}

impl Weights for Counted {
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

    fn is_in_place(&self, _: Weight) -> bool {
        self.in_place
    }

    fn with_rows(
        &self,
        weight: Weight,
        rows: Range<usize>,
        on: &mut dyn FnMut(&Matrix<'_>) -> Result<()>,
    ) -> Result<()> {
        self.looks.fetch_add(1, Relaxed);
        let cols = self.describe(weight)?.1.cols.0;
        self.most.fetch_max(rows.len() * cols, Relaxed);
        self.model.weights().with_rows(weight, rows, on)
    }
}

fn two_layers() -> Model {
    let dimensions = Dimensions {
        version: Version::V7,
        layers: 2,
        heads: 2,
        head_size: 32,
        ffn: 128,
        vocab: 70,
        ranks: [5, 6, 7, 8],
    };
    dimensions.model(Packing::F32, 1)
}

#[test]
fn matrices_are_looked_at_once() {
    let model = two_layers();
    let looks = Arc::new(AtomicUsize::new(0));
    let weights = Arc::new(Counted {
        model: model.clone(),
        looks: looks.clone(),
        most: Arc::default(),
        in_place: true,
    });
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

/// Tensors that are made on demand are made a piece at a time, and come out the same.
#[test]
fn made_in_pieces() {
    let dimensions = Dimensions {
        version: Version::V7,
        layers: 1,
        heads: 1,
        head_size: 32,
        ffn: 40_000,
        vocab: 70_000,
        ranks: [5, 6, 7, 8],
    };
    let model = dimensions.model(Packing::F32, 1);
    let most = Arc::new(AtomicUsize::new(0));
    let on_demand = |in_place| {
        let weights = Arc::new(Counted {
            model: model.clone(),
            looks: Arc::default(),
            most: most.clone(),
            in_place,
        });
        Model::new(model.config().clone(), weights).unwrap()
    };
    // Without atomic sums, whose order differs from run to run.
    let gpu = &gpus()[3].gpu;
    assert!(!gpu.capabilities().float_atomics);
    let [in_place, in_pieces] = [true, false].map(|in_place| {
        let model = on_demand(in_place);
        most.store(0, Relaxed);
        let mut executor = on_gpu(&model, 1, gpu, WeightsDType::F16);
        feed(&mut executor, 0, &[5, 69_999], 1)
    });
    let pieces = most.load(Relaxed);
    // 8 MiB of F32.
    assert_eq!(pieces, 2 << 20);
    assert_eq!(in_pieces, in_place);
}

/// The estimate is what an executor takes but for its activations: of tables, padding and buffers kept for reuse.
#[test]
fn estimates_are_right() {
    for version in [Version::V7, Version::V6, Version::V4] {
        let dimensions = Dimensions {
            version,
            layers: 3,
            heads: 4,
            head_size: 32,
            ffn: 512,
            vocab: 1000,
            ranks: [16, 16, 16, 32],
        };
        for packing in [Packing::F16, Packing::Q8_0] {
            let model = dimensions.model(packing, 5);
            let options = LoadOptions {
                slots: 2,
                ..LoadOptions::default()
            };
            let estimate = DeviceMemory::estimate(&model, &options).unwrap();
            let executor = GpuExecutor::new(&model, &gpus()[0].gpu, &options, &mut |_| {}).unwrap();
            let weights = executor.weights_bytes();
            let error = estimate.weights.abs_diff(weights) as f64 / weights as f64;
            assert!(
                error < 0.01,
                "{version}: {} estimated, {weights} taken",
                estimate.weights
            );
        }
    }
}

/// Prompts of any length take no more than the larger of a chunk's plan and their own, which is what is estimated, within
/// the steps of the pool's sizes and what plans may hold beyond the largest.
#[test]
fn memory_stays_flat() {
    for version in [Version::V7, Version::V6, Version::V4] {
        let dimensions = Dimensions {
            version,
            layers: 2,
            heads: 4,
            head_size: 32,
            ffn: 512,
            vocab: 100,
            ranks: [32, 32, 32, 32],
        };
        let model = dimensions.model(Packing::F16, 5);
        let options = LoadOptions::default();
        let gpu = &gpus()[3].gpu;
        let mut executor = GpuExecutor::new(&model, gpu, &options, &mut |_| {}).unwrap();
        let fixed = executor.weights_bytes() + model.state_layout().bytes();
        let chunk = executor.chunk();
        let rounding = !gpu.capabilities().cooperative_matrices.is_empty();
        let estimate = |tokens| {
            DeviceMemory::activations_of(&model, tokens, rounding)
                - DeviceMemory::activations_of(&model, 0, rounding)
        };
        let mut random = Random::new(1);
        for tokens in [chunk + 44, chunk + 14, 2 * chunk + 88, chunk + 77] {
            let tokens = random.tokens(tokens, dimensions.vocab);
            feed(&mut executor, 0, &tokens, tokens.len());
            let taken = executor.device_bytes() - fixed - executor.scratch_bytes();
            let ratio = taken as f64 / estimate(tokens.len().max(chunk)) as f64;
            assert!((0.6..1.4).contains(&ratio), "{version}: {ratio}");
        }
    }
}

/// What is said of a tensor, and when it is read.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Event {
    WillNeed,
    Read,
    WontNeed,
}

/// Notes what happens to tensors.
struct Noted {
    model: Model,
    events: Arc<Mutex<Vec<(Weight, Event)>>>,
}

impl Noted {
    fn note(&self, weight: Weight, event: Event) {
        self.events.lock().unwrap().push((weight, event));
    }
}

impl Weights for Noted {
    fn matrix(&self, weight: Weight) -> Result<Matrix<'_>> {
        self.note(weight, Event::Read);
        self.model.weights().matrix(weight)
    }

    fn name(&self, weight: Weight) -> String {
        self.model.weights().name(weight)
    }

    fn describe(&self, weight: Weight) -> Result<(Format, Shape)> {
        self.model.weights().describe(weight)
    }

    fn will_need(&self, weight: Weight) {
        self.note(weight, Event::WillNeed);
    }

    fn wont_need(&self, weight: Weight) {
        self.note(weight, Event::WontNeed);
    }
}

/// Every tensor is asked for once and before it is read, and a matrix is let go once and after it was.
#[test]
fn tensors_are_announced() {
    let model = two_layers();
    let events = Arc::new(Mutex::default());
    let noted = Noted {
        model: model.clone(),
        events: events.clone(),
    };
    let model = Model::new(model.config().clone(), Arc::new(noted)).unwrap();
    events.lock().unwrap().clear();
    let options = LoadOptions {
        check_memory: false,
        ..LoadOptions::default()
    };
    drop(GpuExecutor::new(&model, &gpus()[0].gpu, &options, &mut |_| {}).unwrap());
    let events = events.lock().unwrap();
    for weight in model.tensors() {
        let of = events.iter().filter(|(of, _)| *of == weight);
        let mut of: Vec<Event> = of.map(|(_, event)| *event).collect();
        of.dedup();
        let is_matrix = model.weights().describe(weight).unwrap().1.rows.0 > 1;
        let want: &[Event] = if is_matrix {
            &[Event::WillNeed, Event::Read, Event::WontNeed]
        } else {
            &[Event::WillNeed, Event::Read]
        };
        assert_eq!(of, want, "{weight:?}");
    }
}
