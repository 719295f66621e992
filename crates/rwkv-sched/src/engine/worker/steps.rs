//! Steps: chunks of prompts, and tokens of those whose prompts are done.

use super::{Command, Error, Goal, Job, Worker, lookahead::Lookahead};
use crate::{
    Batch, BatchSpan, Decoding, Result, TokenId, Wanted,
    engine::policy::{Step, Work},
    sampling::Sampler,
};
use rayon::prelude::*;
use std::{
    collections::HashSet,
    ops::ControlFlow,
    time::{Duration, Instant},
};

/// Of so few sequences, all stop when one of them ends: going back together costs less than doing without one's state.
const FEW: usize = 2;

/// Prompts whose first tokens are chosen by one thread.
const CHOSEN_BY_ONE: usize = 2;

/// A sequence in a step that makes tokens.
struct Burst {
    job: u64,
    session: u64,
    made: Vec<TokenId>,
    ended: bool,
}

impl Worker {
    /// Runs a step, if there is anything to run; says whether there may be more to do.
    pub(super) fn step(&mut self) -> bool {
        let before = self.running.len();
        self.look_up_all();
        self.place_all();
        self.finish_fed();
        let mut views = self.running_views(Instant::now());
        let used: HashSet<u64> = views.iter().map(|view| view.blend).collect();
        let suspect = views.iter().find(|view| {
            let runs = matches!(view.work, Work::Prompt { .. } | Work::Token);
            runs && self.is_suspect(view.id)
        });
        if let Some(suspect) = suspect.map(|view| view.id) {
            views.retain(|view| view.id == suspect);
        }
        let mut step = self.policy.next(&views, &self.turns, self.times);
        if let Step::Tokens { ids, steps, .. } = &mut step {
            *steps = self.steps_with_work(ids, *steps);
        }
        let prepares = self.prepare_blends(&used, step == Step::Nothing);
        let changed = self.running.len() != before;
        let blend = match &step {
            Step::Nothing => return prepares || changed,
            Step::Prompts { blend, .. } | Step::Tokens { blend, .. } => *blend,
        };
        if !self.activate(blend) {
            return true;
        }
        let ahead = self.look_ahead(&step, &views);
        self.turns.took(&step);
        let started = Instant::now();
        match step {
            Step::Nothing => {}
            Step::Prompts { parts, .. } => {
                self.run_prompts(&parts);
                blend_in(&mut self.times.chunk, started.elapsed());
            }
            Step::Tokens { ids, steps, .. } => {
                let ran = self.run_tokens(&ids, steps, ahead);
                if let Some(each) = started.elapsed().checked_div(ran) {
                    blend_in(&mut self.times.token, each);
                }
            }
        }
        self.stats.step_time += started.elapsed();
        true
    }

    /// Jobs that only feed tokens and have none left are done.
    fn finish_fed(&mut self) {
        let fed = self.running.values().filter(|job| {
            let session = self.sessions.get(&job.session);
            let all = |s: &super::Session| s.live.is_some_and(|l| l.fed == s.history.len());
            job.made().is_none() && session.is_some_and(all)
        });
        let fed: Vec<u64> = fed.map(|job| job.id).collect();
        for id in fed {
            self.finish(id);
        }
    }

