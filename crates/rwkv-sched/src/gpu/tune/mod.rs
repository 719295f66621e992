//! Finds the fastest ways to cut the work of a model's kernels, where they will run: in steps of the model, with its own
//! weights, so that caches are as cold as they will be.
//!
//! Every kernel of a step that can be cut in several ways is a problem. A round is a plan in which each problem has
//! another candidate; its steps are timed kernel by kernel. The best of each problem are timed once more beside the
//! default, which stays where nothing is clearly faster, and where whole steps are not. With what was found, chunks of prompts
//! of several lengths are timed as a whole.

mod chunk;

use super::{GpuExecutor, plan, plan::Plan};
use crate::{
    Batch, BatchShape, BatchSpan, Error, Executor, LoadProgress, LoadStage, Result, SlotId, Wanted,
    part::{Carried, Rows},
};
use rwkv_gpu::{Timer, Timing, read_cache_file, write_cache_file};
use rwkv_kernels::{
    Kernels,
    tuning::{Choice, Choices, Problem, VERSION},
};
use std::{
    collections::HashMap,
    path::PathBuf,
    time::{Duration, Instant},
};

/// Rounds whose kernels are compiled side by side.
const TOGETHER: usize = 4;
/// Steps of a round that are timed, after one that is not, and in the final.
const STEPS: usize = 3;
const FINAL_STEPS: usize = 7;
/// How long a GPU has to work until its clocks are where they stay: while candidates are compiled, it rests.
const WARM: Duration = Duration::from_millis(200);
const WARM_AGAIN: Duration = Duration::from_millis(60);
/// Candidates of each problem in the final, and how often all of them have their turn.
const FINALISTS: usize = 3;
const TURNS: usize = 3;
/// What a candidate must take at most of the default's time: less is noise.
const CLEARLY: f64 = 0.98;

/// What a whole step must take at most of the time without a candidate, and how long it is measured: so many bursts of
/// steps, each about as long as this.
const WHOLLY: f64 = 0.998;
const BURST: Duration = Duration::from_millis(8);
const BURSTS: usize = 7;

/// Seconds that each candidate took a step, all layers together.
type Times = HashMap<Problem, Vec<(Choice, f64)>>;

/// One problem's candidates for a round.
type Round = Vec<(Problem, Choice)>;

impl GpuExecutor {
    /// Times candidates for the kernels of a step of one token, and of as many tokens as there are slots, up to 8, and for the
    /// length of a prompt's chunks. After `limit` no more kernels' candidates are begun than a few for each. What is found
    /// is used from now on, and kept in the cache folder, if there is one. Says how many problems were solved: none where all
    /// were before, where the adapter has no timestamps, and in deterministic mode.
    ///
    /// Slots are reset.
    ///
    /// # Errors
    /// A GPU's failure. A candidate that fails is only left out.
    pub fn tune(
        &mut self,
        limit: Duration,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<usize> {
        if self.deterministic {
            return Ok(0);
        }
        let Some(mut timer) = Timer::new(self.kernels.gpu(), Timing::Kernels)? else {
            return Ok(0);
        };
        let before = self.kernels.choices().len();
        let start = Instant::now();
        let deadline = start + limit;
        let most = self.slots().clamp(1, 8);
        let shapes = if most == 1 { vec![1] } else { vec![1, most] };
        let mut choices = self.kernels.choices().clone();
        for (at, &tokens) in shapes.iter().enumerate() {
            // Each shape has its share of the time that is left.
            let left = deadline.saturating_duration_since(Instant::now());
            let share = u32::try_from(shapes.len() - at).unwrap_or(1);
            let session = Session {
                executor: self,
                shape: BatchShape {
                    tokens,
                    spans: tokens,
                    outputs: tokens,
                },
                deadline: Instant::now() + left / share,
            };
            session.run(&mut choices, &mut timer, progress)?;
        }
        if choices.len() > before {
            self.keep(&choices);
            self.kernels = self.kernels.tuned(choices.clone());
            self.plans.clear();
            self.prepared.made.clear();
        }
        let of_kernels = choices.len();
        let stepped = self.tune_chunk(&mut choices)?;
        if choices.len() > of_kernels {
            self.keep(&choices);
            self.kernels = self.kernels.tuned(choices.clone());
            self.recall_chunk();
        }
        let found = choices.len().saturating_sub(before);
        if found > 0 || stepped {
            for slot in (0u32..).take(most) {
                self.reset(SlotId(slot))?;
            }
        }
        self.meter.tuned(start.elapsed());
        Ok(found)
    }

    /// Uses what earlier runs have found.
    pub(super) fn recall_choices(&mut self) {
        let Some(path) = choices_file(&self.kernels) else {
            return;
        };
        if let Some(bytes) = read_cache_file(&path) {
            match Choices::decode(&bytes) {
                Some(choices) => self.kernels = self.kernels.tuned(choices),
                None => {
                    tracing::warn!(path = %path.display(), "the tuner's results are damaged or of another version, and are left out");
                }
            }
        }
    }

    /// Writes `choices`, beside those that other processes have written meanwhile.
    fn keep(&self, choices: &Choices) {
        let Some(path) = choices_file(&self.kernels) else {
            return;
        };
        let others = read_cache_file(&path).and_then(|bytes| Choices::decode(&bytes));
        let all = others.unwrap_or_default().with(choices);
        if let Err(error) = write_cache_file(&path, &all.encode()) {
            tracing::warn!("the tuner's results are not kept: {error}");
        }
    }
}

fn choices_file(kernels: &Kernels) -> Option<PathBuf> {
    let path = kernels.gpu().cache_file("tuner", VERSION)?;
    Some(path.with_extension("json"))
}

/// The search for one batch shape.
struct Session<'a> {
    executor: &'a GpuExecutor,
    shape: BatchShape,
    deadline: Instant,
}

