//! `bench --serve-trace`: an engine under requests that come when they come.

use super::{
    arrivals::{self, Arrival, Synthetic},
    measure::Interrupted,
    model, show,
};
use crate::{
    args::{BenchArgs, TraceArg},
    interrupt::Interrupt,
    open,
};
use anyhow::Result;
use rwkv_sched::{
    TokenId,
    engine::{Engine, EngineOptions, EngineStats, Request},
    sampling::{SamplerParams, uniform},
};
use serde::Serialize;
use std::{
    fmt::Write,
    time::{Duration, Instant},
};

/// How often Ctrl-C is looked for.
const LOOK: Duration = Duration::from_millis(100);

/// What came of a trace. What was not measured is `null`.
#[derive(Serialize)]
struct Report {
    program: &'static str,
    debug_build: bool,
    model: String,
    device: String,
    slots: usize,
    requests: usize,
    /// Requests a second, as they came.
    rate: f64,
    seconds: f64,
    /// Generated, a second.
    tokens_per_second: f64,
    /// Of prompts, a second.
    prompt_tokens_per_second: f64,
    /// In milliseconds: from a request's arrival to its first token, and from then on from token to token.
    first_token_ms: Percentiles,
    between_tokens_ms: Percentiles,
    /// Sequences of a step, on average.
    mean_batch: f64,
    token_steps: u64,
    chunks: u64,
    evictions: u64,
    pauses: u64,
    /// Share of the time that steps took, by the host's clock.
    in_steps: f64,
    /// By the GPU's clock, where that was asked for.
    gpu_busy: Option<f64>,
    /// Of lookups of plans.
    plan_hit_rate: Option<f64>,
    /// Of steps, or bursts of them, those that were recorded before they were asked for.
    prepared_rate: Option<f64>,
}

/// Of how long something took.
#[derive(Clone, Copy, Serialize)]
struct Percentiles {
    median: f64,
    p90: f64,
    p99: f64,
    max: f64,
}

impl Percentiles {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let at = |percent: usize| {
            let place = (times.len() * percent).div_ceil(100).saturating_sub(1);
            times.get(place).map_or(0.0, |t| t.as_secs_f64() * 1e3)
        };
        Self {
            median: at(50),
            p90: at(90),
            p99: at(99),
            max: at(100),
        }
    }
}

/// Replays the trace.
pub(super) fn run(args: &BenchArgs, trace: &TraceArg, interrupt: &Interrupt) -> Result<()> {
    let arrivals = match trace {
        TraceArg::File(path) => arrivals::read(path)?,
        TraceArg::Synthetic => Synthetic {
            requests: args.requests,
            rate: args.rate,
            burst: args.burst,
            prompt: args.prefill.max(1),
            tokens: args.decode.max(1),
        }
        .arrivals(),
    };
    let (name, model) = model(args)?;
    let devices = open::devices(&args.device)?;
    let slots = args.batch.iter().copied().max().unwrap_or(1) as usize;
    let executor = open::load_model(&model, &devices, &args.device, slots)?;
    let options = EngineOptions {
        queue: arrivals.len(),
        ahead: usize::MAX,
        gpu_clock: args.profile.is_some(),
        ..EngineOptions::default()
    };
    let engine = Engine::with_executor(executor, options)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()?;
    let (before, (seconds, fared)) = runtime.block_on(async {
        // Kernels and clocks.
        let warm = arrivals.iter().take(slots);
        let warm = warm.map(|a| Arrival { at: 0.0, ..*a }).collect();
        replay(&engine, warm, interrupt).await?;
        let before = engine.stats();
        let fared = replay(&engine, arrivals.clone(), interrupt).await?;
        anyhow::Ok((before, fared))
    })?;
    let report = report(&engine, name, &arrivals, seconds, &fared, &before);
    show(args, &report, text)
}

/// When each token of a request came, from its arrival on.
type Fared = Vec<Duration>;

/// Sends each request when its time has come, and waits for all; the seconds that took.
async fn replay(
    engine: &Engine,
    arrivals: Vec<Arrival>,
    interrupt: &Interrupt,
) -> Result<(f64, Vec<Fared>)> {
    let begun = Instant::now();
    let vocab = engine.config().vocab;
    let mut tasks = Vec::new();
    for (number, arrival) in (0u64..).zip(arrivals) {
        let mut session = engine.session();
        tasks.push(tokio::spawn(async move {
            let at = begun + Duration::from_secs_f64(arrival.at);
            tokio::time::sleep_until(at.into()).await;
            let request = Request {
                prompt: prompt(number, arrival.prompt, vocab),
                max_tokens: arrival.tokens as usize,
                sampler: SamplerParams {
                    seed: number,
                    ..SamplerParams::default()
                },
                ..Request::default()
            };
            let mut stream = session.generate(request).await?;
            let mut times = Vec::new();
            while let Some(token) = stream.next().await {
                token?;
                times.push(at.elapsed());
            }
            anyhow::Ok(times)
        }));
    }
    let mut fared = Vec::new();
    for mut task in tasks {
        let times = loop {
            if interrupt.pressed() {
                return Err(Interrupted.into());
            }
            if let Ok(times) = tokio::time::timeout(LOOK, &mut task).await {
                break times;
            }
        };
        fared.push(times??);
    }
    Ok((begun.elapsed().as_secs_f64(), fared))
}