    /// Feeds so many tokens of each of these jobs.
    fn run_prompts(&mut self, parts: &[(u64, usize)]) {
        let mut batch = Batch::default();
        // The jobs of the spans.
        let mut ids = Vec::new();
        // Those of whom logits are wanted, by number of the job.
        let mut choosing = Vec::new();
        for (id, count) in parts {
            let Some((job, session)) = self.job_and_session(*id) else {
                continue;
            };
            let Some(live) = session.live else {
                continue;
            };
            let Some((_, tokens)) = session.history.run(live.fed) else {
                continue;
            };
            let tokens = tokens.get(..*count).unwrap_or(tokens).to_vec();
            let ends = live.fed + tokens.len() == session.history.len();
            let chooses = ends && job.made() == Some(0);
            ids.push(*id);
            batch.spans.push(BatchSpan {
                slot: live.slot,
                tokens,
                wanted: if chooses { Wanted::Last } else { Wanted::None },
            });
            if chooses {
                choosing.push(*id);
            }
        }
        let (sequences, tokens) = (batch.spans.len(), batch.tokens());
        if sequences == 0 {
            return;
        }
        let _span = tracing::debug_span!("prompts", sequences, tokens).entered();
        let logits = match self.executor.run(&batch) {
            Ok(logits) => logits,
            Err(error) => return self.step_failed(&ids, sequences, error),
        };
        self.stats.chunks += 1;
        self.stats.prompt_tokens += tokens as u64;
        for (id, span) in ids.iter().zip(&batch.spans) {
            let Some(job) = self.running.get(id) else {
                continue;
            };
            let session = job.session;
            self.fed(session, span.tokens.len());
            self.clear_suspicion(*id);
            self.keep_passing_state(session);
            if choosing.contains(id) {
                self.keep_before_answer(*id, session);
            }
            self.keep_prefix(*id);
        }
        let samplers = choosing.iter().filter_map(|id| {
            let Goal::Generate(making) = &self.running.get(id)?.goal else {
                return None;
            };
            Some(making.sampler.clone())
        });
        let rows: Vec<(Sampler, &[f32])> = samplers.zip(logits.rows()).collect();
        let choose = |(sampler, row): &mut (Sampler, &[f32])| Ok(sampler.sample(row)?);
        let chosen: Vec<Result<TokenId>> = choose_all(rows, choose);
        for (id, token) in choosing.into_iter().zip(chosen) {
            match token {
                Ok(token) => {
                    if self.take(id, token, sequences) {
                        self.finish(id);
                    }
                }
                Err(error) => self.fail(id, error),
            }
        }
        self.finish_fed();
    }

    /// Whether all of so many sequences stop when one of them ends.
    fn stop_together(&self, sequences: usize) -> bool {
        !self.executor.runs_ahead() || sequences <= FEW
    }

    /// Of `steps` tokens for each of these jobs, those that there is anything to make for: beyond the first end where all stop
    /// together, else beyond the last, there is nothing.
    fn steps_with_work(&self, ids: &[u64], steps: usize) -> usize {
        let left = ids.iter().filter_map(|id| {
            let Goal::Generate(making) = &self.running.get(id)?.goal else {
                return None;
            };
            let unmade = making.most.saturating_sub(making.made);
            Some(unmade.min(making.writer.0.room()).max(1))
        });
        let most = if self.stop_together(ids.len()) {
            left.min()
        } else {
            left.max()
        };
        most.map_or(0, |most| steps.min(most))
    }

