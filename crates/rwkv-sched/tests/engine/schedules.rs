//! Random schedules of sessions that join, leave, fork, go back, are saved and loaded.

use super::{
    VOCAB, all,
    alone::{Alone, once_in},
    block_on, dimensions, on_one_thread, random_request, some,
    support::{
        gpus, proptest_config,
        random_model::{Packing, Random},
    },
};
use proptest::{prelude::*, test_runner::TestRunner};
use rwkv_sched::{
    CpuExecutor, Executor, GpuExecutor, LoadOptions, Model, State, TokenId, Version, WeightsDType,
    engine::{Engine, EngineOptions, Policy, Request, Session},
};
use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

/// What a session does.
#[derive(Clone, Debug)]
enum Deed {
    /// Generates, and reads so many tokens at most.
    Generate(Request, usize),
    Feed(Vec<TokenId>),
    /// Goes back by a share, in percent, of its tokens.
    Back(usize),
    Save,
    /// Begins with what was saved last, if anything was.
    Load,
    /// Another session goes on from here and does this.
    Fork(Vec<Deed>),
    Pause(Duration),
}

fn deeds(random: &mut Random, count: usize, forks: bool) -> Vec<Deed> {
    let mut deeds = Vec::new();
    for _ in 0..count {
        let deed = match random.below(12) {
            0 => Deed::Feed(random.prompt(30, VOCAB)),
            1 => Deed::Back(random.below(101)),
            2 => Deed::Save,
            3 => Deed::Load,
            4 if forks => Deed::Fork(super::schedules::deeds(random, 2, false)),
            5 => Deed::Pause(Duration::from_micros(random.below(3000) as u64)),
            _ => {
                let request = Request {
                    rewinds: once_in(random, 3),
                    ..random_request(random, 40, 16)
                };
                let seen = if once_in(random, 3) {
                    random.below(request.max_tokens)
                } else {
                    usize::MAX
                };
                Deed::Generate(request, seen)
            }
        };
        deeds.push(deed);
    }
    deeds
}

/// What came of it: tokens read, and states saved.
#[derive(Clone, Debug, Default, PartialEq)]
struct Outcome {
    tokens: Vec<Vec<TokenId>>,
    states: Vec<Arc<State>>,
    forks: Vec<Outcome>,
}

/// By an engine.
fn together(
    mut session: Session,
    deeds: Vec<Deed>,
    mut length: usize,
) -> Pin<Box<dyn Future<Output = Outcome> + Send>> {
    Box::pin(async move {
        let mut outcome = Outcome::default();
        let mut forks = Vec::new();
        for deed in deeds {
            match deed {
                Deed::Generate(request, seen) => {
                    let prompt = request.prompt.len();
                    let mut stream = session.generate(request).await.unwrap();
                    let tokens = if seen == usize::MAX {
                        all(stream).await
                    } else {
                        let tokens = some(&mut stream, seen).await;
                        tokio::task::yield_now().await;
                        tokens
                    };
                    if !tokens.is_empty() {
                        length += prompt + tokens.len();
                    }
                    outcome.tokens.push(tokens);
                }
                Deed::Feed(tokens) => {
                    session.feed(&tokens, &[]).await.unwrap();
                    length += tokens.len();
                }
                Deed::Back(share) => {
                    let back = length * share / 100;
                    session.rollback(back).await.unwrap();
                    length -= back;
                }
                Deed::Save => outcome.states.push(session.save().await.unwrap()),
                Deed::Load => {
                    if let Some(state) = outcome.states.last() {
                        session.load(state.clone()).await.unwrap();
                        length = 0;
                    }
                }
                Deed::Fork(deeds) => {
                    let fork = together(session.fork().unwrap(), deeds, length);
                    forks.push(tokio::spawn(fork));
                }
                Deed::Pause(time) => tokio::time::sleep(time).await,
            }
        }
        for fork in forks {
            outcome.forks.push(fork.await.unwrap());
        }
        outcome
    })
}

