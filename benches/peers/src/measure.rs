//! Workloads, and the sequences that they feed to web-rwkv's runtime.

use crate::Args;
use anyhow::{Context as _, Result};
use half::f16;
use serde_json::{Value, json};
use std::time::Instant;
use web_rwkv::{
    context::Context,
    runtime::{
        TokioRuntime,
        infer::{Rnn, RnnInput, RnnInputBatch, RnnOption},
        model::{Bundle as _, State},
        v7,
    },
    wgpu,
};

#[derive(Clone, Copy)]
pub(crate) enum Workload {
    Prefill { tokens: u32 },
    Decode { steps: u32, batch: u32 },
}

impl Workload {
    pub(crate) async fn measure(self, model: &v7::Model, args: &Args) -> Result<Value> {
        let (batch, length, steps, tokens) = match self {
            Self::Prefill { tokens } => (1, tokens, 0, u64::from(tokens)),
            Self::Decode { steps, batch } => (batch, 1, steps, u64::from(steps) * u64::from(batch)),
        };
        let mut sequences = Sequences::new(model, batch, args.chunk).await;
        let prompt: Vec<_> = (0..batch)
            .map(|i| tokens_of(i, model.info.num_vocab, length))
            .collect();
        let (mut speeds, mut chosen) = (Vec::new(), Vec::new());
        for round in 0..=args.repeat {
            sequences.reset()?;
            let mut start = Instant::now();
            let mut next = sequences.step(prompt.clone()).await?;
            chosen = next[0].clone();
            if steps > 0 {
                // The first step of decoding is not timed: web-rwkv begins a new pipeline of steps there.
                start = Instant::now();
            }
            for _ in 0..steps {
                next = sequences.step(next).await?;
                chosen.extend(&next[0]);
            }
            let seconds = start.elapsed().as_secs_f64();
            if round > 0 {
                speeds.push(tokens as f64 / seconds);
            }
        }
        chosen.truncate(8);
        Ok(json!({
            "batch": batch,
            "tokens": tokens,
            "tokens_per_second": speeds,
            "median": median(&speeds),
            "finite_logits": sequences.finite,
            "first_tokens": chosen,
        }))
    }
}

/// Sequences that go on from step to step.
struct Sequences {
    context: Context,
    state: Box<dyn State>,
    runtime: TokioRuntime<Rnn>,
    input: RnnInput,
    vocab: usize,
    /// Whether the logits that tokens were chosen by were finite numbers.
    finite: bool,
}

impl Sequences {
    async fn new(model: &v7::Model, batch: u32, chunk: u32) -> Self {
        let bundle = v7::Bundle::<f16>::new(model.clone(), batch as usize);
        let batches = (0..batch).map(|_| RnnInputBatch::new(Vec::<u32>::new(), RnnOption::Last));
        Self {
            context: model.context.clone(),
            state: Box::new(bundle.state()),
            runtime: TokioRuntime::new(bundle).await,
            input: RnnInput::new(batches.collect(), chunk.max(batch) as usize),
            vocab: model.info.num_vocab,
            finite: true,
        }
    }

    /// Empties the states, and waits until the device has done so.
    fn reset(&self) -> Result<()> {
        for batch in 0..self.state.num_batch() {
            self.state.load(self.state.init(), batch)?;
        }
        self.context.queue.submit(None);
        let wait = wgpu::PollType::Wait {
            submission_index: None,
            timeout: None,
        };
        self.context
            .device
            .poll(wait)
            .context("waiting for the device")?;
        Ok(())
    }

    /// Feeds each sequence its tokens, and chooses the next ones: the most probable, the first of equals.
    async fn step(&mut self, tokens: Vec<Vec<u32>>) -> Result<Vec<Vec<u32>>> {
        for (batch, tokens) in self.input.batches.iter_mut().zip(tokens) {
            batch.append(tokens);
        }
        let mut next = vec![Vec::new(); self.input.batches.len()];
        while self.input.num_token() > 0 {
            let (rest, output) = self.runtime.infer(self.input.clone()).await?;
            self.input = rest;
            for (logits, next) in output.iter().zip(&mut next) {
                let mut best = (0, f32::NEG_INFINITY);
                for (token, &logit) in (0u32..).zip(logits.data().iter().take(self.vocab)) {
                    if logit > best.1 {
                        best = (token, logit);
                    }
                }
                if !logits.data().is_empty() {
                    self.finite &= best.1.is_finite();
                    next.push(best.0);
                }
            }
        }
        Ok(next)
    }
}

/// `count` tokens that look random, the same that `rwkv-cli bench` takes for this sequence.
fn tokens_of(sequence: u32, vocab: usize, count: u32) -> Vec<u32> {
    let mut state = u64::from(sequence) + 1;
    let next = |_| {
        // Knuth's MMIX generator; its upper half is the better one.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % vocab.max(1) as u64) as u32
    };
    (0..count).map(next).collect()
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    f64::midpoint(sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2])
}
