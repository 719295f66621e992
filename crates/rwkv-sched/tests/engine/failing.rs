//! An executor that fails.

use super::{VOCAB, all, alone::Alone, block_on, cpu, model, request, watched::watched};
use rwkv_sched::{
    Batch, BatchSpan, Error, Executor, TokenId, Wanted,
    engine::{Engine, EngineOptions},
};

/// Fails at every batch that has a certain token, and spoils the states of that batch.
fn failing(inner: Box<dyn Executor>, token: TokenId) -> Box<dyn Executor> {
    watched(inner, move |inner, batch| {
        let logits = inner.run(batch)?;
        let spoilt = |span: &BatchSpan| span.tokens.contains(&token);
        if !batch.spans.iter().any(spoilt) {
            return Ok(logits);
        }
        for span in &batch.spans {
            inner.run(&Batch::single(span.slot, &[1, 2, 3], Wanted::None))?;
        }
        Err(Error::Config {
            problem: "spoilt".to_owned(),
        })
    })
}

/// Those that are at fault are told; the others, whose states were lost with theirs, get what they would get alone.
#[test]
fn whose_fault_it_is() {
    const BAD: TokenId = 13;
    let model = model(1);
    let mut oracle = cpu(&model, 1);
    let executor = failing(cpu(&model, 6), BAD);
    let engine = Engine::with_executor(executor, EngineOptions::default()).unwrap();
    let ban = |token: TokenId| (token, f32::NEG_INFINITY);
    block_on(async {
        let mut good = Vec::new();
        for number in 0..4 {
            let mut asked = request(&[number, 3, 5], 60, u64::from(number));
            asked.sampler.logit_bias = vec![ban(BAD)];
            let mut session = engine.session();
            let stream = session.generate(asked.clone()).await.unwrap();
            good.push((asked, session, tokio::spawn(all(stream))));
        }
        // One with a bad prompt, one that comes to the bad token.
        let mut prompted = engine.session();
        let mut stream = prompted.generate(request(&[1, BAD], 9, 1)).await.unwrap();
        let error = stream.next().await.unwrap().unwrap_err();
        assert!(error.to_string().contains("spoilt"), "{error}");
        assert!(stream.next().await.is_none());
        let mut choosing = request(&[2], 9, 1);
        let others = (0..VOCAB as u32).filter(|token| *token != BAD);
        choosing.sampler.logit_bias = others.map(ban).collect();
        let mut chosen = engine.session();
        let mut stream = chosen.generate(choosing).await.unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap().id, BAD);
        let error = stream.next().await.unwrap().unwrap_err();
        assert!(error.to_string().contains("spoilt"), "{error}");
        for (asked, mut session, tokens) in good {
            let mut alone = Alone::default();
            let want = alone.generate(oracle.as_mut(), &asked, usize::MAX);
            assert_eq!(tokens.await.unwrap(), want);
            let state = session.save().await.unwrap();
            assert_eq!(*state, alone.state(oracle.as_mut()));
        }
        drop(stream);
        // A session that failed is where it was before.
        let asked = request(&[4], 5, 1);
        let got = all(prompted.generate(asked.clone()).await.unwrap()).await;
        let want = Alone::default().generate(oracle.as_mut(), &asked, usize::MAX);
        assert_eq!(got, want);
    });
    assert_eq!(engine.stats().failed, 2);
}
