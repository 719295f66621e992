//! An executor that fails.

use super::{
    VOCAB, all,
    alone::Alone,
    block_on, cpu, model, request, until,
    watched::{as_inner, watched},
};
use rwkv_sched::{
    Adapter, Batch, BatchSpan, BlendProgress, Burst, Error, Executor, Logits, ModelConfig, OnDrawn,
    Result, SlotId, State, TokenId, Wanted, WeightReads,
    engine::{Engine, EngineOptions, Policy, Request, Session},
};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
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

/// What a session has got, and its state, are those that it would have alone.
async fn check_alone(
    oracle: &mut dyn Executor,
    asked: &Request,
    mut session: Session,
    got: Vec<TokenId>,
) {
    let mut alone = Alone::default();
    assert_eq!(got, alone.generate(oracle, asked, usize::MAX));
    let state = session.save().await.unwrap();
    assert_eq!(*state, alone.state(oracle));
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
        for (asked, session, tokens) in good {
            check_alone(oracle.as_mut(), &asked, session, tokens.await.unwrap()).await;
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

/// Says that it runs ahead and draws; after a burst whose prompts have a certain token, all of whose tokens it has told of, it
/// spoils the states of that burst and fails.
struct FailingLate {
    inner: Box<dyn Executor>,
    token: TokenId,
    /// Failures after which others had got tokens.
    failures: Arc<AtomicUsize>,
}

impl Executor for FailingLate {
    as_inner!();
    fn run(&mut self, batch: &Batch) -> Result<Logits> {
        self.inner.run(batch)
    }
    fn burst(&mut self, burst: Burst<'_>, take: OnDrawn<'_>) -> Result<()> {
        let spans = &burst.prompts.spans;
        let fails = spans.iter().any(|span| span.tokens.contains(&self.token));
        let mut slots: Vec<SlotId> = spans.iter().map(|span| span.slot).collect();
        slots.extend(burst.sequences.iter().map(|sequence| sequence.slot));
        let others = spans.len() > 1 && burst.steps > 0;
        self.inner.burst(burst, take)?;
        if !fails {
            return Ok(());
        }
        for slot in slots {
            let spoilt = Batch::single(slot, &[1, 2, 3], Wanted::None);
            self.inner.run(&spoilt)?;
        }
        self.failures.fetch_add(usize::from(others), Relaxed);
        Err(Error::Config {
            problem: "spoilt".to_owned(),
        })
    }
    fn runs_ahead(&self) -> bool {
        true
    }
    fn draws(&self) -> bool {
        true
    }
}

/// A burst that fails after its tokens were told: the others, who had tokens in the chunk and after it, go on from those.
#[test]
fn after_tokens_were_told() {
    const BAD: TokenId = 13;
    let model = model(1);
    let mut oracle = cpu(&model, 1);
    let failures = Arc::default();
    let executor = FailingLate {
        inner: cpu(&model, 6),
        token: BAD,
        failures: Arc::clone(&failures),
    };
    let options = EngineOptions {
        policy: Policy {
            burst_steps: 4,
            ..Policy::default()
        },
        ahead: usize::MAX,
        ..EngineOptions::default()
    };
    let engine = Engine::with_executor(Box::new(executor), options).unwrap();
    block_on(async {
        let mut good = Vec::new();
        for number in 0..3 {
            let mut asked = request(&[number, 3, 5], 300, u64::from(number));
            asked.sampler.logit_bias = vec![(BAD, f32::NEG_INFINITY)];
            let mut session = engine.session();
            let stream = session.generate(asked.clone()).await.unwrap();
            good.push((asked, session, tokio::spawn(all(stream))));
        }
        until(&engine, |stats| stats.tokens > 10).await;
        let mut bad = engine.session();
        let mut stream = bad.generate(request(&[1, BAD], 900, 1)).await.unwrap();
        let error = loop {
            match stream.next().await.unwrap() {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert!(error.to_string().contains("spoilt"), "{error}");
        assert!(stream.next().await.is_none());
        for (asked, session, tokens) in good {
            check_alone(oracle.as_mut(), &asked, session, tokens.await.unwrap()).await;
        }
    });
    assert!(failures.load(Relaxed) > 0, "it failed with nobody beside");
    assert_eq!(engine.stats().failed, 1);
}

/// An executor that does not make the logits that it was asked for fails, rather than leaving anybody waiting.
#[test]
fn logits_that_are_missing() {
    let executor = watched(cpu(&model(1), 2), |inner, batch| {
        let logits = inner.run(batch)?;
        let prompt = batch.spans.iter().any(|span| span.tokens.len() > 1);
        Ok(if prompt { Logits::default() } else { logits })
    });
    let engine = Engine::with_executor(executor, EngineOptions::default()).unwrap();
    block_on(async {
        let mut session = engine.session();
        let mut stream = session.generate(request(&[1, 2, 3], 9, 1)).await.unwrap();
        let next = tokio::time::timeout(std::time::Duration::from_mins(1), stream.next()).await;
        assert!(next.unwrap().unwrap().is_err());
    });
}
