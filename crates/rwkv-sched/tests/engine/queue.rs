//! Waiting, priorities, and stopping.

use super::{all, block_on, engine, model, request, some, until};
use rwkv_sched::{
    Error,
    engine::{EngineOptions, Policy},
};
use std::time::Duration;

#[test]
fn a_full_queue_makes_callers_wait() {
    let options = EngineOptions {
        queue: 2,
        ahead: usize::MAX,
        ..EngineOptions::default()
    };
    let engine = engine(&model(1), 1, options);
    block_on(async {
        let mut sessions: Vec<_> = (0..5).map(|_| engine.session()).collect();
        let [running, a, b, c, d] = &mut sessions[..] else {
            panic!();
        };
        let mut first = running
            .generate(request(&[1], usize::MAX, 1))
            .await
            .unwrap();
        some(&mut first, 1).await;
        // Two wait for the slot.
        let second = a.try_generate(request(&[1], 3, 1)).unwrap();
        let third = b.try_generate(request(&[1], 3, 1)).unwrap();
        let refused = c.try_generate(request(&[1], 3, 1));
        assert!(
            matches!(refused, Err(Error::QueueFull { waiting: 2 })),
            "{:?}",
            refused.err()
        );
        let mut waiting = Box::pin(d.generate(request(&[1], 3, 1)));
        let moment = Duration::from_millis(50);
        assert!(tokio::time::timeout(moment, &mut waiting).await.is_err());
        drop(first);
        let fourth = waiting.await.unwrap();
        for stream in [second, third, fourth] {
            assert_eq!(all(stream).await.len(), 3);
        }
    });
}

/// Whoever has a higher priority goes first, also before those that run, and they go on after it.
#[test]
fn priorities() {
    let options = EngineOptions {
        ahead: usize::MAX,
        policy: Policy {
            // Nobody's priority rises while it waits.
            ageing: Duration::MAX,
            ..Policy::default()
        },
        ..EngineOptions::default()
    };
    let engine = engine(&model(2), 1, options);
    block_on(async {
        let mut sessions: Vec<_> = (0..3).map(|_| engine.session()).collect();
        let [low, normal, high] = &mut sessions[..] else {
            panic!();
        };
        // Neither of these two ends.
        let mut asked = request(&[1], usize::MAX, 1);
        asked.priority = -1;
        let mut lowest = low.generate(asked.clone()).await.unwrap();
        some(&mut lowest, 1).await;
        asked.priority = 0;
        let middle = normal.generate(asked.clone()).await.unwrap();
        until(&engine, |s| s.pauses == 1).await;
        asked.priority = 1;
        asked.max_tokens = 5;
        let highest = high.generate(asked).await.unwrap();
        until(&engine, |s| s.pauses == 2).await;
        assert_eq!(all(highest).await.len(), 5);
        // The middle one has its slot again: the lowest alone waits.
        until(&engine, |s| (s.running, s.waiting, s.finished) == (1, 1, 1)).await;
        let made = engine.stats().tokens;
        until(&engine, |s| s.tokens > made + 10).await;
        assert_eq!(engine.stats().pauses, 2);
        drop(middle);
        // And then the lowest has.
        until(&engine, |s| (s.running, s.waiting) == (1, 0)).await;
        let made = engine.stats().tokens;
        until(&engine, |s| s.tokens > made + 10).await;
        assert_eq!(engine.stats().pauses, 2);
    });
}

/// With work in flight, by dropping and by asking: streams end with an error, callers that wait do too, and the
/// engine's device is free.
#[test]
fn stopping_with_work_in_flight() {
    for ask in [false, true] {
        let options = EngineOptions {
            queue: 3,
            // Whoever is not read would lose its slot, and there would be room.
            ahead: usize::MAX,
            ..EngineOptions::default()
        };
        let engine = engine(&model(3), 2, options);
        block_on(async {
            let mut streams = Vec::new();
            let mut sessions = Vec::new();
            for number in 0..5 {
                let mut session = engine.session();
                let asked = request(&[number], usize::MAX, 1);
                streams.push(session.generate(asked).await.unwrap());
                sessions.push(session);
                if number < 2 {
                    until(&engine, |s| s.running > number as usize).await;
                }
            }
            let mut late = engine.session();
            let mut later = engine.session();
            let waiting = tokio::spawn(async move {
                let asked = late.generate(request(&[1], 1, 1)).await;
                asked.err().map(|e| e.to_string())
            });
            tokio::task::yield_now().await;
            if ask {
                engine.shutdown().await;
            } else {
                drop(engine);
            }
            for mut stream in streams {
                let mut last = None;
                while let Some(token) = stream.next().await {
                    last = Some(token);
                }
                assert!(matches!(last, Some(Err(Error::Stopped))), "{last:?}");
            }
            let error = waiting.await.unwrap().unwrap();
            assert!(error.contains("stopped"), "{error}");
            let refused = later.generate(request(&[1], 1, 1)).await;
            assert!(matches!(refused, Err(Error::Stopped)));
            assert!(matches!(sessions[0].save().await, Err(Error::Stopped)));
        });
    }
}
