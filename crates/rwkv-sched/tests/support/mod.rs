//! What the tests of the executors share.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests fail by panicking; sizes are small"
)]
#![allow(dead_code, reason = "each test file uses its part")]

pub(crate) mod decoding;
pub(crate) mod random_model;
pub(crate) mod small;

use proptest::prelude::*;
use random_model::Dimensions;
use rwkv_gpu::{Gpu, Hidden, OpenOptions, Selector};
use rwkv_sched::{
    Batch, BatchSpan, CpuExecutor, Device, Executor, GpuExecutor, LoadOptions, Model, Placement,
    Simd, SlotId, SplitExecutor, State, TokenTables, Version, Wanted, WeightsDType,
};
use std::sync::OnceLock;

/// An adapter, opened in one of the ways that kernels have variants for.
pub(crate) struct TestGpu {
    pub(crate) name: String,
    pub(crate) gpu: Gpu,
}

/// The adapter of the tests, opened with everything it has, with shader checks and without them, and then without
/// subgroups and without f16 and atomic sums; every kernel alone is tested in more ways.
///
/// It is the one that `RWKV_DEVICE` names, or the best GPU, or any adapter at all (a software one in CI).
///
/// # Panics
/// Without an adapter: a test that needs one does not pass by skipping.
pub(crate) fn gpus() -> &'static [TestGpu] {
    static GPUS: OnceLock<Vec<TestGpu>> = OnceLock::new();
    GPUS.get_or_init(|| {
        let ways = [
            ("", true),
            ("", false),
            ("subgroup", true),
            ("f16,float-atomics", false),
        ];
        ways.map(|(hidden, checks)| {
            let options = OpenOptions {
                hidden: hidden.parse::<Hidden>().unwrap(),
                checks,
                ..OpenOptions::default()
            };
            let gpu = open(&options);
            let name = format!("{}, hidden: {hidden:?}, checks: {checks}", gpu.name());
            TestGpu { name, gpu }
        })
        .into()
    })
}

pub(crate) fn open(options: &OpenOptions) -> Gpu {
    let named = std::env::var("RWKV_DEVICE").unwrap_or_else(|_| "auto".to_owned());
    let selectors = [named.parse::<Selector>().unwrap(), Selector::Index(0)];
    selectors
        .iter()
        .find_map(|selector| Gpu::open(selector, options).ok())
        .unwrap_or_else(|| {
            panic!(
                "this test needs a Vulkan, Metal, DX12 or GL adapter; scripts/test installs a software one where it can"
            )
        })
}

/// An adapter of its own for a test: bytes in use are those of everything on an opened GPU. Without atomic sums, whose order
/// differs from run to run.
pub(crate) fn own_gpu() -> Gpu {
    open(&OpenOptions {
        hidden: "float-atomics".parse().unwrap(),
        ..OpenOptions::default()
    })
}

/// The oracle.
pub(crate) fn cpu(model: &Model, slots: usize) -> CpuExecutor {
    CpuExecutor::new(model, slots)
        .unwrap()
        .with_simd(Simd::Twins)
}

/// The same model on a GPU.
pub(crate) fn on_gpu(model: &Model, slots: usize, gpu: &Gpu, dtype: WeightsDType) -> GpuExecutor {
    let options = LoadOptions {
        slots,
        weights_dtype: dtype,
        ..LoadOptions::default()
    };
    GpuExecutor::new(model, gpu, &options, &mut |_| {}).unwrap()
}

/// The same with its tables of tokens on the host.
pub(crate) fn with_host_tables(
    model: &Model,
    slots: usize,
    gpu: &Gpu,
    dtype: WeightsDType,
) -> GpuExecutor {
    let options = LoadOptions {
        slots,
        weights_dtype: dtype,
        token_tables: TokenTables::Host,
        ..LoadOptions::default()
    };
    GpuExecutor::new(model, gpu, &options, &mut |_| {}).unwrap()
}

/// The same model with its layers on several devices, each the layers up to a number.
pub(crate) fn split(
    model: &Model,
    slots: usize,
    ends: &[(usize, Device)],
    dtype: WeightsDType,
) -> SplitExecutor {
    let starts = [0].into_iter().chain(ends.iter().map(|(end, _)| *end));
    let stages = starts.zip(ends);
    let stages = stages.map(|(start, (end, device))| (start..*end, device.clone()));
    let placement = Placement::new(model.config().layers, stages).unwrap();
    let options = LoadOptions {
        slots,
        weights_dtype: dtype,
        simd: Simd::Twins,
        ..LoadOptions::default()
    };
    SplitExecutor::new(model, &placement, &options, &mut |_| {}).unwrap()
}