impl Session<'_> {
    /// Adds what is fastest for each problem that `choices` does not know.
    fn run(
        &self,
        choices: &mut Choices,
        timer: &mut Timer,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<()> {
        let usual = self.plan(choices, &[])?;
        plan::compile(self.executor.kernels.gpu(), usual.pipelines())?;
        let mut problems: Vec<Problem> = Vec::new();
        for (_, problem) in usual.problems() {
            if !choices.has(problem) && !problems.contains(problem) {
                problems.push(problem.clone());
            }
        }
        let candidates: Vec<Vec<Choice>> = problems.iter().map(Problem::candidates).collect();
        let rounds = candidates.iter().map(Vec::len).max().unwrap_or(0);
        if rounds == 0 {
            return Ok(());
        }
        let round = |at: usize| -> Round {
            let all = problems.iter().zip(&candidates);
            all.filter_map(|(problem, all)| Some((problem.clone(), *all.get(at)?)))
                .collect()
        };
        self.warm(&usual, WARM)?;
        let mut times = Times::new();
        for first in (0..rounds).step_by(TOGETHER) {
            progress(LoadProgress {
                stage: LoadStage::Tuning,
                done: first as u64,
                total: rounds as u64,
            });
            // Some are always timed: a slow start is not to be repeated.
            if first > 0 && Instant::now() >= self.deadline {
                break;
            }
            let rounds = (first..rounds.min(first + TOGETHER)).map(round).collect();
            let compiled = self.compiled(choices, rounds);
            self.warm(&usual, WARM_AGAIN)?;
            for (round, plan) in compiled {
                self.time_round(&round, &plan, STEPS, timer, &mut times)?;
            }
        }
        for all in times.values_mut() {
            all.sort_by(|a, b| a.1.total_cmp(&b.1));
            all.truncate(FINALISTS);
        }
        self.decide(&problems, &usual, &times, choices, timer)?;
        progress(LoadProgress {
            stage: LoadStage::Tuning,
            done: rounds as u64,
            total: rounds as u64,
        });
        Ok(())
    }

    /// The final: what was fastest of each problem, and the default, in turns.
    fn decide(
        &self,
        problems: &[Problem],
        usual: &Plan,
        best: &Times,
        choices: &mut Choices,
        timer: &mut Timer,
    ) -> Result<()> {
        let rank = |at: usize| -> Round {
            let all = best.iter();
            all.filter_map(|(problem, all)| Some((problem.clone(), all.get(at)?.0)))
                .collect()
        };
        let finals = self.compiled(choices, (0..FINALISTS).map(rank).collect());
        self.warm(usual, WARM)?;
        let mut samples: HashMap<(&Problem, Option<Choice>), Vec<f64>> = HashMap::new();
        for _ in 0..TURNS {
            let of_usual = self.time(usual, FINAL_STEPS, timer)?;
            for problem in problems {
                let times = of_usual.get(problem).into_iter().flatten();
                samples.entry((problem, None)).or_default().extend(times);
            }
            for (round, plan) in &finals {
                let of_round = self.time(plan, FINAL_STEPS, timer)?;
                for (problem, choice) in round {
                    let times = of_round.get(problem).into_iter().flatten();
                    let key = (problem, Some(*choice));
                    samples.entry(key).or_default().extend(times);
                }
            }
        }
        let mut proposals = Round::new();
        for problem in problems {
            let of = |choice: Option<Choice>| median(samples.get(&(problem, choice)));
            let Some(default) = of(None) else {
                continue;
            };
            let finalists = best.get(problem).into_iter().flatten();
            let timed = finalists.filter_map(|(choice, _)| Some((*choice, of(Some(*choice))?)));
            let fastest = timed.min_by(|a, b| a.1.total_cmp(&b.1));
            let better = fastest.filter(|(_, seconds)| *seconds < CLEARLY * default);
            tracing::debug!(
                %problem,
                default_us = default * 1e6,
                best_us = fastest.map(|(_, seconds)| seconds * 1e6),
                choice = ?better.map(|(choice, _)| choice),
                "timed"
            );
            proposals.extend(better.map(|(choice, _)| (problem.clone(), choice)));
        }
        let accepted = self.accepted(usual, proposals, choices)?;
        for problem in problems {
            let choice = accepted.iter().find(|(p, _)| p == problem);
            let choice = choice.map(|(_, choice)| *choice);
            tracing::debug!(%problem, ?choice, "tuned");
            choices.set(problem.clone(), choice);
        }
        Ok(())
    }

    /// Those of `proposals` that make whole steps faster, one added to the other: timestamps around each kernel keep
    /// kernels apart that otherwise follow each other closely.
    fn accepted(&self, usual: &Plan, proposals: Round, choices: &Choices) -> Result<Round> {
        let mut accepted = Round::new();
        let mut best: Option<Plan> = None;
        for proposal in proposals {
            let more = [&accepted[..], &[proposal]].concat();
            let Some((more, plan)) = self.compiled(choices, vec![more]).pop() else {
                continue;
            };
            if self.is_faster(&plan, best.as_ref().unwrap_or(usual))? {
                accepted = more;
                best = Some(plan);
            }
        }
        Ok(accepted)
    }

    /// Whether steps of `plan` take less time than those of `than`, without any timestamps, in turns.
    fn is_faster(&self, plan: &Plan, than: &Plan) -> Result<bool> {
        self.warm(than, WARM_AGAIN)?;
        let one = self.seconds_a_step(than, 1)?;
        let steps = (BURST.as_secs_f64() / one.max(1e-6)).ceil();
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a small positive number"
        )]
        let steps = steps.clamp(1.0, 64.0) as usize;
        let (mut new, mut old) = (Vec::new(), Vec::new());
        for _ in 0..BURSTS {
            new.push(self.seconds_a_step(plan, steps)?);
            old.push(self.seconds_a_step(than, steps)?);
        }
        let faster = median(Some(&new)).zip(median(Some(&old)));
        Ok(faster.is_some_and(|(new, old)| new < WHOLLY * old))
    }

    /// The host's time for a step of `plan`, of `steps` that are submitted together.
    fn seconds_a_step(&self, plan: &Plan, steps: usize) -> Result<f64> {
        let gpu = self.executor.kernels.gpu();
        self.feed(plan)?;
        let mut recorder = gpu.recorder("tuning");
        for _ in 0..steps {
            recorder.dispatch(plan.dispatches());
        }
        let start = Instant::now();
        let submission = recorder.submit()?;
        gpu.wait(&submission)?;
        Ok(start.elapsed().as_secs_f64() / steps as f64)
    }

    /// The plan of `round` on top of `choices`, which may not be compiled.
    fn plan(&self, choices: &Choices, round: &[(Problem, Choice)]) -> Result<Plan> {
        let mut all = choices.clone();
        for (problem, choice) in round {
            all.set(problem.clone(), Some(*choice));
        }
        let kernels = self.executor.kernels.tuned(all).observed();
        self.executor.resolve_by(&kernels.declaring(), self.shape)
    }

    /// Rounds with their plans, compiled side by side; those that fail are left out.
    fn compiled(&self, choices: &Choices, rounds: Vec<Round>) -> Vec<(Round, Plan)> {
        let gpu = self.executor.kernels.gpu();
        let failed = |error: &Error| tracing::debug!("candidates are left out: {error}");
        let mut plans = Vec::new();
        for round in rounds.into_iter().filter(|round| !round.is_empty()) {
            match self.plan(choices, &round) {
                Ok(plan) => plans.push((round, plan)),
                Err(error) => failed(&error),
            }
        }
        let all = plans.iter().flat_map(|(_, plan)| plan.pipelines());
        if let Err(error) = plan::compile(gpu, all) {
            failed(&error);
            plans.retain(|(_, plan)| plan::compile(gpu, plan.pipelines()).is_ok());
        }
        plans
    }

    fn time_round(
        &self,
        round: &[(Problem, Choice)],
        plan: &Plan,
        steps: usize,
        timer: &mut Timer,
        times: &mut Times,
    ) -> Result<()> {
        let found = self.time(plan, steps, timer)?;
        for (problem, choice) in round {
            if let Some(seconds) = median(found.get(problem)) {
                let all = times.entry(problem.clone()).or_default();
                all.push((*choice, seconds));
            }
        }
        Ok(())
    }

    /// Keeps the GPU busy for `time`.
    fn warm(&self, plan: &Plan, time: Duration) -> Result<()> {
        let gpu = self.executor.kernels.gpu();
        self.feed(plan)?;
        let start = Instant::now();
        while start.elapsed() < time {
            let mut recorder = gpu.recorder("tuning");
            for _ in 0..STEPS {
                recorder.dispatch(plan.dispatches());
            }
            let submission = recorder.submit()?;
            gpu.wait(&submission)?;
        }
        Ok(())
    }

    /// Writes what a step of `plan` reads: as many tokens for each slot, and for a part of a model numbers as large as its
    /// activations.
    fn feed(&self, plan: &Plan) -> Result<()> {
        let executor = self.executor;
        let spans = (0u32..).take(self.shape.spans).map(|slot| BatchSpan {
            slot: SlotId(slot),
            tokens: vec![0; self.shape.tokens / self.shape.spans.max(1)],
            wanted: if self.shape.outputs > 0 {
                Wanted::Last
            } else {
                Wanted::None
            },
        });
        let batch = Batch {
            spans: spans.collect(),
        };
        let tables = batch.tables(executor.model.config().vocab, executor.slots())?;
        plan.write_tables(executor.kernels.gpu(), &tables)?;
        let graph = executor.model.graph();
        let made_up = |id| {
            let elements = self.shape.rows(graph.value(id).domain) * graph.value(id).width;
            let values = (0..elements).map(|i| (i as f32 * 0.7).sin());
            (id, Rows::Own(values.collect()))
        };
        let carried: Carried = graph.inputs().map(made_up).collect();
        plan.inputs()
            .write(executor.kernels.gpu(), [&carried, &Carried::new()])
    }

    /// Runs `steps` steps and one before them; for each problem the seconds of its kernels in each.
    fn time(
        &self,
        plan: &Plan,
        steps: usize,
        timer: &mut Timer,
    ) -> Result<HashMap<Problem, Vec<f64>>> {
        let gpu = self.executor.kernels.gpu();
        self.feed(plan)?;
        let mut all: HashMap<Problem, Vec<f64>> = HashMap::new();
        for step in 0..=steps {
            let mut recorder = gpu.recorder("tuning");
            timer.dispatch(&mut recorder, "tuning", plan.dispatches())?;
            let submission = recorder.submit()?;
            timer.submitted()?;
            gpu.wait(&submission)?;
            let Some(times) = timer.take() else {
                continue;
            };
            if step == 0 || times.len() != plan.dispatches().len() {
                continue;
            }
            let mut sums: HashMap<&Problem, f64> = HashMap::new();
            for (range, problem) in plan.problems() {
                let times = times.get(range.clone()).unwrap_or_default();
                let seconds: f64 = times.iter().map(rwkv_gpu::TimedSpan::seconds).sum();
                *sums.entry(problem).or_default() += seconds;
            }
            for (problem, seconds) in sums {
                all.entry(problem.clone()).or_default().push(seconds);
            }
        }
        Ok(all)
    }
}

/// Of what was measured of one candidate.
fn median(times: Option<&Vec<f64>>) -> Option<f64> {
    let mut sorted = times?.clone();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}
