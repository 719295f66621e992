//! What the step after the next one will be, if nothing happens that nobody knows of: told to the executor, which can make it ready
//! while it runs the one before.
//!
//! It is the policy that is asked, with what is known: who is fed how much, who ends by the number of its tokens, who waits, and
//! who has come while the step runs. A stop token, or a cancelled request, makes it another step.

use super::Worker;
use crate::{
    BatchShape, Expected,
    engine::{
        job::Job,
        policy::{Change, Policy, Prompts, Running, Step, Times, Turns, Waiting, Work},
    },
};
use std::{collections::HashSet, time::Duration};

/// Requests that wait of whom it thinks, at most: those that came first.
const MOST_WAITING: usize = 32;

/// What will be when a step is done.
pub(super) struct Lookahead {
    expected: Expected,
    policy: Policy,
    turns: Turns,
    times: Times,
    slots: usize,
    running: Vec<Running>,
    waiting: Vec<Waiting>,
    /// Of whom the last token of the prompt makes the first of the answer.
    choosing: HashSet<u64>,
}

impl Worker {
    /// What comes after `step`, which `running` shows the beginning of; none where nobody wants to know.
    pub(super) fn look_ahead(&self, step: &Step, running: &[Running]) -> Option<Lookahead> {
        let expected = self.executor.expected()?;
        let waiting = self.waiting.values().filter(|job| !job.is_blocked());
        let waiting: Vec<&Job> = waiting.take(MOST_WAITING).collect();
        let jobs = self.running.values().chain(waiting.iter().copied());
        let choosing = jobs.filter(|job| job.made() == Some(0)).map(|job| job.id);
        let choosing = choosing.collect();
        let waiting = waiting.into_iter().filter_map(|job| {
            let session = self.sessions.get(&job.session)?;
            let tokens = session.unfed(job.target(session.history.len()));
            Some(awaited(job, tokens))
        });
        let lookahead = Lookahead {
            expected,
            policy: self.policy.clone(),
            turns: self.turns.after(step),
            times: self.times,
            slots: self.slots.len(),
            running: self.views_after(step, running),
            waiting: waiting.collect(),
            choosing,
        };
        lookahead.tell();
        Some(lookahead)
    }

    /// What running jobs need after a step. Tokens are made by the job's own blend, whichever has fed what came before them.
    pub(super) fn views_after(&self, step: &Step, running: &[Running]) -> Vec<Running> {
        let views = running.iter().filter_map(|view| {
            let job = self.running.get(&view.id)?;
            let mut view = after(job, view, step)?;
            if view.work == Work::Token {
                match self.blends.ready(&job.blend) {
                    Some(blend) => view.blend = blend,
                    None => view.work = Work::Unprepared,
                }
            }
            Some(view)
        });
        views.collect()
    }
}

/// What a job needs after a step; nothing if that was its end.
fn after(job: &Job, view: &Running, step: &Step) -> Option<Running> {
    let mut view = view.clone();
    let mut made = 0;
    if let Some(Prompts { parts, beside, .. }) = &step.prompts {
        match view.work {
            Work::Prompt { left, .. } => {
                let fed = parts.iter().find(|(id, _)| *id == view.id);
                let left = left - fed.map_or(0, |(_, fed)| *fed).min(left);
                view.work = Work::Prompt { left, most: left };
                if left == 0 {
                    view.work = Work::Token;
                    made += usize::from(job.made() == Some(0));
                }
            }
            Work::Token => made += usize::from(beside.contains(&view.id)),
            _ => {}
        }
    }
    if let (Some(tokens), Work::Token) = (&step.tokens, view.work)
        && tokens.ids.contains(&view.id)
    {
        made += tokens.steps;
    }
    let unmade = job.unmade().saturating_sub(made);
    if view.work == Work::Token && unmade == 0 {
        return None;
    }
    view.beside &= unmade > 1;
    Some(view)
}

fn awaited(job: &Job, tokens: usize) -> Waiting {
    Waiting {
        id: job.id,
        priority: job.priority,
        waited: Duration::ZERO,
        tokens,
    }
}

impl Lookahead {
    /// A request has come while the step runs.
    pub(super) fn came(&mut self, job: &Job) {
        if self.waiting.len() >= MOST_WAITING {
            return;
        }
        self.waiting.push(awaited(job, job.prompt.len()));
        if job.made() == Some(0) {
            self.choosing.insert(job.id);
        }
        self.tell();
    }

    /// Tells the executor.
    fn tell(&self) {
        self.expected.tell(self.next());
    }

