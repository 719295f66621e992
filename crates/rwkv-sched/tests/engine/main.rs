//! Many sessions on one executor: each gets what it would get alone, whatever happens to the others.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests fail by panicking; sizes are small"
)]

mod adapters;
mod alone;
mod asked;
mod cancelling;
mod chunks;
mod devices;
mod failing;
mod joining;
mod prefixes;
mod queue;
mod saving;
mod schedules;
mod sessions;
#[path = "../support/mod.rs"]
mod support;
mod watched;

use rwkv_sched::{
    CpuExecutor, Executor, Model, Simd, TokenId, Version,
    engine::{Engine, EngineOptions, Request, TokenStream},
    sampling::SamplerParams,
};
use std::time::Duration;
use support::random_model::{Dimensions, Packing, Random};

/// What takes longer never comes.
const LONG: Duration = Duration::from_mins(10);

const VOCAB: usize = 50;

fn dimensions(version: Version) -> Dimensions {
    Dimensions {
        version,
        layers: 2,
        heads: 2,
        head_size: 16,
        ffn: 48,
        vocab: VOCAB,
        ranks: [5, 6, 7, 8],
    }
}

/// Steps of such small models are shorter than sharing them out takes.
fn on_one_thread() {
    // Another test of this process may have done so.
    let _ = rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .build_global();
}

fn model(seed: u64) -> Model {
    on_one_thread();
    dimensions(Version::V7).model(Packing::F32, seed)
}

fn cpu(model: &Model, slots: usize) -> Box<dyn Executor> {
    Box::new(
        CpuExecutor::new(model, slots)
            .unwrap()
            .with_simd(Simd::detect()),
    )
}

fn engine(model: &Model, slots: usize, options: EngineOptions) -> Engine {
    Engine::with_executor(cpu(model, slots), options).unwrap()
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(future)
}

fn request(prompt: &[TokenId], max_tokens: usize, seed: u64) -> Request {
    Request {
        prompt: prompt.to_vec(),
        max_tokens,
        sampler: SamplerParams {
            top_p: 0.9,
            seed,
            ..SamplerParams::default()
        },
        ..Request::default()
    }
}

fn random_request(random: &mut Random, prompt: usize, tokens: usize) -> Request {
    let prompt = random.prompt(prompt, VOCAB);
    let mut request = request(&prompt, 1 + random.below(tokens), random.below(1000) as u64);
    if random.below(3) == 0 {
        request.sampler.temperature = 0.0;
    }
    if random.below(2) == 0 {
        request.stop_tokens = vec![random.below(VOCAB) as u32, random.below(VOCAB) as u32];
    }
    request.priority = [-1, 0, 1][random.below(3)];
    request
}

/// Tokens until the end.
async fn all(mut stream: TokenStream) -> Vec<TokenId> {
    let mut tokens = Vec::new();
    while let Some(token) = stream.next().await {
        let token = token.unwrap();
        assert_eq!(token.index, tokens.len());
        tokens.push(token.id);
    }
    tokens
}

/// The first `count` tokens.
async fn some(stream: &mut TokenStream, count: usize) -> Vec<TokenId> {
    let mut tokens = Vec::new();
    while tokens.len() < count {
        let Some(token) = stream.next().await else {
            break;
        };
        tokens.push(token.unwrap().id);
    }
    tokens
}

/// Waits until the engine's counts say so.
async fn until(engine: &Engine, what: impl Fn(&rwkv_sched::engine::EngineStats) -> bool) {
    let come = async {
        while !what(&engine.stats()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let came = tokio::time::timeout(LONG, come).await;
    assert!(
        came.is_ok(),
        "it did not come to that: {:?}",
        engine.stats()
    );
}
