//! How many tokens of a prompt go through the layers together. Products of more tokens are faster, until their activations
//! no longer fit what caches there are.

use super::{CLEARLY, Session, TURNS, WARM_AGAIN, median};
use crate::{
    Result, WeightsDType,
    gpu::{
        GpuExecutor,
        blend::out_of_memory,
        plan::{self, Plan},
        plans::within_prompt,
    },
};
use rwkv_kernels::tuning::{Choice, Choices, Problem, Tunable};
use std::time::Instant;

impl GpuExecutor {
    /// The problem of the chunks, if there is more than one length to choose from.
    fn chunk_problem(&self) -> Option<Problem> {
        let config = self.model.config();
        let matrices = self.model.graph().nodes().iter();
        let mut matrices = matrices.filter_map(|node| self.weights.matrix(node.op.matrix()?));
        let format = matrices.find(|matrix| matrix.shape().rows.0 != config.vocab);
        let format = format.map_or_else(String::new, |matrix| matrix.format().to_string());
        let widened = if self.weights_dtype == WeightsDType::F32 {
            " as f32"
        } else {
            ""
        };
        let problem = Problem {
            kernel: Tunable::Chunk,
            format: format!("{} {format}{widened}", config.version),
            rows: config.layers,
            cols: config.width,
            tokens: self.longest_chunk,
        };
        (!problem.candidates().is_empty()).then_some(problem)
    }

    /// Cuts prompts as was measured to be fastest, if it was.
    pub(in crate::gpu) fn recall_chunk(&mut self) {
        let found = self.chunk_problem();
        let found = found.and_then(|problem| self.kernels.choices().get(&problem));
        self.chunk = match found {
            Some(Choice::Chunk(tokens)) => tokens.min(self.longest_chunk),
            _ => self.longest_chunk,
        };
    }

    /// Adds the length of chunks that makes most tokens a second to `choices`, unless it is there. Lengths that there is no
    /// memory for are left out.
    pub(super) fn tune_chunk(&self, choices: &mut Choices, deadline: Instant) -> Result<()> {
        let unknown = |problem: &Problem| !choices.has(problem);
        let Some(problem) = self.chunk_problem().filter(unknown) else {
            return Ok(());
        };
        let shorter = problem.candidates().into_iter();
        let all = std::iter::once(None).chain(shorter.map(Some));
        let mut tried: Vec<Tried<'_>> = Vec::new();
        for choice in all {
            let tokens = match choice {
                Some(Choice::Chunk(tokens)) => tokens,
                _ => problem.tokens,
            };
            let session = Session {
                executor: self,
                shape: within_prompt(tokens),
                deadline,
            };
            let plan = session.plan(choices, &[]).and_then(|plan| {
                plan::compile(self.kernels.gpu(), plan.pipelines())?;
                Ok(plan)
            });
            match plan {
                Ok(plan) => tried.push(Tried {
                    session,
                    plan,
                    choice,
                    seconds: Vec::new(),
                }),
                Err(error) if out_of_memory(&error) => _ = self.pool.trim(),
                Err(error) => return Err(error),
            }
        }
        if let Some(last) = tried.last() {
            last.session.warm(&last.plan, WARM_AGAIN)?;
        }
        for _ in 0..TURNS {
            for one in &mut tried {
                let seconds = one.session.seconds_a_step(&one.plan, 1)?;
                one.seconds.push(seconds / one.session.shape.tokens as f64);
            }
            if Instant::now() >= deadline {
                break;
            }
        }
        let longest = tried.iter().find(|one| one.choice.is_none());
        let longest = longest.and_then(|one| median(Some(&one.seconds)));
        let of_others = tried.iter().filter(|one| one.choice.is_some());
        let of_others = of_others.filter_map(|one| Some((one, median(Some(&one.seconds))?)));
        let best = of_others.min_by(|a, b| a.1.total_cmp(&b.1));
        // Where there is no memory for the longest, load finds that out too.
        let better = best.filter(|(_, seconds)| longest.is_some_and(|l| *seconds < CLEARLY * l));
        let choice = better.and_then(|(one, _)| one.choice);
        tracing::debug!(
            %problem,
            longest_us = longest.map(|seconds| seconds * 1e6),
            ?choice,
            "tuned"
        );
        choices.set(problem, choice);
        Ok(())
    }
}

/// A length that was tried, the longest one where that is no choice, and the seconds of a token.
struct Tried<'a> {
    session: Session<'a>,
    plan: Plan,
    choice: Option<Choice>,
    seconds: Vec<f64>,
}