    fn next(&self) -> Option<BatchShape> {
        let mut turns = self.turns.clone();
        let mut running = self.running.clone();
        let changes = self
            .policy
            .admit(self.slots, &running, &self.waiting, &mut turns);
        for change in changes {
            match change {
                Change::Pause(id) => running.retain(|view| view.id != id),
                Change::Start { id, level } => {
                    let started = self.waiting.iter().find(|waiting| waiting.id == id);
                    running.extend(started.map(|waiting| start(waiting, level)));
                }
            }
        }
        let step = self.policy.next(&running, &turns, self.times);
        let Some(Prompts { parts, beside, .. }) = step.prompts else {
            return step.tokens.map(|t| BatchShape::decode(t.ids.len()));
        };
        let ends = |(id, fed): &&(u64, usize)| {
            let view = running.iter().find(|view| view.id == *id);
            let left = view.map(|view| view.work);
            let all = matches!(left, Some(Work::Prompt { left, .. }) if left == *fed);
            all && self.choosing.contains(id)
        };
        let fed: usize = parts.iter().map(|(_, fed)| fed).sum();
        Some(BatchShape {
            tokens: fed + beside.len(),
            spans: parts.len() + beside.len(),
            outputs: parts.iter().filter(ends).count() + beside.len(),
        })
    }
}

/// A request that has got a slot.
fn start(waiting: &Waiting, earned: i64) -> Running {
    Running {
        id: waiting.id,
        priority: waiting.priority,
        earned,
        waited: waiting.waited,
        work: Work::Prompt {
            left: waiting.tokens,
            most: waiting.tokens,
        },
        beside: false,
        blend: 0,
        replica: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::policy::Tokens;

    fn view(id: u64, work: Work) -> Running {
        Running {
            id,
            priority: 0,
            earned: 0,
            waited: Duration::ZERO,
            work,
            beside: true,
            blend: 0,
            replica: 0,
        }
    }

    fn waits(id: u64, tokens: usize) -> Waiting {
        Waiting {
            id,
            priority: 0,
            waited: Duration::ZERO,
            tokens,
        }
    }

    /// After a step of tokens where `tokens` is set, else after one of prompts.
    fn next(
        tokens: bool,
        slots: usize,
        running: &[Running],
        waiting: &[Waiting],
        choosing: &[u64],
    ) -> Option<(usize, usize, usize)> {
        let mut turns = Turns::default();
        turns.took(&if tokens {
            let (blend, ids, steps) = (0, vec![1], 1);
            Tokens { blend, ids, steps }.into()
        } else {
            let (blend, parts, beside) = (0, vec![(1, 1)], Vec::new());
            let prompts = Prompts {
                blend,
                parts,
                beside,
            };
            prompts.into()
        });
        let policy = Policy {
            chunk: 100,
            chunk_beside: 50,
            ..Policy::default()
        };
        let lookahead = Lookahead {
            expected: Expected::default(),
            policy,
            turns,
            times: Times::default(),
            slots,
            running: running.to_vec(),
            waiting: waiting.to_vec(),
            choosing: choosing.iter().copied().collect(),
        };
        let shape = lookahead.next()?;
        Some((shape.tokens, shape.spans, shape.outputs))
    }

    #[test]
    fn the_policy_is_asked() {
        let token = |id| view(id, Work::Token);
        let prompt = |id, left| view(id, Work::Prompt { left, most: left });
        assert_eq!(next(true, 4, &[], &[], &[]), None);
        assert_eq!(
            next(true, 4, &[token(1), token(2)], &[], &[]),
            Some((2, 2, 2))
        );
        // A prompt beside tokens has its part of a chunk, and chooses a token where it ends there; so do those at their tokens.
        let beside = [token(1), prompt(2, 80), prompt(3, 7)];
        assert_eq!(next(true, 4, &beside, &[], &[2, 3]), Some((50, 3, 2)));
        // After prompts it is those at their tokens whose turn it is.
        assert_eq!(next(false, 4, &beside, &[], &[2, 3]), Some((1, 1, 1)));
        // Those that wait get the slots that are free.
        let waiting = [waits(5, 9), waits(6, 8), waits(7, 30)];
        assert_eq!(
            next(true, 3, &[token(1)], &waiting, &[5, 6, 7]),
            Some((18, 3, 3))
        );
        assert_eq!(
            next(true, 1, &[token(1)], &waiting, &[5, 6, 7]),
            Some((1, 1, 1))
        );
    }
}
