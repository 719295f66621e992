//! Tables of tokens that stay on the host: the same logits and states as with everything on the GPU, for less of its
//! memory. All that the tests of other files do with every executor is done with such a one too.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests fail by panicking; sizes are small"
)]

mod support;

use proptest::{prelude::*, test_runner::TestRunner};
use rwkv_gpu::{Gpu, OpenOptions};
use rwkv_mem::{Cols, Rows};
use rwkv_sched::{
    Adapter, Batch, BlockWeight as B, Decoding, Device, DeviceMemory, Error, Executor, GpuExecutor,
    InMemoryWeights, LoadOptions, LowRank, Model, Op, Placement, Quantization, SlotId,
    SplitExecutor, TokenTables, Version, Wanted, Weight, WeightType, WeightsDType,
    engine::{Engine, EngineOptions, Request},
    sampling::{Sampler, SamplerParams},
};
use std::{ops::ControlFlow, sync::Arc};
use support::{
    GRAPHS, cpu, dimensions, feed, gpus, on_gpu, open, proptest_config,
    random_model::{Dimensions, Packing, Random},
    relative_error, run, span, states, states_error, with_host_tables,
};

const SLOTS: usize = 5;

/// Steps of one token a sequence, prompts, and ragged mixtures of both.
fn batches(random: &mut Random, vocab: usize, work: usize) -> Vec<Batch> {
    let most = (20_000_000 / work).clamp(2, 40);
    let mut batches = Vec::new();
    for length in [most, 1, 1, most, 1] {
        let mut slots: Vec<u32> = (0..SLOTS as u32).collect();
        random.shuffle(&mut slots);
        slots.truncate(1 + random.below(SLOTS));
        let spans = slots.into_iter().map(|slot| {
            let wanted = [Wanted::None, Wanted::Last, Wanted::All][random.below(3)];
            span(slot, &random.prompt(length, vocab), wanted)
        });
        batches.push(Batch {
            spans: spans.collect(),
        });
    }
    batches
}

/// Random models of every version and packing, on every GPU in turn, against the oracle.
#[test]
fn the_same_as_the_oracle() {
    for (packing, bound) in [
        (Packing::F32, 1e-5),
        (Packing::F16, 2e-3),
        (Packing::Mixed, 2e-3),
    ] {
        for version in GRAPHS {
            let strategy = (dimensions(version, 1), any::<u64>(), 0..gpus().len());
            let result = TestRunner::new(proptest_config(2)).run(&strategy, |case| {
                let (dimensions, seed, gpu) = case;
                let model = dimensions.model(packing, seed);
                let mut oracle = cpu(&model, SLOTS);
                let (gpu, dtype) = (&gpus()[gpu].gpu, packing.weights_dtype());
                let mut subject = with_host_tables(&model, SLOTS, gpu, dtype);
                let mut random = Random::new(seed);
                for batch in batches(&mut random, dimensions.vocab, dimensions.work()) {
                    let want = run(&mut oracle, &batch).concat();
                    let got = run(&mut subject, &batch).concat();
                    let error = relative_error(&got, &want);
                    prop_assert!(error <= bound, "logits differ by {error}");
                }
                let error = states_error(&states(&mut subject), &states(&mut oracle));
                prop_assert!(error <= bound, "states differ by {error}");
                Ok(())
            });
            result.unwrap_or_else(|error| panic!("{version}, {packing:?}: {error}"));
        }
    }
}

fn small(version: Version) -> Dimensions {
    Dimensions {
        version,
        layers: 3,
        heads: 4,
        head_size: 32,
        ffn: 256,
        vocab: 3000,
        ranks: [16, 16, 16, 32],
    }
}

/// Bytes of the tables of `model`, and of those that are not the embedding, in f16.
fn table_bytes(model: &Model) -> (u64, u64) {
    let (mut all, mut matrices) = (0, 0);
    for node in model.graph().nodes() {
        let Op::Embed { table } = node.op else {
            continue;
        };
        let shape = model.weights().describe(table).unwrap().1;
        let bytes = 2 * shape.elements().unwrap() as u64;
        all += bytes;
        if table != Weight::Embedding {
            matrices += bytes;
        }
    }
    (all, matrices)
}

fn load(model: &Model, gpu: &Gpu, token_tables: TokenTables) -> rwkv_sched::Result<GpuExecutor> {
    let options = LoadOptions {
        slots: SLOTS,
        token_tables,
        ..LoadOptions::default()
    };
    GpuExecutor::new(model, gpu, &options, &mut |_| {})
}

