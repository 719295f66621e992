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
    Executor, GpuExecutor, LoadOptions, Model, Version, WeightsDType,
    engine::{Engine, EngineOptions, Policy, Request},
};

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
            (400, false),
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
