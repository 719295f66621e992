//! States that are asked for while others run.

use super::{alone::Alone, block_on, cpu, engine, model, request, until};
use rwkv_sched::engine::EngineOptions;
use std::time::Duration;

const LONG: usize = 1_000_000;

/// A state that is there is had at once, though another session has the only slot and does not end.
#[test]
fn what_is_there_needs_no_slot() {
    let model = model(8);
    let options = EngineOptions {
        ahead: usize::MAX,
        ..EngineOptions::default()
    };
    let engine = engine(&model, 1, options);
    let alone = Alone {
        tokens: vec![1, 2, 3],
        ..Alone::default()
    };
    let want = alone.state(cpu(&model, 1).as_mut());
    block_on(async {
        let mut session = engine.session();
        session.feed(&alone.tokens, &[]).await.unwrap();
        // In its slot, and then on the host.
        assert_eq!(*session.save().await.unwrap(), want);
        let mut other = engine.session();
        let stream = other.generate(request(&[4], LONG, 1)).await.unwrap();
        until(&engine, |stats| stats.tokens > 0).await;
        for _ in 0..2 {
            let saved = tokio::time::timeout(Duration::from_mins(1), session.save()).await;
            assert_eq!(*saved.unwrap().unwrap(), want);
        }
        let stats = engine.stats();
        assert_eq!((stats.running, stats.pauses), (1, 0));
        drop(stream);
    });
}