/// What the weights take, and what is said of them, is less by the bytes of the tables, and no row of them is read twice.
#[test]
fn less_memory() {
    for version in GRAPHS {
        let model = small(version).model(Packing::F16, 3);
        let gpu = &gpus()[0].gpu;
        let [device, host] = [TokenTables::Device, TokenTables::Host].map(|token_tables| {
            let executor = load(&model, gpu, token_tables).unwrap();
            let options = LoadOptions {
                token_tables,
                ..LoadOptions::default()
            };
            let estimate = DeviceMemory::estimate(&model, &options).unwrap();
            let reads = executor.weight_reads();
            (executor.weights_bytes(), estimate.weights, reads.token)
        });
        let (all, _) = table_bytes(&model);
        assert_eq!(device.0 - host.0, all, "{version}");
        assert_eq!(device.1 - host.1, all, "{version}");
        assert_eq!((device.2, host.2), (all / 3000, 0), "{version}");
    }
}

/// Where there is room everything is on the GPU; with a byte less, the matrices of tokens are on the host, then the
/// embedding too; and with less than that needs, the model is refused, in words that say so.
#[test]
fn tables_leave_where_there_is_no_room() {
    for version in [Version::V7, Version::V7a] {
        let model = small(version).model(Packing::F16, 3);
        // Where chunks are cut as memory asks, what rounds to f16 depends on their lengths.
        let gpu = open(&OpenOptions {
            hidden: "coop,float-atomics".parse().unwrap(),
            ..OpenOptions::default()
        });
        let needed = |tables: TokenTables| {
            gpu.set_memory_limit(Some(0));
            match load(&model, &gpu, tables) {
                Err(Error::DoesNotFit(short)) => *short,
                other => panic!("{:?}", other.err()),
            }
        };
        let [device, host, auto] =
            [TokenTables::Device, TokenTables::Host, TokenTables::Auto].map(needed);
        let (all, matrices) = table_bytes(&model);
        assert_eq!((device.host_tables, host.host_tables), (0, all));
        assert_eq!((auto.needed(), auto.host_tables), (host.needed(), all));
        assert!(auto.to_string().contains("of tables on the host"), "{auto}");
        assert!(!device.to_string().contains("tables"), "{device}");
        let tokens = Random::new(4).tokens(300, 3000);
        let mut want = None;
        let mut at = |limit: u64, left: Option<u64>| {
            gpu.set_memory_limit(Some(limit));
            let loaded = load(&model, &gpu, TokenTables::Auto);
            let Some(left) = left else {
                assert!(matches!(loaded, Err(Error::DoesNotFit(_))), "{version}");
                return;
            };
            let mut executor = loaded.unwrap();
            let lacking = device.weights - executor.weights_bytes();
            assert_eq!(lacking, left, "{version}, {limit}");
            assert_eq!(executor.runs_ahead(), left == 0);
            let logits = feed(&mut executor, 0, &tokens, 256).concat();
            let peak = gpu.memory().peak;
            assert!(peak <= limit, "{version}: {peak} of {limit}");
            let want = want.get_or_insert_with(|| logits.clone());
            let error = relative_error(&logits, want);
            assert!(error < 1e-6, "{version}: {error:.1e}");
        };
        at(device.needed(), Some(0));
        let first = if version == Version::V7a {
            matrices
        } else {
            all
        };
        at(device.needed() - 1, Some(first));
        at(host.needed(), Some(all));
        at(host.needed() - 1, None);
    }
}

/// What is offered where even tables on the host do not help fits.
#[test]
fn offers_fit() {
    let model = small(Version::V7a).model(Packing::F16, 3);
    let gpu = open(&OpenOptions::default());
    gpu.set_memory_limit(Some(0));
    let short = |options: &LoadOptions| match GpuExecutor::new(&model, &gpu, options, &mut |_| {}) {
        Err(Error::DoesNotFit(short)) => *short,
        other => panic!("{:?}", other.err()),
    };
    let options = LoadOptions {
        slots: SLOTS,
        ..LoadOptions::default()
    };
    let all = short(&options);
    gpu.set_memory_limit(Some(all.needed() - all.weights / 4));
    let short = short(&options);
    let (weight_type, needed) = short.quantization.unwrap();
    assert!(needed <= short.available);
    let quantized = LoadOptions {
        quantization: Some(Quantization::from(weight_type)),
        ..options.clone()
    };
    GpuExecutor::new(&model, &gpu, &quantized, &mut |_| {}).unwrap();
    let device = Device::Gpu(gpu);
    let layers = short.fewer_layers.unwrap();
    let stages = [(0..layers, device), (layers..3, Device::Cpu)];
    let placement = Placement::new(3, stages).unwrap();
    SplitExecutor::new(&model, &placement, &options, &mut |_| {}).unwrap();
}

