//! How often a step was recorded before it was asked for, under requests that come steadily, in bursts and by chance; and how often
//! a fixed pattern of two, one and no steps ahead would have had it: the one that web-rwkv's runtime has, replayed on the
//! steps that were run.
//!
//! On the adapter that `RWKV_DEVICE` names, or the best one: `cargo bench --bench prepared_steps`.
#![allow(clippy::print_stdout, reason = "a table is its result")]

use rwkv_benches::{spec_v7, synthetic};
use rwkv_sched::{
    Device, LoadOptions,
    engine::{Engine, EngineOptions, Request},
    sampling::uniform,
};
use std::{
    collections::VecDeque,
    error::Error,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tracing::{
    Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id},
};
use tracing_subscriber::{Layer, layer::Context, prelude::*};

const SLOTS: usize = 16;

/// A request: seconds after the one before, and the tokens of its prompt and its answer.
struct Arrival {
    after: f64,
    prompt: usize,
    tokens: usize,
}

/// Numbers between 0 and 1, the same ones each time.
fn draws(seed: u64) -> impl FnMut() -> f64 {
    let mut draws = (0u64..).map(move |step| f64::from(uniform(seed, step)));
    move || draws.next().unwrap_or(0.5)
}

fn length(mean: f64, draw: f64) -> usize {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "small and positive"
    )]
    let length = (mean * (0.5 + draw)) as usize;
    length.max(1)
}

/// One after the other in all slots, each for long.
fn steady() -> Vec<Arrival> {
    let arrival = |_| Arrival {
        after: 0.0,
        prompt: 64,
        tokens: 96,
    };
    (0..8 * SLOTS).map(arrival).collect()
}

/// Eight at once, now and then.
fn bursty() -> Vec<Arrival> {
    let mut draw = draws(1);
    let arrival = |number: usize| Arrival {
        after: if number.is_multiple_of(8) { 0.5 } else { 0.0 },
        prompt: length(96.0, draw()),
        tokens: 32,
    };
    (0..400).map(arrival).collect()
}

/// Of any length, at any time.
fn ragged() -> Vec<Arrival> {
    let mut draw = draws(2);
    let arrival = |_| Arrival {
        after: -(1.0 - draw()).ln() * 0.1,
        prompt: length(80.0, draw()),
        tokens: length(40.0, draw()),
    };
    (0..400).map(arrival).collect()
}

/// What steps must agree in: sequences and tokens.
type Step = (u64, u64);

/// Notes the engine's steps as it tells of them.
#[derive(Clone, Default)]
struct Steps(Arc<Mutex<Vec<Step>>>);

#[derive(Default)]
struct Fields {
    sequences: u64,
    tokens: Option<u64>,
}

impl Visit for Fields {
    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}

    fn record_u64(&mut self, field: &Field, value: u64) {
        match field.name() {
            "sequences" => self.sequences = value,
            "tokens" => self.tokens = Some(value),
            _ => {}
        }
    }
}

impl<S: Subscriber> Layer<S> for Steps {
    fn on_new_span(&self, attributes: &Attributes<'_>, _: &Id, _: Context<'_, S>) {
        let metadata = attributes.metadata();
        let (steps, prompts) = (metadata.name() == "tokens", metadata.name() == "prompts");
        if !metadata.target().starts_with("rwkv_sched::engine") || !(steps || prompts) {
            return;
        }
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        let step = (fields.sequences, fields.tokens.unwrap_or(fields.sequences));
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(step);
    }
}

impl Steps {
    fn take(&self) -> Vec<Step> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Of `steps`, those that the fixed pattern has prepared: from a step on it expects that each sequence gets one token more, prepares
/// the next two, then one, then none, and drops what came before a step that is asked for, or everything.
fn fixed_pattern(steps: &[Step]) -> usize {
    let mut hits = 0;
    let mut prepared: VecDeque<Step> = VecDeque::new();
    let mut expected: Option<Step> = None;
    let mut ahead = 0;
    for &(sequences, tokens) in steps {
        let step = (sequences, tokens);
        let there = prepared.iter().position(|known| *known == step);
        prepared.drain(..there.unwrap_or(prepared.len()));
        ahead = match ahead {
            0 => 2,
            more => more - 1,
        };
        let Some(next) = expected.filter(|_| there.is_some()) else {
            // The step itself is the first of the two.
            ahead = 2;
            expected = Some((sequences, sequences));
            prepared = [(sequences, sequences)].into();
            continue;
        };
        hits += 1;
        prepared.pop_front();
        prepared.extend(std::iter::repeat_n(next, ahead));
    }
    hits
}

async fn replay(engine: &Engine, arrivals: Vec<Arrival>) -> Result<(), Box<dyn Error>> {
    let mut running = Vec::new();
    for (number, arrival) in (0u64..).zip(arrivals) {
        tokio::time::sleep(Duration::from_secs_f64(arrival.after)).await;
        let mut session = engine.session();
        let mut draw = draws(number + 100);
        let vocab = engine.config().vocab as f64;
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "below the vocabulary"
        )]
        let token = |_| (draw() * vocab) as u32;
        let request = Request {
            prompt: (0..arrival.prompt).map(token).collect(),
            max_tokens: arrival.tokens,
            ..Request::default()
        };
        let mut stream = session.generate(request).await?;
        running.push(tokio::spawn(async move {
            let _session = session;
            while let Some(token) = stream.next().await {
                token?;
            }
            Ok::<(), rwkv_sched::Error>(())
        }));
    }
    for task in running {
        task.await??;
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let steps = Steps::default();
    tracing_subscriber::registry()
        .with(steps.clone())
        .try_init()?;
    let named = std::env::var("RWKV_DEVICE").unwrap_or_else(|_| "auto".to_owned());
    let device = Device::open(&named)?.device;
    let model = synthetic(&spec_v7("2x64", 256)?)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()?;
    println!("traffic    steps  plans there  prepared  fixed pattern");
    let all = [
        ("steady", steady()),
        ("bursts", bursty()),
        ("ragged", ragged()),
    ];
    for (name, arrivals) in all {
        let load = LoadOptions {
            slots: SLOTS,
            ..LoadOptions::default()
        };
        let executor = rwkv_sched::load(&model, &device, &load, &mut |_| {})?;
        let engine = Engine::with_executor(executor, EngineOptions::default())?;
        runtime.block_on(replay(&engine, arrivals))?;
        let (steps, stats) = (steps.take(), engine.stats().executor);
        let percent = |rate: Option<f64>| format!("{:.1} %", rate.unwrap_or(0.0) * 100.0);
        let fixed = fixed_pattern(&steps) as f64 / steps.len().max(1) as f64;
        println!(
            "{name:<8} {:>7} {:>12} {:>9} {:>14}",
            steps.len(),
            percent(stats.plans.rate()),
            percent(stats.prepared.rate()),
            percent(Some(fixed)),
        );
    }
    Ok(())
}