/// Each session after the other, on an executor of its own.
fn one_by_one(executor: &mut dyn Executor, mut session: Alone, deeds: &[Deed]) -> Outcome {
    let mut outcome = Outcome::default();
    for deed in deeds {
        match deed {
            Deed::Generate(request, seen) => {
                let tokens = session.generate(executor, request, *seen);
                outcome.tokens.push(tokens);
            }
            Deed::Feed(tokens) => session.tokens.extend(tokens),
            Deed::Back(share) => {
                let back = session.tokens.len() * share / 100;
                let left = session.tokens.len() - back;
                session.tokens.truncate(left);
            }
            Deed::Save => outcome.states.push(Arc::new(session.state(executor))),
            Deed::Load => {
                if let Some(state) = outcome.states.last() {
                    session = Alone {
                        base: Some(state.as_ref().clone()),
                        tokens: Vec::new(),
                    };
                }
            }
            Deed::Fork(deeds) => {
                let fork = one_by_one(executor, session.clone(), deeds);
                outcome.forks.push(fork);
            }
            Deed::Pause(_) => {}
        }
    }
    outcome
}

fn check(
    executor: Box<dyn Executor>,
    oracle: &mut dyn Executor,
    sessions: usize,
    seed: u64,
) -> Result<(), TestCaseError> {
    let mut random = Random::new(seed);
    let plans: Vec<Vec<Deed>> = (0..sessions)
        .map(|_| {
            let count = 1 + random.below(5);
            deeds(&mut random, count, true)
        })
        .collect();
    let options = EngineOptions {
        policy: Policy {
            chunk: 1 + random.below(64),
            chunk_beside: 1 + random.below(32),
            ageing: Duration::from_millis(1 + random.below(50) as u64),
            burst_steps: 1 + random.below(20),
            ..Policy::default()
        },
        queue: 1 + random.below(sessions),
        ahead: 1 + random.below(20),
        // More than the longest session has, so that it can go back to its beginning.
        checkpoints: 1000,
        checkpoint_every: 1 + random.below(200),
        ..EngineOptions::default()
    };
    let engine = Engine::with_executor(executor, options).unwrap();
    let got = block_on(async {
        let tasks: Vec<_> = plans
            .iter()
            .map(|plan| tokio::spawn(together(engine.session(), plan.clone(), 0)))
            .collect();
        let mut outcomes = Vec::new();
        for task in tasks {
            outcomes.push(task.await.unwrap());
        }
        engine.shutdown().await;
        outcomes
    });
    for (number, (plan, got)) in plans.iter().zip(got).enumerate() {
        let want = one_by_one(oracle, Alone::default(), plan);
        prop_assert!(
            got.tokens == want.tokens,
            "session {number}: {:?} is not {:?}, of {plan:?}",
            got.tokens,
            want.tokens
        );
        prop_assert!(got == want, "session {number}, of {plan:?}");
    }
    Ok(())
}

fn models(version: Version, seed: u64) -> Model {
    on_one_thread();
    dimensions(version).model(Packing::F16, seed)
}

#[test]
fn sessions_get_what_they_would_get_alone() {
    let strategy = (
        prop::sample::select(vec![Version::V7, Version::V6, Version::V5_2, Version::V4]),
        1..12usize,
        any::<u64>(),
    );
    let outcome = TestRunner::new(proptest_config(3)).run(&strategy, |(version, slots, seed)| {
        let model = models(version, seed);
        let executor = Box::new(CpuExecutor::new(&model, slots).unwrap());
        let mut oracle = CpuExecutor::new(&model, 1).unwrap();
        check(executor, &mut oracle, 64, seed)
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}

/// In deterministic mode, on an adapter: it runs ahead of those who read, and is undone.
#[test]
fn sessions_get_what_they_would_get_alone_on_a_gpu() {
    let strategy = (2..6usize, any::<u64>());
    let outcome = TestRunner::new(proptest_config(1)).run(&strategy, |(slots, seed)| {
        let model = models(Version::V7, seed);
        let load = |slots| {
            let options = LoadOptions {
                slots,
                weights_dtype: WeightsDType::F16,
                deterministic: true,
                ..LoadOptions::default()
            };
            GpuExecutor::new(&model, &gpus()[1].gpu, &options, &mut |_| {}).unwrap()
        };
        check(Box::new(load(slots)), &mut load(1), 24, seed)
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}
