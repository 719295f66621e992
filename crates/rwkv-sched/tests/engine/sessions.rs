//! What sessions promise, one by one.

use super::{
    LONG, VOCAB, all, alone::Alone, block_on, cpu, engine, model, random_request, request, some,
    support::random_model::Random, until, watched::watched,
};
use rwkv_sched::{
    Error, TokenId,
    engine::{End, Engine, EngineOptions, Request},
};
use std::sync::{Arc, Mutex};

/// Many more sessions than slots: states go to the host and come back, and nothing is lost.
#[test]
fn a_thousand_sessions_over_eight_slots() {
    let model = model(1);
    let mut oracle = cpu(&model, 1);
    let mut random = Random::new(7);
    let plans: Vec<[_; 2]> = (0..1000)
        .map(|_| [0; 2].map(|_| random_request(&mut random, 8, 4)))
        .collect();
    let gate = Arc::new(Mutex::new(()));
    let executor = watched(cpu(&model, 8), {
        let gate = gate.clone();
        move |inner, batch| {
            drop(gate.lock().unwrap());
            inner.run(batch)
        }
    });
    let engine = Engine::with_executor(executor, EngineOptions::default()).unwrap();
    let mut sessions: Vec<_> = plans.iter().map(|_| engine.session()).collect();
    let mut got = vec![Vec::new(); plans.len()];
    for round in 0..2 {
        // All have asked when the first step begins: slots are full as long as there are so many.
        let closed = gate.lock().unwrap();
        block_on(async {
            let mut streams = Vec::new();
            for (session, plan) in sessions.iter_mut().zip(&plans) {
                streams.push(session.generate(plan[round].clone()).await.unwrap());
            }
            drop(closed);
            for (stream, got) in streams.into_iter().zip(&mut got) {
                got.push(all(stream).await);
            }
        });
    }
    for (plan, got) in plans.iter().zip(got) {
        let mut alone = Alone::default();
        for (request, got) in plan.iter().zip(got) {
            let want = alone.generate(oracle.as_mut(), request, usize::MAX);
            assert_eq!(got, want);
        }
    }
    let stats = engine.stats();
    // Each session has had a slot, and eight have one still.
    assert!(stats.evictions >= 1000 - 8, "{stats:?}");
    assert!(stats.mean_batch() > 4.0, "{stats:?}");
    assert_eq!((stats.failed, stats.cancelled), (0, 0));
}

#[test]
fn requests_end_for_a_reason() {
    let engine = engine(&model(2), 2, EngineOptions::default());
    block_on(async {
        let mut session = engine.session();
        let mut stream = session.generate(request(&[1, 2, 3], 5, 1)).await.unwrap();
        let mut ends = Vec::new();
        let mut tokens = Vec::new();
        while let Some(token) = stream.next().await {
            let token = token.unwrap();
            ends.push(token.end);
            tokens.push(token.id);
        }
        assert_eq!(ends, [None, None, None, None, Some(End::Length)]);
        let mut session = engine.session();
        let mut stopped = request(&[1, 2, 3], 5, 1);
        stopped.stop_tokens = vec![tokens[2]];
        let mut stream = session.generate(stopped).await.unwrap();
        let first = tokens.iter().position(|t| *t == tokens[2]).unwrap();
        for (index, want) in tokens.iter().enumerate().take(first + 1) {
            let token = stream.next().await.unwrap().unwrap();
            assert_eq!(token.id, *want);
            let end = (index == first).then_some(End::Stop);
            assert_eq!(token.end, end);
        }
        assert!(stream.next().await.is_none());
    });
}

#[test]
fn what_cannot_run_is_refused() {
    let model = model(3);
    let engine = engine(&model, 2, EngineOptions::default());
    block_on(async {
        let mut session = engine.session();
        let refused = |e: Error, want: &str| {
            let text = e.to_string();
            assert!(text.contains(want) && !text.contains('\n'), "{text}");
        };
        let far = request(&[VOCAB as u32], 3, 0);
        refused(session.generate(far).await.err().unwrap(), "out of range");
        let none = request(&[1], 0, 0);
        refused(session.generate(none).await.err().unwrap(), "0 tokens");
        let mut hot = request(&[1], 3, 0);
        hot.sampler.temperature = -1.0;
        refused(session.generate(hot).await.err().unwrap(), "temperature");
        let mut biased = request(&[1], 3, 0);
        biased.sampler.logit_bias = vec![(VOCAB as u32, 1.0)];
        refused(session.generate(biased).await.err().unwrap(), "bias");
        // Nothing to go on from.
        let mut stream = session.generate(request(&[], 3, 0)).await.unwrap();
        let error = stream.next().await.unwrap().unwrap_err();
        refused(error, "prompt is empty");
        assert!(stream.next().await.is_none());
        let error = session.rollback(1).await.unwrap_err();
        refused(error, "cannot go back by 1");
        let mut state = session.save().await.unwrap().as_ref().clone();
        state.wkv.pop();
        refused(
            session.load(Arc::new(state)).await.unwrap_err(),
            "does not fit",
        );
        // One request at a time.
        let stream = session.generate(request(&[1], 400, 0)).await.unwrap();
        refused(
            session.generate(request(&[1], 1, 0)).await.err().unwrap(),
            "busy",
        );
        refused(session.fork().err().unwrap(), "busy");
        refused(session.save().await.unwrap_err(), "busy");
        drop(stream);
        let again = session.generate(request(&[1], 2, 0)).await.unwrap();
        assert_eq!(all(again).await.len(), 2);
        // All tokens ruled out: the request fails, and the next one does not.
        let mut banned = request(&[1], 3, 0);
        let ban = |token| (token, f32::NEG_INFINITY);
        banned.sampler.logit_bias = (0..VOCAB as u32).map(ban).collect();
        let mut stream = session.generate(banned).await.unwrap();
        assert!(stream.next().await.unwrap().is_err());
        drop(stream);
        let again = session.generate(request(&[1], 2, 0)).await.unwrap();
        assert_eq!(all(again).await.len(), 2);
    });
}

