//! An engine over several devices: sessions get what they would get alone on one.

use super::{
    all,
    alone::Alone,
    block_on, cpu, dimensions, model, on_one_thread, random_request, request,
    support::{
        gpus,
        random_model::{Packing, Random},
    },
    until,
    watched::watched,
};
use rwkv_sched::{
    Device, Executor, LoadOptions, Model, Placement, ReplicatedExecutor, Share, SplitExecutor,
    Version, WeightsDType,
    engine::{Engine, EngineOptions, Policy},
    load, load_shared,
};
use std::sync::{Arc, Mutex};

const SLOTS: usize = 5;

fn options() -> LoadOptions {
    LoadOptions {
        slots: SLOTS,
        weights_dtype: WeightsDType::F32,
        deterministic: true,
        ..LoadOptions::default()
    }
}

/// Sessions that come at once, each with two requests, one after the other.
fn check(name: &str, executor: Box<dyn Executor>, oracle: &mut dyn Executor) {
    let policy = Policy {
        chunk: 24,
        chunk_beside: 12,
        ..Policy::default()
    };
    let options = EngineOptions {
        policy,
        ..EngineOptions::default()
    };
    let engine = Engine::with_executor(executor, options).unwrap();
    block_on(async {
        let mut random = Random::new(3);
        let mut running = Vec::new();
        for _ in 0..12 {
            let asked = [(); 2].map(|()| random_request(&mut random, 60, 30));
            let mut session = engine.session();
            let requests = asked.clone();
            let answers = tokio::spawn(async move {
                let mut answers = Vec::new();
                for request in requests {
                    answers.push(all(session.generate(request).await.unwrap()).await);
                }
                (answers, session)
            });
            running.push((asked, answers));
        }
        for (number, (asked, answers)) in running.into_iter().enumerate() {
            let (answers, mut session) = answers.await.unwrap();
            let mut alone = Alone::default();
            for (request, got) in asked.iter().zip(&answers) {
                let want = alone.generate(oracle, request, usize::MAX);
                assert_eq!(got, &want, "{name}, session {number}");
            }
            assert!(*session.save().await.unwrap() == alone.state(oracle));
        }
    });
    assert_eq!(engine.stats().failed, 0);
}

#[test]
fn on_the_cpu() {
    let model = model(5);
    let devices = [Device::Cpu, Device::Cpu];
    for micro_batches in [None, Some(3)] {
        let options = LoadOptions {
            micro_batches,
            ..options()
        };
        let placement = Placement::evenly(2, &devices).unwrap();
        let split = SplitExecutor::new(&model, &placement, &options, &mut |_| {}).unwrap();
        check("split", Box::new(split), cpu(&model, 1).as_mut());
    }
    let share = Some(Share::Sequences);
    let replicas = load_shared(&model, &devices, share, &options(), &mut |_| {}).unwrap();
    check("replicas", replicas, cpu(&model, 1).as_mut());
}

#[test]
fn on_gpus() {
    on_one_thread();
    let model: Model = dimensions(Version::V7).model(Packing::F32, 6);
    let devices = [0, 1].map(|number: usize| Device::Gpu(gpus()[number].gpu.clone()));
    let mut oracle = load(&model, &devices[0], &options(), &mut |_| {}).unwrap();
    for share in [Share::Layers, Share::Sequences] {
        let shared = load_shared(&model, &devices, Some(share), &options(), &mut |_| {}).unwrap();
        check(&format!("{share:?}"), shared, oracle.as_mut());
    }
}

/// Slots are taken so that the replicas have as many requests each: one after the other, each while those before it run, no
/// replica ever has more than half of them, rounded up.
#[test]
fn replicas_are_balanced() {
    let model = model(7);
    let counts: [Arc<Mutex<Vec<usize>>>; 2] = Default::default();
    let replicas = counts.clone().map(|counts| -> Box<dyn Executor> {
        watched(cpu(&model, 4), move |inner, batch| {
            counts.lock().unwrap().push(batch.spans.len());
            inner.run(batch)
        })
    });
    let executor = ReplicatedExecutor::new(replicas.into()).unwrap();
    assert_eq!((executor.slots(), executor.replicas()), (8, 2));
    let options = EngineOptions {
        ahead: usize::MAX,
        ..EngineOptions::default()
    };
    let engine = Engine::with_executor(Box::new(executor), options).unwrap();
    block_on(async {
        let mut running = Vec::new();
        for count in 1..=4 {
            // Nobody ends, or waits for a reader.
            let mut session = engine.session();
            let asked = request(&[count, 5], usize::MAX, 1);
            let stream = session.generate(asked).await.unwrap();
            until(&engine, |stats| stats.running == count as usize).await;
            running.push((session, stream));
            until(&engine, |stats| stats.prompt_tokens == 2 * u64::from(count)).await;
        }
        // All of them have got tokens at once.
        let steps = engine.stats().token_steps + 2;
        until(&engine, |stats| stats.token_steps >= steps).await;
    });
    drop(engine);
    for counts in counts {
        assert_eq!(counts.lock().unwrap().iter().max(), Some(&2));
    }
}