fn decode(executor: &mut dyn Executor, sequences: usize, steps: usize, stop: usize) -> Vec<u32> {
    let sequence = |slot: u32| Decoding {
        slot: SlotId(slot),
        token: 5 + slot,
        sampler: Sampler::new(SamplerParams {
            seed: u64::from(slot),
            ..SamplerParams::default()
        })
        .unwrap(),
    };
    let mut sequences: Vec<Decoding> = (0..sequences as u32).map(sequence).collect();
    let (mut all, mut seen) = (Vec::new(), 0);
    let take = &mut |tokens: &[u32]| {
        all.extend_from_slice(tokens);
        seen += 1;
        if seen == stop {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    };
    executor
        .decode(&mut sequences, steps, &|_| true, take)
        .unwrap();
    all
}

/// Tokens are chosen on the GPU, step by step: logits do not come back, nothing runs ahead of the caller, and what is
/// chosen is what comes with the tables on the GPU.
#[test]
fn decoding() {
    for version in GRAPHS {
        let dimensions = Dimensions {
            layers: 2,
            vocab: 200,
            ..small(version)
        };
        let model = dimensions.model(Packing::F32, 7);
        let gpu = &gpus()[3].gpu;
        let mut device = on_gpu(&model, SLOTS, gpu, WeightsDType::F32);
        let mut host = with_host_tables(&model, SLOTS, gpu, WeightsDType::F32);
        for (sequences, steps, stop) in [(1, 70, 70), (3, 70, 66), (1, 9, 1)] {
            let tokens = Random::new(4).tokens(20, 200);
            for executor in [&mut device, &mut host] {
                for slot in 0..sequences as u32 {
                    executor.reset(SlotId(slot)).unwrap();
                    feed(executor, slot, &tokens, 20);
                }
            }
            let want = decode(&mut device, sequences, steps, stop);
            let before = host.stats().steps;
            let got = decode(&mut host, sequences, steps, stop);
            assert_eq!(got, want, "{version}, {sequences} sequences");
            assert_eq!(host.stats().steps - before, stop as u64, "{version}");
            let error = states_error(&states(&mut host), &states(&mut device));
            assert!(error < 1e-5, "{version}: {error}");
        }
    }
}

/// Requests of an engine get the same tokens.
#[test]
fn in_an_engine() {
    let model = small(Version::V7a).model(Packing::F32, 7);
    let gpu = &gpus()[3].gpu;
    let answers = [false, true].map(|on_host| {
        let dtype = WeightsDType::F32;
        let executor = if on_host {
            with_host_tables(&model, 3, gpu, dtype)
        } else {
            on_gpu(&model, 3, gpu, dtype)
        };
        let engine = Engine::with_executor(Box::new(executor), EngineOptions::default()).unwrap();
        let mut random = Random::new(2);
        let requests: Vec<_> = (0..6)
            .map(|seed| {
                let mut session = engine.session();
                let stream = session.try_generate(Request {
                    prompt: random.prompt(30, 3000),
                    max_tokens: 20,
                    sampler: SamplerParams {
                        seed,
                        ..SamplerParams::default()
                    },
                    ..Request::default()
                });
                (session, stream.unwrap())
            })
            .collect();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let mut answers = Vec::new();
        for (_session, mut stream) in requests {
            let mut tokens = Vec::new();
            while let Some(token) = runtime.block_on(stream.next()) {
                tokens.push(token.unwrap().id);
            }
            answers.push(tokens);
        }
        answers
    });
    assert_eq!(answers[0], answers[1]);
    assert!(answers[0].iter().all(|tokens| tokens.len() == 20));
}

/// Rows are the file's, whatever the matrices of the GPU are re-encoded as: what the first layer keeps of a token is its
/// normed row.
#[test]
fn rows_are_not_re_encoded() {
    let dimensions = Dimensions {
        vocab: 90,
        ..small(Version::V7)
    };
    let model = dimensions.model(Packing::F32, 7);
    let kept = |executor: &mut dyn Executor| {
        feed(executor, 0, &[17], 1);
        let shift = executor.state(SlotId(0)).unwrap().shift.swap_remove(0);
        shift[..dimensions.width()].to_vec()
    };
    let want = kept(&mut cpu(&model, 1));
    let [device, host] = [TokenTables::Device, TokenTables::Host].map(|token_tables| {
        let options = LoadOptions {
            quantization: Some(Quantization::from("q4_0".parse::<WeightType>().unwrap())),
            token_tables,
            ..LoadOptions::default()
        };
        let gpu = &gpus()[0].gpu;
        let mut executor = GpuExecutor::new(&model, gpu, &options, &mut |_| {}).unwrap();
        relative_error(&kept(&mut executor), &want)
    });
    assert!(host < 1e-5 && device > 1e-2, "{host}, {device}");
}

/// From -1 to 1.
fn float(random: &mut Random) -> f32 {
    random.below(1 << 20) as f32 / (1 << 19) as f32 - 1.0
}

/// An adapter that changes tables alone, or others too, in turns with none: what the oracle makes of it.
#[test]
fn adapters() {
    let dimensions = Dimensions {
        vocab: 90,
        ..small(Version::V7a)
    };
    let model = dimensions.model(Packing::F32, 7);
    let mut random = Random::new(8);
    let mut change = |weight: Weight| {
        let shape = model.weights().describe(weight).unwrap().1;
        let mut values = |count: usize| -> Vec<f32> {
            let one = |_| float(&mut random) * 0.3;
            (0..count).map(one).collect()
        };
        LowRank {
            rank: 3,
            a: values(3 * shape.cols.0).into(),
            b: values(3 * shape.rows.0).into(),
            scale: 1.5,
        }
    };
    let table = Weight::Block(1, B::FfnEmbedding);
    let mut tables = Adapter::new("tables");
    tables.add_low_rank(Weight::Embedding, change(Weight::Embedding));
    tables.add_low_rank(table, change(table));
    let mut others = Adapter::new("others");
    others.add_low_rank(Weight::Head, change(Weight::Head));
    let shape = model.weights().describe(table).unwrap().1;
    let values: Vec<f32> = (0..shape.elements().unwrap())
        .map(|_| float(&mut random))
        .collect();
    let mut whole = InMemoryWeights::default();
    let (rows, cols) = (Rows(shape.rows.0), Cols(shape.cols.0));
    whole
        .insert(table, rwkv_kernels::Format::F32, rows, cols, &values)
        .unwrap();
    let whole: Arc<dyn rwkv_sched::Weights> = Arc::new(whole);
    others.add_whole(table, &whole);
    let (tables, others) = (Arc::new(tables), Arc::new(others));
    let mut oracle = cpu(&model, SLOTS);
    let mut host = with_host_tables(&model, SLOTS, &gpus()[0].gpu, WeightsDType::F32);
    let mut split = {
        let options = LoadOptions {
            slots: SLOTS,
            weights_dtype: WeightsDType::F32,
            token_tables: TokenTables::Host,
            ..LoadOptions::default()
        };
        let device = Device::Gpu(gpus()[0].gpu.clone());
        let stages = [(0..1, Device::Cpu), (1..3, device)];
        let placement = Placement::new(3, stages).unwrap();
        SplitExecutor::new(&model, &placement, &options, &mut |_| {}).unwrap()
    };
    let tokens = random.tokens(12, 90);
    let mut seen: Vec<Vec<f32>> = Vec::new();
    for blend in [
        vec![(tables.clone(), 0.5)],
        vec![],
        vec![(others.clone(), 0.7), (tables.clone(), 1.0)],
        vec![(tables.clone(), 1.0)],
        vec![(others.clone(), 1.0)],
    ] {
        oracle.set_adapters(&blend).unwrap();
        oracle.reset(SlotId(0)).unwrap();
        let want = feed(&mut oracle, 0, &tokens, 12).concat();
        assert!(seen.iter().all(|other| relative_error(other, &want) > 0.01));
        for executor in [&mut host as &mut dyn Executor, &mut split] {
            executor.set_adapters(&blend).unwrap();
            executor.reset(SlotId(0)).unwrap();
            let got = feed(executor, 0, &tokens, 12).concat();
            let error = relative_error(&got, &want);
            assert!(error < 2e-3, "{}: {error}", executor.device());
        }
        seen.push(want);
    }
}
