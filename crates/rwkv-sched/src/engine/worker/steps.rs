//! Steps: chunks of prompts, and tokens of those whose prompts are done.

use super::{Error, Job, Worker};
use crate::engine::policy::{Running, Step, Tokens, Work};
use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

/// Of so few sequences, all stop when one of them ends: going back together costs less than doing without one's state.
const FEW: usize = 2;

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
        if let Some(tokens) = &mut step.tokens {
            tokens.steps = self.steps_with_work(&tokens.ids, tokens.steps, &[]);
        }
        let blend = step.blend();
        let prepares = self.prepare_blends(&used, blend.is_none());
        let changed = self.running.len() != before;
        let Some(blend) = blend else {
            return prepares || changed;
        };
        if !self.activate(blend) {
            return true;
        }
        if step.tokens.is_none() {
            step.tokens = self.tokens_after(&step, &views);
        }
        let ahead = self.look_ahead(&step, &views);
        self.turns.took(&step);
        let started = Instant::now();
        let took = self.run_burst(&step, ahead);
        blend_in(&mut self.times.chunk, took.chunk);
        blend_in(&mut self.times.prompt_token, took.prompt_token);
        blend_in(&mut self.times.token, took.token);
        self.stats.step_time += started.elapsed();
        true
    }

    /// Jobs that only feed tokens and have none left are done.
    pub(super) fn finish_fed(&mut self) {
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

    /// The tokens whose turn it is after a chunk of prompts, if they can be made at once with it, by the same blend. Whoever gets its
    /// first token of the chunk has no more of them where somebody wants the state between the two.
    fn tokens_after(&self, step: &Step, views: &[Running]) -> Option<Tokens> {
        let prompts = step.prompts.as_ref()?;
        let begins = |id: &u64| {
            let (job, session) = self.job_and_session(*id)?;
            let (_, fed) = prompts.parts.iter().find(|(part, _)| part == id)?;
            (job.made() == Some(0) && session.unfed(session.history.len()) == *fed).then_some(job)
        };
        let parts = prompts.parts.iter();
        let beginning: Vec<&Job> = parts.filter_map(|(id, _)| begins(id)).collect();
        let after = self.views_after(step, views);
        let turns = self.turns.after(step);
        let mut next = self.policy.next(&after, &turns, self.times).tokens?;
        next.ids.retain(|id| {
            let mut begins = beginning.iter().filter(|job| job.id == *id);
            !begins.any(|job| job.rewinds())
        });
        if next.blend != prompts.blend || next.ids.is_empty() {
            return None;
        }
        let beginning = beginning.iter().map(|job| &job.id);
        let drawn: Vec<u64> = beginning.chain(&prompts.beside).copied().collect();
        next.steps = self.steps_with_work(&next.ids, next.steps, &drawn);
        Some(next)
    }

    /// Whether all of so many sequences stop when one of them ends.
    pub(super) fn stop_together(&self, sequences: usize) -> bool {
        !self.executor.runs_ahead() || sequences <= FEW
    }

    /// Of `steps` tokens for each of these jobs, those that there is anything to make for: beyond the first end where all stop
    /// together, else beyond the last, there is nothing. Those that are `drawn` have got one when the steps begin.
    fn steps_with_work(&self, ids: &[u64], steps: usize, drawn: &[u64]) -> usize {
        let left = ids.iter().filter_map(|id| {
            let job = self.running.get(id)?;
            let left = job.unmade().min(job.room());
            let drawn = usize::from(drawn.contains(id));
            Some(left.saturating_sub(drawn).max(1))
        });
        let most = if self.stop_together(ids.len()) {
            left.min()
        } else {
            left.max()
        };
        most.map_or(0, |most| steps.min(most))
    }

    pub(super) fn job_and_session(&self, id: u64) -> Option<(&Job, &super::Session)> {
        let job = self.running.get(&id)?;
        Some((job, self.sessions.get(&job.session)?))
    }

    /// A session's slot has seen more tokens. One that has seen more than the session is of no use.
    pub(super) fn fed(&mut self, session: u64, tokens: usize) {
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

    /// A step of these jobs among `sequences` failed, and their states are lost. Where there were several, each is tried
    /// again alone; whoever fails alone is told.
    pub(super) fn step_failed(&mut self, ids: &[u64], sequences: usize, error: Error) {
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
    pub(super) fn clear_suspicion(&mut self, id: u64) {
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

/// A time of late, if there is a new one.
fn blend_in(known: &mut Duration, new: Option<Duration>) {
    let Some(new) = new else {
        return;
    };
    *known = if known.is_zero() {
        new
    } else {
        (*known * 3 + new) / 4
    };
}
