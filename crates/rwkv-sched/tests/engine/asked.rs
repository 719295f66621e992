//! What an engine asks an executor that runs ahead for.

use super::{all, block_on, cpu, model, request, until, watched::as_inner};
use rwkv_sched::{
    Adapter, Batch, BlendProgress, Burst, Executor, Logits, ModelConfig, OnDrawn, Result, SlotId,
    State, WeightReads,
    engine::{Engine, EngineOptions, Policy, Request},
};
use std::sync::{Arc, Mutex};

/// What a burst held.
#[derive(Clone, Debug)]
struct Asked {
    /// Tokens of each span, and whether a token is drawn from it.
    spans: Vec<(usize, bool)>,
    sequences: usize,
    going_on: usize,
    steps: usize,
    may_stop: bool,
}

type Notes = Arc<Mutex<Vec<Asked>>>;

/// As `inner`, which says that it runs ahead.
struct Noted {
    inner: Box<dyn Executor>,
    notes: Notes,
}

impl Executor for Noted {
    as_inner!();
    fn run(&mut self, batch: &Batch) -> Result<Logits> {
        self.inner.run(batch)
    }
    fn burst(&mut self, burst: Burst<'_>, take: OnDrawn<'_>) -> Result<()> {
        let spans = burst.prompts.spans.iter();
        let spans = spans.map(|s| (s.tokens.len(), s.wanted == rwkv_sched::Wanted::Last));
        self.notes.lock().unwrap().push(Asked {
            spans: spans.collect(),
            sequences: burst.sequences.len(),
            going_on: burst.going_on,
            steps: burst.steps,
            may_stop: burst.may_stop,
        });
        self.inner.burst(burst, take)
    }
    fn runs_ahead(&self) -> bool {
        true
    }
    fn draws(&self) -> bool {
        true
    }
}

/// Runs `first` until it has made some tokens, and then all of `then`; what was asked for from then on.
fn asked_for(first: &[Request], then: &[Request]) -> Vec<Asked> {
    let notes = Notes::default();
    let noted = Noted {
        inner: cpu(&model(1), 6),
        notes: notes.clone(),
    };
    let options = EngineOptions {
        policy: Policy {
            burst_steps: 8,
            ..Policy::default()
        },
        ahead: usize::MAX,
        ..EngineOptions::default()
    };
    let engine = Engine::with_executor(Box::new(noted), options).unwrap();
    block_on(async {
        let (mut running, mut fed) = (Vec::new(), 0);
        for request in first {
            let mut session = engine.session();
            let stream = session.generate(request.clone()).await.unwrap();
            running.push((session, stream));
            // Its prompt is not asked for later.
            fed += request.prompt.len() as u64;
            until(&engine, |s| s.prompt_tokens == fed).await;
        }
        until(&engine, |s| s.tokens >= 40 * first.len() as u64).await;
        notes.lock().unwrap().clear();
        for request in then {
            let mut session = engine.session();
            let stream = session.generate(request.clone()).await.unwrap();
            assert!(!all(stream).await.is_empty());
        }
    });
    let asked = notes.lock().unwrap();
    asked
        .iter()
        .filter(|a| !a.spans.is_empty())
        .cloned()
        .collect()
}

const ENDLESS: usize = usize::MAX;

/// Whoever begins goes on in the same burst, and those at their tokens get one beside the prompt.
#[test]
fn prompts_and_tokens_are_asked_for_at_once() {
    let first = [request(&[1], ENDLESS, 1), request(&[2], ENDLESS, 2)];
    let asked = asked_for(&first, &[request(&[3; 20], 30, 3)]);
    let [asked] = &asked[..] else {
        panic!("{asked:?}");
    };
    assert_eq!(asked.spans, [(20, true), (1, true), (1, true)]);
    assert_eq!((asked.sequences, asked.going_on), (3, 3));
    assert!(asked.steps > 0 && !asked.may_stop, "{asked:?}");
}

/// Who wants the state after its prompt, or has no more than its first token, has no steps in the burst of its prompt. The others
/// have theirs.
#[test]
fn who_does_not_go_on_at_once() {
    let first = [request(&[1], ENDLESS, 1)];
    let rewinds = Request {
        rewinds: true,
        ..request(&[3; 20], 30, 3)
    };
    for one in [rewinds, request(&[3; 20], 1, 3)] {
        let asked = asked_for(&first, &[one]);
        let [asked] = &asked[..] else {
            panic!("{asked:?}");
        };
        assert_eq!(asked.spans, [(20, true), (1, true)]);
        assert_eq!((asked.sequences, asked.going_on), (2, 1));
        assert!(asked.steps > 0, "{asked:?}");
    }
}

/// States are kept to go back to only where a burst is broken off by a token: few sequences, some of which watch for one.
#[test]
fn who_may_stop() {
    let watching = |number: u32, most| Request {
        stop_tokens: vec![49],
        sampler: rwkv_sched::sampling::SamplerParams {
            logit_bias: vec![(49, f32::NEG_INFINITY)],
            ..Default::default()
        },
        ..request(&[number], most, u64::from(number))
    };
    let plain = |number: u32, most| request(&[number], most, u64::from(number));
    for (first, then, may_stop) in [
        (vec![plain(1, ENDLESS)], plain(3, 30), false),
        (vec![plain(1, ENDLESS)], watching(3, 30), true),
        (vec![watching(1, ENDLESS)], plain(3, 30), true),
        (
            vec![watching(1, ENDLESS), watching(2, ENDLESS)],
            watching(3, 30),
            false,
        ),
    ] {
        let asked = asked_for(&first, &[then]);
        assert!(!asked.is_empty());
        assert!(asked.iter().all(|a| a.may_stop == may_stop), "{asked:?}");
    }
}
