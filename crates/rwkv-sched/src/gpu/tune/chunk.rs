//! How many tokens of a prompt go through the layers together. Products of more tokens are faster, until their activations
//! no longer fit what caches there are.

use super::{CLEARLY, Session, TURNS, WARM_AGAIN, median};
use crate::{
    Op, Result,
    gpu::{
        GpuExecutor,
        plan::{self, Plan},
        plans::within_prompt,
    },
};
use rwkv_kernels::tuning::{Choice, Choices, Problem, Tunable};
use std::{collections::BTreeSet, time::Instant};

/// A length that was tried, the longest one where that is no choice, and the seconds of a token.
struct Tried<'a> {
    session: Session<'a>,
    plan: Plan,
    choice: Option<Choice>,
    seconds: Vec<f64>,
}

impl GpuExecutor {
    /// The problem of the chunks, if there is more than one length to choose from. What a chunk costs depends on all products:
    /// their number, and the formats that their matrices have.
    fn chunk_problem(&self) -> Option<Problem> {
        let config = self.model.config();
        let nodes = self.model.graph().nodes().iter();
        let products = nodes.filter_map(|node| match node.op {
            Op::MatMul { weight } => Some(weight),
            _ => None,
        });
        let mut formats = BTreeSet::new();
        let mut count = 0;
        for weight in products {
            let dense = self.weights.matrix(weight).map(|m| m.format().to_string());
            let columns = || self.weights.columns(weight).map(|_| "columns".to_owned());
            formats.insert(
                dense
                    .or_else(columns)
                    .unwrap_or_else(|| "sparse".to_owned()),
            );
            count += 1;
        }
        let formats: Vec<String> = formats.into_iter().collect();
        let problem = Problem {
            kernel: Tunable::Chunk,
            format: format!("{} × {}, {}", config.version, config.ffn, formats.join(" ")),
            rows: count,
            cols: config.width,
            tokens: self.longest_chunk,
        };
        (!problem.candidates().is_empty()).then_some(problem)
    }

    /// Cuts prompts as was measured to be fastest, if it was.
    pub(in crate::gpu) fn recall_chunk(&mut self) {
        let problem = self.chunk_problem().filter(|_| !self.deterministic);
        let found = problem.and_then(|problem| {
            let choice = self.kernels.choices().get(&problem)?;
            problem.candidates().contains(&choice).then_some(choice)
        });
        self.chunk = match found {
            Some(Choice::Chunk(tokens)) => tokens,
            _ => self.longest_chunk,
        };
    }

    /// Adds the length of chunks that makes most tokens a second to `choices`, unless it is there. Lengths that fail are left
    /// out; where the longest one does, nothing is added. Says whether a slot was used.
    pub(super) fn tune_chunk(&self, choices: &mut Choices) -> Result<bool> {
        let unknown = |problem: &Problem| !choices.has(problem);
        let Some(problem) = self.chunk_problem().filter(unknown) else {
            return Ok(false);
        };
        let mut tried: Vec<Tried<'_>> = Vec::new();
        let shorter = problem.candidates().into_iter().map(Some);
        for choice in std::iter::once(None).chain(shorter) {
            let tokens = match choice {
                Some(Choice::Chunk(tokens)) => tokens,
                _ => problem.tokens,
            };
            tried.extend(self.try_chunk(choices, choice, tokens));
            if tried.is_empty() {
                return Ok(false);
            }
        }
        // What is used for the first time is cleared first.
        for one in &tried {
            one.session.seconds_a_step(&one.plan, 1)?;
        }
        if let Some(last) = tried.last() {
            last.session.warm(&last.plan, WARM_AGAIN)?;
        }
        for _ in 0..TURNS {
            for one in &mut tried {
                let seconds = one.session.seconds_a_step(&one.plan, 1)?;
                one.seconds.push(seconds / one.session.shape.tokens as f64);
            }
            // Another one is the first.
            tried.rotate_left(1);
        }
        let timed = tried
            .iter()
            .filter_map(|one| Some((one.choice, median(Some(&one.seconds))?)));
        let timed: Vec<(Option<Choice>, f64)> = timed.collect();
        let longest = timed.iter().find(|(choice, _)| choice.is_none());
        if let Some(&(_, longest)) = longest {
            let best = timed.iter().min_by(|a, b| a.1.total_cmp(&b.1));
            let better = best.filter(|(_, seconds)| *seconds < CLEARLY * longest);
            let choice = better.and_then(|(choice, _)| *choice);
            tracing::debug!(%problem, longest_us = longest * 1e6, ?choice, "tuned");
            choices.set(problem, choice);
        }
        Ok(true)
    }

    /// Chunks of `tokens` with a plan, if there is memory for it and its kernels compile.
    fn try_chunk(
        &self,
        choices: &Choices,
        choice: Option<Choice>,
        tokens: usize,
    ) -> Option<Tried<'_>> {
        let session = Session {
            executor: self,
            shape: within_prompt(tokens),
            deadline: Instant::now(),
        };
        let plan = session.plan(choices, &[]).and_then(|plan| {
            plan::compile(self.kernels.gpu(), plan.pipelines())?;
            Ok(plan)
        });
        match plan {
            Ok(plan) => Some(Tried {
                session,
                plan,
                choice,
                seconds: Vec::new(),
            }),
            Err(error) => {
                tracing::debug!(tokens, "chunks are left out: {error}");
                self.pool.trim();
                None
            }
        }
    }
}
