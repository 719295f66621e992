//! Those that begin while others are at their tokens, in one burst with them.

use super::{
    all,
    alone::Alone,
    block_on, dimensions, on_one_thread, request,
    support::{
        gpus,
        random_model::{Packing, Random},
    },
    until,
};
use rwkv_sched::{
    CacheKey, Executor, GpuExecutor, LoadOptions, Model, Spacing, StateCache, StateCacheOptions,
    StateLayout, Version, WeightsDType,
    engine::{Engine, EngineOptions, Policy, PrefixCache, Request},
};
use std::sync::Arc;

fn gpu(model: &Model, slots: usize) -> Box<dyn Executor> {
    let options = LoadOptions {
        slots,
        weights_dtype: WeightsDType::F32,
        deterministic: true,
        ..LoadOptions::default()
    };
    Box::new(GpuExecutor::new(model, &gpus()[1].gpu, &options, &mut |_| {}).unwrap())
}

/// Requests that want their state before the answer, that end with their first token, and that go on, each while others do:
/// their tokens are those that each gets alone, and nobody's steps end with another's prompt.
#[test]
fn whoever_begins_beside_others() {
    on_one_thread();
    let model: Model = dimensions(Version::V7).model(Packing::F32, 9);
    let mut oracle = gpu(&model, 1);
    let options = EngineOptions {
        policy: Policy {
            chunk: 24,
            chunk_beside: 24,
            ..Policy::default()
        },
        ahead: usize::MAX,
        ..EngineOptions::default()
    };
    let engine = Engine::with_executor(gpu(&model, 6), options).unwrap();
    let mut random = Random::new(4);
    let mut asked = |number: u64, most: usize, rewinds: bool| Request {
        rewinds,
        ..request(&random.prompt(40, super::VOCAB), most, number)
    };
    block_on(async {
        let mut running = Vec::new();
        for (number, (most, rewinds)) in [
            (200, false),
            (90, true),
            (1, false),
            (1, true),
            (60, true),
            (2, true),
            (30, false),
            (50, true),
        ]
        .into_iter()
        .enumerate()
        {
            let asked = asked(number as u64, most, rewinds);
            let mut session = engine.session();
            let stream = session.generate(asked.clone()).await.unwrap();
            running.push((asked, session, tokio::spawn(all(stream))));
            if number == 0 {
                until(&engine, |stats| stats.tokens > 0).await;
            }
        }
        for (number, (asked, mut session, tokens)) in running.into_iter().enumerate() {
            let mut alone = Alone::default();
            let want = alone.generate(oracle.as_mut(), &asked, usize::MAX);
            assert_eq!(tokens.await.unwrap(), want, "session {number}");
            let state = session.save().await.unwrap();
            assert!(
                *state == alone.state(oracle.as_mut()),
                "session {number}: another state"
            );
        }
    });
    assert_eq!(engine.stats().failed, 0);
}

/// Prompts that begin alike, each while another session is at its tokens: states are kept and found though prompts end in the
/// middle of bursts, and tokens are those that each gets alone.
#[test]
fn prefixes_beside_others() {
    on_one_thread();
    let model: Model = dimensions(Version::V7).model(Packing::F32, 10);
    let mut oracle = gpu(&model, 1);
    let cache = StateCache::new(
        StateLayout::of(model.config()),
        StateCacheOptions::default(),
        None,
    );
    let options = EngineOptions {
        prefix_cache: Some(PrefixCache {
            states: Arc::new(cache),
            model: CacheKey::new(b"model"),
            spacing: Spacing {
                grain: 16,
                most: 24,
            },
        }),
        ahead: usize::MAX,
        ..EngineOptions::default()
    };
    let engine = Engine::with_executor(gpu(&model, 4), options).unwrap();
    let mut random = Random::new(6);
    let shared = random.tokens(90, super::VOCAB);
    let mut check = |asked: &Request, tokens: &[u32]| {
        let want = Alone::default().generate(oracle.as_mut(), asked, usize::MAX);
        assert_eq!(tokens, want);
    };
    block_on(async {
        let long = request(&[1, 2], 400, 1);
        let mut session = engine.session();
        let stream = session.generate(long.clone()).await.unwrap();
        let beside = tokio::spawn(all(stream));
        until(&engine, |stats| stats.tokens > 0).await;
        for number in 0..4 {
            let prompt = [&shared[..], &random.tokens(20, super::VOCAB)].concat();
            let asked = Request {
                rewinds: number % 2 == 1,
                ..request(&prompt, 12, number)
            };
            let mut session = engine.session();
            let stream = session.generate(asked.clone()).await.unwrap();
            check(&asked, &all(stream).await);
        }
        check(&long, &beside.await.unwrap());
    });
    let stats = engine.stats();
    assert_eq!((stats.cache_hits, stats.failed), (3, 0), "{stats:?}");
    assert!(stats.cached_tokens >= 3 * 64, "{stats:?}");
}