    /// Makes up to `steps` tokens for each of these jobs; says how many each has been fed.
    fn run_tokens(&mut self, ids: &[u64], steps: usize, mut lookahead: Option<Lookahead>) -> u32 {
        let (mut sequences, mut bursts) = (Vec::new(), Vec::new());
        for id in ids {
            let Some((job, session)) = self.job_and_session(*id) else {
                continue;
            };
            let (Some(live), Goal::Generate(making)) = (session.live, &job.goal) else {
                continue;
            };
            let Some(&token) = session.history.run(live.fed).and_then(|(_, t)| t.first()) else {
                continue;
            };
            sequences.push(Decoding {
                slot: live.slot,
                token,
                sampler: making.sampler.clone(),
            });
            bursts.push(Burst {
                job: *id,
                session: job.session,
                made: Vec::new(),
                ended: false,
            });
        }
        let batch = sequences.len();
        if batch == 0 {
            return 0;
        }
        let ahead = self.executor.runs_ahead();
        let together = self.stop_together(batch);
        let _span = tracing::debug_span!("tokens", sequences = batch, steps).entered();
        let Self {
            executor,
            running,
            uncounted,
            inbox,
            commands,
            ..
        } = self;
        let counted = |token: TokenId| uncounted.counts(token);
        let mut ran: u32 = 0;
        let mut handed_out = 0;
        let done = executor.decode(&mut sequences, steps, &counted, &mut |tokens| {
            ran += 1;
            for (burst, token) in bursts.iter_mut().zip(tokens) {
                let job = running.get_mut(&burst.job).filter(|_| !burst.ended);
                let Some(Job {
                    goal: Goal::Generate(making),
                    ..
                }) = job
                else {
                    continue;
                };
                burst.made.push(*token);
                handed_out += 1;
                burst.ended = making.take(*token, counted(*token), batch);
            }
            for command in commands.try_iter() {
                if let (Command::Run(job), Some(lookahead)) = (&command, &mut lookahead) {
                    lookahead.came(job);
                }
                inbox.push_back(command);
            }
            let all = bursts.iter().all(|burst| burst.ended);
            let any = bursts.iter().any(|burst| burst.ended);
            // Where nothing runs ahead, stopping costs nothing.
            if all || (any && together) || (!ahead && !inbox.is_empty()) {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        self.stats.token_steps += u64::from(ran);
        self.stats.batched += u64::from(ran) * batch as u64;
        self.stats.tokens += handed_out;
        for burst in &bursts {
            let Some(job) = self.running.get(&burst.job) else {
                continue;
            };
            let Some(session) = self.sessions.get_mut(&burst.session) else {
                continue;
            };
            session.history.extend(&burst.made, &job.blend);
            if done.is_ok() {
                self.fed(burst.session, ran as usize);
                self.clear_suspicion(burst.job);
                self.keep_passing_state(burst.session);
            }
        }
        if let Err(error) = done {
            let going_on = bursts.iter().filter(|b| !b.ended).map(|b| b.job);
            let going_on: Vec<u64> = going_on.collect();
            for burst in &bursts {
                self.release(burst.session);
            }
            self.step_failed(&going_on, batch, error);
        }
        for burst in bursts.iter().filter(|burst| burst.ended) {
            self.finish(burst.job);
        }
        ran
    }

    fn job_and_session(&self, id: u64) -> Option<(&Job, &super::Session)> {
        let job = self.running.get(&id)?;
        Some((job, self.sessions.get(&job.session)?))
    }

    /// A session's slot has seen more tokens. One that has seen more than the session is of no use.
    fn fed(&mut self, session: u64, tokens: usize) {
        self.clock += 1;
        let Some(record) = self.sessions.get_mut(&session) else {
            return;
        };
        record.used = self.clock;
        if let Some(live) = &mut record.live {
            live.fed += tokens;
            if live.fed > record.history.len() {
                self.stats.undone += 1;
                self.release(session);
            }
        }
    }

    /// A job's token was chosen; says whether it was the last one.
    fn take(&mut self, id: u64, token: TokenId, batch: usize) -> bool {
        let counted = self.uncounted.counts(token);
        let Some(job) = self.running.get_mut(&id) else {
            return false;
        };
        let Goal::Generate(making) = &mut job.goal else {
            return false;
        };
        let ended = making.take(token, counted, batch);
        self.stats.tokens += 1;
        if let Some(session) = self.sessions.get_mut(&job.session) {
            session.history.extend(&[token], &job.blend);
        }
        ended
    }

    /// A step of these jobs among `sequences` failed, and their states are lost. Where there were several, each is tried
    /// again alone; whoever fails alone is told.
    fn step_failed(&mut self, ids: &[u64], sequences: usize, error: Error) {
        tracing::warn!(sequences, "a step failed: {error}");
        if let ([id], 1) = (ids, sequences) {
            return self.fail(*id, error);
        }
        for id in ids {
            let Some(job) = self.running.get_mut(id) else {
                continue;
            };
            let session = job.session;
            let record = self.sessions.get(&session);
            job.alone = record.map_or(0, |record| record.history.len());
            self.release(session);
        }
    }

    /// A job has come past where a step failed: it is not tried alone again.
    fn clear_suspicion(&mut self, id: u64) {
        if !self.is_suspect(id)
            && let Some(job) = self.running.get_mut(&id)
        {
            job.alone = 0;
        }
    }

    /// Whether a job was in a step that failed, and has not come past it since.
    fn is_suspect(&self, id: u64) -> bool {
        let job_and_session = self.job_and_session(id);
        job_and_session.is_some_and(|(job, s)| s.live.is_some_and(|l| l.fed < job.alone))
    }
}

/// Chooses for each row; on several threads where there are many.
fn choose_all(
    mut rows: Vec<(Sampler, &[f32])>,
    choose: impl Fn(&mut (Sampler, &[f32])) -> Result<TokenId> + Send + Sync,
) -> Vec<Result<TokenId>> {
    if rows.len() > CHOSEN_BY_ONE {
        rows.par_iter_mut().map(choose).collect()
    } else {
        rows.iter_mut().map(choose).collect()
    }
}

/// A time of late.
fn blend_in(known: &mut Duration, new: Duration) {
    *known = if known.is_zero() {
        new
    } else {
        (*known * 3 + new) / 4
    };
}