/// A prompt that no other one begins like.
fn prompt(number: u64, tokens: u32, vocab: usize) -> Vec<TokenId> {
    #[allow(
        clippy::cast_possible_truncation,
        reason = "below the vocabulary, which has 32 bits"
    )]
    let token = |step: u32| (f64::from(uniform(number, u64::from(step))) * vocab as f64) as u32;
    (0..tokens).map(token).collect()
}

fn report(
    engine: &Engine,
    model: String,
    arrivals: &[Arrival],
    seconds: f64,
    fared: &[Fared],
    before: &EngineStats,
) -> Report {
    let stats = engine.stats();
    let tokens: usize = fared.iter().map(Vec::len).sum();
    let prompts: u64 = arrivals.iter().map(|a| u64::from(a.prompt)).sum();
    let last = arrivals.last().map_or(0.0, |a| a.at);
    let first = fared.iter().filter_map(|times| times.first().copied());
    let between = fared.iter().flat_map(|times| times.windows(2));
    let between = between.filter_map(|pair| Some(pair.last()?.saturating_sub(*pair.first()?)));
    let steps = stats.token_steps - before.token_steps;
    let executor = stats.executor.since(&before.executor);
    let share = |time: Duration| time.as_secs_f64() / seconds;
    let gpu_time = stats.gpu_time.saturating_sub(before.gpu_time);
    Report {
        program: concat!("rwkv-cli ", env!("CARGO_PKG_VERSION")),
        debug_build: cfg!(debug_assertions),
        model,
        device: engine.device().to_owned(),
        slots: engine.slots(),
        requests: arrivals.len(),
        rate: if last > 0.0 {
            arrivals.len() as f64 / last
        } else {
            0.0
        },
        seconds,
        tokens_per_second: tokens as f64 / seconds,
        prompt_tokens_per_second: prompts as f64 / seconds,
        first_token_ms: Percentiles::of(first.collect()),
        between_tokens_ms: Percentiles::of(between.collect()),
        mean_batch: (stats.batched - before.batched) as f64 / steps.max(1) as f64,
        token_steps: steps,
        chunks: stats.chunks - before.chunks,
        evictions: stats.evictions - before.evictions,
        pauses: stats.pauses - before.pauses,
        in_steps: share(stats.step_time.saturating_sub(before.step_time)),
        gpu_busy: (!gpu_time.is_zero()).then(|| share(gpu_time)),
        plan_hit_rate: executor.plans.rate(),
        prepared_rate: executor.prepared.rate(),
    }
}

fn text(report: &Report) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write_text(&mut out, report);
    out
}

fn write_text(out: &mut String, r: &Report) -> std::fmt::Result {
    let slow = if r.debug_build {
        "; a debug build: its times mean little"
    } else {
        ""
    };
    writeln!(out, "model     {}", r.model)?;
    writeln!(out, "device    {}, {} slots{slow}", r.device, r.slots)?;
    writeln!(
        out,
        "requests  {} in {:.2} s, {:.2} a second as they came",
        r.requests, r.seconds, r.rate
    )?;
    writeln!(
        out,
        "tokens/s  {:.1} generated, {:.1} of prompts",
        r.tokens_per_second, r.prompt_tokens_per_second
    )?;
    writeln!(
        out,
        "steps     {} of {:.1} sequences, {} chunks of prompts; {} evictions, {} pauses",
        r.token_steps, r.mean_batch, r.chunks, r.evictions, r.pauses
    )?;
    write!(out, "busy      {:.0} % in steps", r.in_steps * 100.0)?;
    if let Some(busy) = r.gpu_busy {
        write!(out, ", {:.0} % by the GPU's clock", busy * 100.0)?;
    }
    if let Some(hits) = r.plan_hit_rate {
        write!(out, "; {:.0} % of plans were there", hits * 100.0)?;
    }
    if let Some(hits) = r.prepared_rate {
        write!(out, ", {:.0} % of steps recorded in advance", hits * 100.0)?;
    }
    writeln!(out)?;
    writeln!(
        out,
        "\n{:<16} {:>10} {:>10} {:>10} {:>10}",
        "ms", "median", "90 %", "99 %", "max"
    )?;
    for (name, p) in [
        ("first token", r.first_token_ms),
        ("between tokens", r.between_tokens_ms),
    ] {
        writeln!(
            out,
            "{name:<16} {:>10.2} {:>10.2} {:>10.2} {:>10.2}",
            p.median, p.p90, p.p99, p.max
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::float_cmp, reason = "whole milliseconds")]

    use super::*;

    #[test]
    fn percentiles() {
        let times = (1..=200).map(Duration::from_millis).collect();
        let p = Percentiles::of(times);
        assert_eq!(
            [p.median, p.p90, p.p99, p.max],
            [100.0, 180.0, 198.0, 200.0]
        );
        let none = Percentiles::of(Vec::new());
        assert_eq!([none.median, none.max], [0.0, 0.0]);
    }
}
