//! Requests that nobody waits for any more.

use super::{
    all, alone::Alone, block_on, cpu, engine, model, random_request, request, some,
    support::random_model::Random, until, watched::watched,
};
use rwkv_sched::engine::{Engine, EngineOptions};
use std::{
    future::Future,
    pin::pin,
    sync::{Arc, Mutex},
    task::{Context, Waker},
    time::Duration,
};

/// Cancelled requests, at whatever moment, leave nothing behind; `RWKV_CANCELLED` says how many.
#[test]
fn cancelled_requests_leak_nothing() {
    let count = std::env::var("RWKV_CANCELLED").map_or(3000, |n| n.parse().unwrap());
    let options = EngineOptions {
        queue: 64,
        ..EngineOptions::default()
    };
    let engine = engine(&model(1), 4, options);
    let mut random = Random::new(3);
    let mut endless = 0;
    block_on(async {
        let mut kept = Vec::new();
        for number in 0..count {
            let mut session = engine.session();
            let mut asked = random_request(&mut random, 20, 50);
            // The others may end before they are cancelled.
            let ends = number % 10 > 0;
            if !ends {
                asked.max_tokens = usize::MAX;
                asked.stop_tokens.clear();
            }
            // While it waits to be taken in, at once, after some tokens, or later by someone else.
            let wait = Duration::from_micros(random.below(300) as u64);
            let taken = tokio::time::timeout(wait, session.generate(asked)).await;
            let Ok(stream) = taken else {
                continue;
            };
            let mut stream = stream.unwrap();
            endless += u64::from(!ends);
            match random.below(4) {
                0 => {}
                1 => drop(some(&mut stream, random.below(4)).await),
                2 => tokio::task::yield_now().await,
                _ => kept.push((session, stream)),
            }
            if kept.len() > 20 || number + 1 == count {
                kept.clear();
            }
        }
        until(&engine, |s| {
            (s.waiting, s.running, s.sessions, s.slots_used) == (0, 0, 0, 0)
        })
        .await;
        // All places in the queue are free again.
        let mut all_at_once = Vec::new();
        for _ in 0..64 {
            let mut session = engine.session();
            let stream = session.try_generate(request(&[1], 2, 0)).unwrap();
            all_at_once.push((session, stream));
        }
        for (_, stream) in all_at_once {
            assert_eq!(all(stream).await.len(), 2);
        }
        until(&engine, |s| (s.running, s.sessions) == (0, 0)).await;
    });
    let stats = engine.stats();
    assert!(endless > 0 && stats.cancelled >= endless, "{stats:?}");
    assert_eq!(
        stats.requests,
        stats.cancelled + stats.finished + stats.failed,
        "{stats:?}"
    );
}

/// The session of a stream that was dropped is where the last token that was read leaves it.
#[test]
fn a_cancelled_session_goes_on_from_what_was_read() {
    let model = model(2);
    let mut oracle = cpu(&model, 1);
    let engine = engine(&model, 2, EngineOptions::default());
    block_on(async {
        let mut session = engine.session();
        let mut alone = Alone::default();
        for read in [3, 0, 1, 20, 7] {
            let asked = request(&[read as u32, 8], 60, read as u64);
            until(&engine, |s| s.running == 0).await;
            let ahead = engine.stats().tokens + 30;
            let mut stream = session.generate(asked.clone()).await.unwrap();
            // The engine is ahead of the reader by then.
            until(&engine, |s| s.tokens >= ahead).await;
            let got = some(&mut stream, read).await;
            drop(stream);
            assert_eq!(got, alone.generate(oracle.as_mut(), &asked, read));
        }
        let state = session.save().await.unwrap();
        assert_eq!(*state, alone.state(oracle.as_mut()));
    });
}

/// A feed that is dropped has not happened.
#[test]
fn a_cancelled_feed() {
    let model = model(3);
    let mut oracle = cpu(&model, 1);
    let options = EngineOptions {
        policy: rwkv_sched::engine::Policy {
            chunk: 16,
            ..Default::default()
        },
        ..EngineOptions::default()
    };
    let gate = Arc::new(Mutex::new(()));
    let mut batches = 0;
    let executor = watched(cpu(&model, 1), {
        let gate = gate.clone();
        move |inner, batch| {
            batches += 1;
            // Those before, and some of what is dropped.
            if batches > 3 {
                drop(gate.lock().unwrap());
            }
            inner.run(batch)
        }
    });
    let engine = Engine::with_executor(executor, options).unwrap();
    let closed = gate.lock().unwrap();
    block_on(async {
        let mut session = engine.session();
        let mut alone = Alone::default();
        session.feed(&[1, 2, 3], &[]).await.unwrap();
        alone.tokens.extend([1, 2, 3]);
        {
            let long = vec![4; 5000];
            let mut fed = pin!(session.feed(&long, &[]));
            let begun = fed.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            assert!(begun.is_pending());
            until(&engine, |s| s.prompt_tokens > 3).await;
        }
        drop(closed);
        let asked = request(&[5], 10, 1);
        let got = all(session.generate(asked.clone()).await.unwrap()).await;
        assert_eq!(got, alone.generate(oracle.as_mut(), &asked, usize::MAX));
    });
}
