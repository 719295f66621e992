//! Sessions with different adapters on one executor.

use super::{
    VOCAB, all,
    alone::Alone,
    block_on, cpu, engine, model, request,
    support::{
        gpus,
        random_model::{Packing, Random},
    },
};
use rwkv_sched::{
    Adapter, Batch, BlockWeight as B, Error, Executor, GpuExecutor, LoadOptions, LowRank, Model,
    SlotId, Version, Wanted, Weight, WeightsDType,
    engine::{Engine, EngineOptions, Request},
    sampling::Sampler,
};
use std::sync::Arc;

type Blend = Vec<(Arc<Adapter>, f32)>;

/// Changes some matrices by much.
pub(crate) fn adapter(model: &Model, seed: u64) -> Adapter {
    let mut random = Random::new(seed);
    let mut adapter = Adapter::new(format!("adapter {seed}"));
    for weight in [B::AttKey, B::AttOutput, B::FfnKey].map(|w| Weight::Block(1, w)) {
        let shape = model.weights().matrix(weight).unwrap().shape();
        let mut values = |count: usize| -> Vec<f32> {
            let value = |_| random.below(1000) as f32 / 1000.0 - 0.5;
            (0..count).map(value).collect()
        };
        let rank = 3;
        let change = LowRank {
            rank,
            a: values(rank * shape.cols.0).into(),
            b: values(rank * shape.rows.0).into(),
            scale: 1.0,
        };
        adapter.add_low_rank(weight, change);
    }
    adapter
}

fn blends(model: &Model) -> Vec<Blend> {
    let [a, b] = [1, 2].map(|seed| Arc::new(adapter(model, seed)));
    vec![
        vec![],
        vec![(a.clone(), 1.0)],
        vec![(b.clone(), 0.5)],
        vec![(a, 0.7), (b, 0.3)],
    ]
}

fn check(executor: Box<dyn Executor>, oracle: &mut dyn Executor, model: &Model) {
    let blends = blends(model);
    let engine = Engine::with_executor(executor, EngineOptions::default()).unwrap();
    let asked = |number: usize| {
        let mut random = Random::new(number as u64);
        let mut asked = request(&random.prompt(30, VOCAB), 12, number as u64);
        asked.adapters.clone_from(&blends[number % blends.len()]);
        asked
    };
    let got = block_on(async {
        let mut tasks = Vec::new();
        for number in 0..16 {
            let mut session = engine.session();
            // The second request may have another blend.
            let requests = [asked(number), asked(number * 3 + 1)];
            tasks.push(tokio::spawn(async move {
                let mut tokens = Vec::new();
                for request in requests {
                    tokens.push(all(session.generate(request).await.unwrap()).await);
                }
                tokens
            }));
        }
        let mut got = Vec::new();
        for task in tasks {
            got.push(task.await.unwrap());
        }
        got
    });
    let mut differ = false;
    for (number, got) in got.iter().enumerate() {
        let [first, second] = [asked(number), asked(number * 3 + 1)];
        oracle.set_adapters(&first.adapters).unwrap();
        let mut alone = Alone::default();
        assert_eq!(got[0], alone.generate(oracle, &first, usize::MAX));
        // What was fed with one blend stays as that has left it.
        let state = alone.state(oracle);
        oracle.set_adapters(&second.adapters).unwrap();
        let mut on = Alone {
            base: Some(state),
            tokens: Vec::new(),
        };
        assert_eq!(got[1], on.generate(oracle, &second, usize::MAX), "{number}");
        oracle.set_adapters(&[]).unwrap();
        differ |= got[0] != Alone::default().generate(oracle, &first, usize::MAX);
    }
    assert!(differ, "the adapters change something");
    let stats = engine.stats();
    assert!(stats.blend_switches >= 4, "{stats:?}");
}

#[test]
fn each_session_has_its_own() {
    let model = model(1);
    check(cpu(&model, 5), cpu(&model, 1).as_mut(), &model);
}

#[test]
fn each_session_has_its_own_on_a_gpu() {
    let model = super::dimensions(Version::V7).model(Packing::F16, 2);
    let load = |slots| {
        let options = LoadOptions {
            slots,
            weights_dtype: WeightsDType::F16,
            deterministic: true,
            ..LoadOptions::default()
        };
        GpuExecutor::new(&model, &gpus()[1].gpu, &options, &mut |_| {}).unwrap()
    };
    check(Box::new(load(5)), &mut load(1), &model);
}

/// A request without a prompt begins with what the last token before it says, by the blend that one was made with, and feeds its
/// own tokens by its own.
#[test]
fn going_on_with_another_blend() {
    let model = model(1);
    let blends = blends(&model);
    let engine = engine(&model, 2, EngineOptions::default());
    let asked = |prompt: &[u32], blend: usize| Request {
        adapters: blends[blend].clone(),
        ..request(prompt, 12, 7)
    };
    let (first, then) = (asked(&[3; 9], 1), asked(&[], 2));
    let (said, got) = block_on(async {
        let mut session = engine.session();
        let said = all(session.generate(first.clone()).await.unwrap()).await;
        let got = all(session.generate(then.clone()).await.unwrap()).await;
        (said, got)
    });
    let mut oracle = cpu(&model, 1);
    let tokens = [&first.prompt[..], &said].concat();
    let mut going_on = |blend: usize| {
        oracle.set_adapters(&blends[1]).unwrap();
        oracle.reset(SlotId(0)).unwrap();
        let mut sampler = Sampler::new(then.sampler.clone()).unwrap();
        let mut fed = tokens.clone();
        let mut made = Vec::new();
        while made.len() < then.max_tokens {
            let batch = Batch::single(SlotId(0), &fed, Wanted::Last);
            let logits = oracle.run(&batch).unwrap();
            let token = sampler.sample(logits.last().unwrap()).unwrap();
            sampler.accept(token, true);
            made.push(token);
            fed = vec![token];
            oracle.set_adapters(&blends[blend]).unwrap();
        }
        made
    };
    assert_eq!(got, going_on(2));
    assert_ne!(got, going_on(1), "the blends differ in what they say");
}

/// An adapter of another model fails the requests that name it, and no others.
#[test]
fn an_adapter_that_does_not_fit() {
    let model = model(3);
    let mut wrong = Adapter::new("wrong");
    let change = LowRank {
        rank: 1,
        a: vec![1.0; 3].into(),
        b: vec![1.0; 3].into(),
        scale: 1.0,
    };
    wrong.add_low_rank(Weight::Head, change);
    let engine = engine(&model, 2, EngineOptions::default());
    block_on(async {
        let mut good = engine.session();
        let fine = good.generate(request(&[1, 2], 100, 1)).await.unwrap();
        let mut bad = engine.session();
        let mut asked = request(&[1, 2], 100, 1);
        asked.adapters = vec![(Arc::new(wrong), 1.0)];
        let mut stream = bad.generate(asked).await.unwrap();
        let error = stream.next().await.unwrap().unwrap_err();
        assert!(matches!(error, Error::Step(_)), "{error}");
        assert!(error.to_string().contains("adapter wrong"), "{error}");
        assert_eq!(all(fine).await.len(), 100);
        let mut asked = request(&[1], 1, 1);
        asked.adapters = vec![(Arc::new(adapter(&model, 1)), f32::NAN)];
        let refused = good.generate(asked).await.err().unwrap();
        assert!(refused.to_string().contains("finite"), "{refused}");
        let again = bad.generate(request(&[1], 2, 1)).await.unwrap();
        assert_eq!(all(again).await.len(), 2);
    });
}