/// Every executor of a model: the CPU's with twins and with its widest vectors, one a GPU, with F32 kept, one with the
/// tables of tokens on the host, and one with some layers on a GPU and some on the CPU.
pub(crate) fn everywhere(model: &Model, slots: usize) -> Vec<(String, Box<dyn Executor>)> {
    let mut all: Vec<(String, Box<dyn Executor>)> = Vec::new();
    for level in [Simd::Twins, Simd::detect()] {
        let executor = cpu(model, slots).with_simd(level);
        all.push((format!("CPU, {level}"), Box::new(executor)));
    }
    for TestGpu { name, gpu } in gpus() {
        let executor = on_gpu(model, slots, gpu, WeightsDType::F32);
        all.push((name.clone(), Box::new(executor)));
    }
    let TestGpu { name, gpu } = &gpus()[0];
    let executor = with_host_tables(model, slots, gpu, WeightsDType::F32);
    all.push((format!("{name}, tables on the host"), Box::new(executor)));
    let layers = model.config().layers;
    if layers > 1 {
        let gpu = Device::Gpu(gpus()[0].gpu.clone());
        let ends = [(layers / 2, gpu), (layers, Device::Cpu)];
        let executor = split(model, slots, &ends, WeightsDType::F32);
        all.push((executor.device().to_owned(), Box::new(executor)));
    }
    all
}

pub(crate) fn span(slot: u32, tokens: &[u32], wanted: Wanted) -> BatchSpan {
    BatchSpan {
        slot: SlotId(slot),
        tokens: tokens.to_vec(),
        wanted,
    }
}

/// Logits of one run, row by row.
pub(crate) fn run(executor: &mut dyn Executor, batch: &Batch) -> Vec<Vec<f32>> {
    let logits = executor.run(batch).unwrap();
    logits.rows().map(<[f32]>::to_vec).collect()
}

/// Feeds `tokens` to `slot` in chunks of `chunk`; all logits.
pub(crate) fn feed(
    executor: &mut dyn Executor,
    slot: u32,
    tokens: &[u32],
    chunk: usize,
) -> Vec<Vec<f32>> {
    tokens
        .chunks(chunk)
        .flat_map(|part| run(executor, &Batch::single(SlotId(slot), part, Wanted::All)))
        .collect()
}

/// Resets every slot.
pub(crate) fn reset(executor: &mut dyn Executor) {
    for slot in 0..executor.slots() as u32 {
        executor.reset(SlotId(slot)).unwrap();
    }
}

pub(crate) fn states(executor: &mut dyn Executor) -> Vec<State> {
    (0..executor.slots() as u32)
        .map(|slot| executor.state(SlotId(slot)).unwrap())
        .collect()
}

/// ‖got − want‖ / ‖want‖, which is also the ratio of their RMS; 0 where both are 0, infinite for a NaN.
pub(crate) fn relative_error(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let (mut difference, mut size) = (0.0, 0.0);
    for (got, want) in got.iter().zip(want) {
        difference += (f64::from(*got) - f64::from(*want)).powi(2);
        size += f64::from(*want).powi(2);
    }
    match (difference, size) {
        (0.0, _) => 0.0,
        (d, s) if d.is_nan() || s.is_nan() => f64::INFINITY,
        (d, s) => (d / s).sqrt(),
    }
}

/// The largest error of any layer's recurrences or shift vectors, each over all slots.
pub(crate) fn states_error(got: &[State], want: &[State]) -> f64 {
    type Part = fn(&State) -> &Vec<Vec<f32>>;
    let parts: [Part; 2] = [|state| &state.wkv, |state| &state.shift];
    let mut largest = 0.0f64;
    for part in parts {
        for layer in 0..part(&want[0]).len() {
            let all = |states: &[State]| -> Vec<f32> {
                let vectors = states.iter().flat_map(|state| &part(state)[layer]);
                vectors.copied().collect()
            };
            largest = largest.max(relative_error(&all(got), &all(want)));
        }
    }
    largest
}

/// The versions whose graphs differ: 5.1's is 5.2's.
pub(crate) const GRAPHS: [Version; 6] = [
    Version::V4,
    Version::V5_0,
    Version::V5_2,
    Version::V6,
    Version::V7,
    Version::V7a,
];

/// One for each way of advancing a state; 7a does all that 7 does.
pub(crate) const RECURRENCES: [Version; 4] =
    [Version::V4, Version::V5_2, Version::V6, Version::V7a];

/// Dimensions of a model of `version` that are multiples of `block`, and of nothing else where it is 1.
pub(crate) fn dimensions(version: Version, block: usize) -> BoxedStrategy<Dimensions> {
    let heads_of: &[usize] = if block == 1 {
        &[8, 10, 13, 16, 24, 32, 40, 64, 96, 100, 128]
    } else {
        &[8, 16, 32, 64, 96, 128]
    };
    let rank = 1..=40usize;
    (
        1..=3usize,
        prop::sample::select(heads_of),
        1..=4usize,
        1..=700usize,
        3..=700usize,
        [rank.clone(), rank.clone(), rank.clone(), rank],
    )
        .prop_map(move |(layers, head_size, heads, ffn, vocab, ranks)| {
            let mut heads = heads;
            while !(heads * head_size).is_multiple_of(block) {
                heads += 1;
            }
            Dimensions {
                version,
                layers,
                heads,
                head_size,
                ffn: ffn.next_multiple_of(block),
                vocab,
                ranks,
            }
        })
        .boxed()
}

/// `cases` cases, or `PROPTEST_CASES`.
pub(crate) fn proptest_config(cases: u32) -> ProptestConfig {
    let set = std::env::var_os("PROPTEST_CASES").is_some();
    let config = ProptestConfig::default();
    ProptestConfig {
        cases: if set { config.cases } else { cases },
        // A case takes up to a second.
        max_shrink_iters: 100,
        failure_persistence: None,
        ..config
    }
}
