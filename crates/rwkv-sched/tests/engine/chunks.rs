//! How much of a prompt a step has.

use super::{
    all, alone::Alone, block_on, cpu, model, request, support::random_model::Random,
    watched::as_inner,
};
use rwkv_sched::{
    Adapter, Batch, BlendProgress, Executor, Logits, ModelConfig, Result, SlotId, State,
    WeightReads,
    engine::{Engine, EngineOptions},
};
use std::sync::{Arc, Mutex};

/// As `inner`, which takes chunks of `chunk` tokens until it has taken one, and then of half as many.
struct Shrinking {
    inner: Box<dyn Executor>,
    chunk: usize,
    taken: Arc<Mutex<Vec<usize>>>,
}

impl Executor for Shrinking {
    as_inner!(but chunk);
    fn chunk(&self) -> usize {
        self.chunk
    }
    fn run(&mut self, batch: &Batch) -> Result<Logits> {
        if batch.tokens() > 1 {
            self.taken.lock().unwrap().push(batch.tokens());
            self.chunk = (self.chunk / 2).max(8);
        }
        self.inner.run(batch)
    }
}

/// An executor may take shorter chunks than it did when the engine began.
#[test]
fn they_suit_the_executor_all_the_time() {
    let model = model(4);
    let taken = Arc::default();
    let executor = Shrinking {
        inner: cpu(&model, 2),
        chunk: 64,
        taken: Arc::clone(&taken),
    };
    let engine = Engine::with_executor(Box::new(executor), EngineOptions::default()).unwrap();
    let prompt = Random::new(2).tokens(150, super::VOCAB);
    let asked = request(&prompt, 5, 1);
    let got = block_on(async {
        let mut session = engine.session();
        all(session.generate(asked.clone()).await.unwrap()).await
    });
    let want = Alone::default().generate(cpu(&model, 1).as_mut(), &asked, usize::MAX);
    assert_eq!(got, want);
    let taken = taken.lock().unwrap();
    assert_eq!(taken[..4], [64, 32, 16, 8]);
    assert!(taken[4..].iter().all(|tokens| *tokens <= 8), "{taken:?}");
}