/// An empty prompt goes on from what the session has seen, also when all of it is in the state, and when that is the only
/// state that may be kept.
#[test]
fn going_on_without_a_prompt() {
    let model = model(4);
    let mut oracle = cpu(&model, 1);
    let few = EngineOptions {
        checkpoint_every: 100,
        checkpoints: 1,
        ..EngineOptions::default()
    };
    for (count, options) in [(3, EngineOptions::default()), (300, few)] {
        let engine = engine(&model, 1, options);
        let done = async {
            let mut session = engine.session();
            let mut alone = Alone::default();
            let tokens = Random::new(8).tokens(count, VOCAB);
            session.feed(&tokens, &[]).await.unwrap();
            alone.tokens.extend(tokens);
            for saved in [false, true] {
                if saved {
                    let state = session.save().await.unwrap();
                    assert_eq!(*state, alone.state(oracle.as_mut()));
                }
                let go_on = request(&[], 6, 3);
                let want = alone.generate(oracle.as_mut(), &go_on, usize::MAX);
                let got = all(session.generate(go_on).await.unwrap()).await;
                assert_eq!(got, want);
            }
        };
        block_on(async { tokio::time::timeout(LONG, done).await }).unwrap();
    }
}

/// Long sessions keep few states and tokens, and can go back as far as those reach.
#[test]
fn what_is_kept_is_bounded() {
    let model = model(5);
    let mut oracle = cpu(&model, 1);
    let options = EngineOptions {
        checkpoint_every: 50,
        checkpoints: 2,
        ..EngineOptions::default()
    };
    let engine = engine(&model, 1, options);
    block_on(async {
        let mut session = engine.session();
        let mut alone = Alone::default();
        let tokens = Random::new(3).tokens(1000, VOCAB);
        for part in tokens.chunks(30) {
            session.feed(part, &[]).await.unwrap();
            alone.tokens.extend(part);
        }
        let error = session.rollback(900).await.unwrap_err();
        let Error::Rollback { tokens, kept, .. } = error else {
            panic!("{error}");
        };
        assert_eq!(tokens, 1000);
        assert!((700..950).contains(&kept), "{kept}");
        session.rollback(tokens - kept).await.unwrap();
        alone.tokens.truncate(kept);
        let go_on = request(&[9], 6, 3);
        let want = alone.generate(oracle.as_mut(), &go_on, usize::MAX);
        assert_eq!(all(session.generate(go_on).await.unwrap()).await, want);
    });
}

/// A reader that does not read stops its sequence, gives its slot away, and gets the same tokens in the end.
#[test]
fn slow_readers() {
    let model = model(6);
    let mut oracle = cpu(&model, 1);
    let options = EngineOptions {
        ahead: 4,
        ..EngineOptions::default()
    };
    let engine = engine(&model, 1, options);
    block_on(async {
        let slow = request(&[1, 2], 100, 5);
        let mut session = engine.session();
        let mut stream = session.generate(slow.clone()).await.unwrap();
        until(&engine, |s| s.tokens >= 4).await;
        let quick = request(&[3, 4], 20, 6);
        let got = all(engine.session().generate(quick.clone()).await.unwrap()).await;
        let want = Alone::default().generate(oracle.as_mut(), &quick, usize::MAX);
        assert_eq!(got, want);
        // What was made ahead of the slow one, and the other's.
        until(&engine, |s| s.tokens >= 24).await;
        let stats = engine.stats();
        assert_eq!(stats.tokens, 24, "{stats:?}");
        assert_eq!(stats.pauses, 1, "{stats:?}");
        let got = some(&mut stream, 200).await;
        let want = Alone::default().generate(oracle.as_mut(), &slow, usize::MAX);
        assert_eq!(got, want);
    });
}

/// A stream that is dropped when more was made than was read: what the session goes on from is the state before the answer where
/// it was said that this may happen, and tokens are those that it would have made in any case.
#[test]
fn no_more_than_the_answer_is_fed_again() {
    let model = model(5);
    let prompt: Vec<TokenId> = (0..60).map(|n| n % VOCAB as u32).collect();
    let run = |rewinds: bool| {
        let engine = engine(&model, 1, EngineOptions::default());
        block_on(async {
            let mut session = engine.session();
            let first = Request {
                rewinds,
                ..request(&prompt, 40, 1)
            };
            let mut stream = session.generate(first).await.unwrap();
            until(&engine, |stats| stats.tokens >= 10).await;
            let read = some(&mut stream, 3).await;
            drop(stream);
            let before = engine.stats().prompt_tokens;
            let again = session.generate(request(&[7, 8], 4, 2)).await.unwrap();
            let tokens = all(again).await;
            (read, tokens, engine.stats().prompt_tokens - before)
        })
    };
    let (kept, anew) = (run(true), run(false));
    assert_eq!((&kept.0, &kept.1), (&anew.0, &anew.1));
    assert_eq!((kept.2, anew.2), (5, 65));
}
