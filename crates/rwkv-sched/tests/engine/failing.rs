//! An executor that fails.

use super::{VOCAB, all, alone::Alone, block_on, cpu, model, request};
use rwkv_sched::{
    Adapter, Batch, BlendProgress, Error, Executor, Logits, ModelConfig, Result, SlotId, State,
    TokenId, WeightReads,
    engine::{Engine, EngineOptions},
};
use std::sync::Arc;

/// Fails at every batch that has a certain token, and spoils the states of that batch.
struct Failing {
    inner: Box<dyn Executor>,
    token: TokenId,
}

impl Executor for Failing {
    fn config(&self) -> &ModelConfig {
        self.inner.config()
    }
    fn device(&self) -> &str {
        self.inner.device()
    }
    fn slots(&self) -> usize {
        self.inner.slots()
    }
    fn chunk(&self) -> usize {
        self.inner.chunk()
    }
    fn device_bytes(&self) -> u64 {
        self.inner.device_bytes()
    }
    fn blend_bytes(&self) -> u64 {
        self.inner.blend_bytes()
    }
    fn run(&mut self, batch: &Batch) -> Result<Logits> {
        let logits = self.inner.run(batch)?;
        let spoilt = |span: &rwkv_sched::BatchSpan| span.tokens.contains(&self.token);
        if !batch.spans.iter().any(spoilt) {
            return Ok(logits);
        }
        for span in &batch.spans {
            self.inner.run(&Batch::single(
                span.slot,
                &[1, 2, 3],
                rwkv_sched::Wanted::None,
            ))?;
        }
        Err(Error::Config {
            problem: "spoilt".to_owned(),
        })
    }
    fn reset(&mut self, slot: SlotId) -> Result<()> {
        self.inner.reset(slot)
    }
    fn set_initial_state(&mut self, state: Option<&State>) -> Result<()> {
        self.inner.set_initial_state(state)
    }
    fn state(&mut self, slot: SlotId) -> Result<State> {
        self.inner.state(slot)
    }
    fn set_state(&mut self, slot: SlotId, state: &State) -> Result<()> {
        self.inner.set_state(slot, state)
    }
    fn prepare_adapters(
        &mut self,
        blend: &[(Arc<Adapter>, f32)],
        tensors: usize,
    ) -> Result<BlendProgress> {
        self.inner.prepare_adapters(blend, tensors)
    }
    fn set_adapters(&mut self, blend: &[(Arc<Adapter>, f32)]) -> Result<()> {
        self.inner.set_adapters(blend)
    }
    fn weight_reads(&self) -> WeightReads {
        self.inner.weight_reads()
    }
}

/// Those that are at fault are told; the others, whose states were lost with theirs, get what they would get alone.
#[test]
fn whose_fault_it_is() {
    const BAD: TokenId = 13;
    let model = model(1);
    let mut oracle = cpu(&model, 1);
    let executor = Failing {
        inner: cpu(&model, 6),
        token: BAD,
    };
    let engine = Engine::with_executor(Box::new(executor), EngineOptions::default()).unwrap();
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
