//! What commands do to sessions.

use super::{Error, Goal, History, Job, Result, SlotId, State, Worker};
use std::sync::Arc;

/// A session as the engine keeps it.
pub(super) struct Session {
    pub(super) history: History,
    /// Where its state lies on the device, if it does.
    pub(super) live: Option<Live>,
    /// What is done for it, waiting or running.
    pub(super) job: Option<u64>,
    /// The last job, as long as it is not known how much of it was seen.
    open: Option<Open>,
    /// Nobody can ask anything of it any more.
    forgotten: bool,
    /// When its slot was used last.
    pub(super) used: u64,
}

/// A state in a slot.
#[derive(Clone, Copy)]
pub(super) struct Live {
    pub(super) slot: SlotId,
    /// The tokens that it has seen.
    pub(super) fed: usize,
}

/// Where a job began.
#[derive(Clone, Copy)]
struct Open {
    job: u64,
    /// The session's tokens before it, and with its prompt.
    before: usize,
    answer: usize,
}

impl Session {
    fn new(history: History) -> Self {
        Self {
            history,
            live: None,
            job: None,
            open: None,
            forgotten: false,
            used: 0,
        }
    }

    /// The position from which on its tokens must be kept when `seen` of its job were read.
    pub(super) fn needed(&self, seen: usize) -> usize {
        match self.open {
            Some(open) if seen == 0 => open.before,
            Some(open) => (open.answer + seen).min(self.history.len()),
            None => self.history.len(),
        }
    }

    /// Whether the state after all its tokens is there.
    fn has_state(&self) -> bool {
        let len = self.history.len();
        let kept = || self.history.before(len).filter(|kept| kept.at == len);
        self.live.is_some_and(|live| live.fed == len) || kept().is_some_and(|k| k.state.is_some())
    }

    /// How many tokens have not been fed, up to `target`, by the newest state that there is.
    pub(super) fn unfed(&self, target: usize) -> usize {
        let live = self.live.map(|live| live.fed).filter(|fed| *fed <= target);
        let fed = live.or_else(|| self.history.before(target).map(|c| c.at));
        target.saturating_sub(fed.unwrap_or(0))
    }
}

impl Worker {
    /// Takes a job in.
    pub(super) fn begin(&mut self, mut job: Job) {
        self.stats.requests += 1;
        let id = job.id;
        let session = self
            .sessions
            .entry(job.session)
            .or_insert_with(|| Session::new(History::new(None)));
        let before = session.history.len();
        session.history.extend(&job.prompt, &job.blend);
        job.prompt = Vec::new();
        let len = session.history.len();
        session.open = Some(Open {
            job: id,
            before,
            answer: len,
        });
        // Others may have all slots.
        if matches!(job.goal, Goal::Save(_)) && session.has_state() {
            self.running.insert(id, job);
            return self.finish(id);
        }
        let latest = job.latest(len);
        if job.made().is_some() && (len == 0 || session.history.before(latest).is_none()) {
            self.stats.failed += 1;
            return job.fail(Error::EmptyPrompt);
        }
        session.job = Some(id);
        self.waiting.insert(id, job);
    }

    /// Ends a job of which `seen` tokens were read; what was made beyond is undone.
    pub(super) fn close(&mut self, session: u64, job: u64, seen: usize) {
        if self.waiting.remove(&job).is_some() || self.running.remove(&job).is_some() {
            self.stats.cancelled += 1;
            tracing::debug!(session, job, seen, "cancelled");
        }
        let Some(record) = self.sessions.get_mut(&session) else {
            return;
        };
        if record.job == Some(job) {
            record.job = None;
        }
        if record.open.is_some_and(|open| open.job == job) {
            let to = record.needed(seen);
            record.open = None;
            self.truncate(session, to);
        }
        self.remove_forgotten(session);
    }

    /// A job has done what it was for.
    pub(super) fn finish(&mut self, id: u64) {
        let Some(job) = self.running.remove(&id) else {
            return;
        };
        self.stats.finished += 1;
        let session = job.session;
        if let Some(record) = self.sessions.get_mut(&session) {
            record.job = None;
        }
        match job.goal {
            Goal::Generate(_) => {}
            Goal::Feed(reply) => drop(reply.send(Ok(()))),
            Goal::Save(reply) => drop(reply.send(self.state(session))),
        }
        self.remove_forgotten(session);
    }

    /// A job cannot be done; its session goes back to what was seen of it when its reader knows.
    pub(super) fn fail(&mut self, id: u64, error: Error) {
        let job = self
            .running
            .remove(&id)
            .or_else(|| self.waiting.remove(&id));
        let Some(job) = job else {
            return;
        };
        tracing::debug!(job = id, "failed: {error}");
        self.stats.failed += 1;
        let session = job.session;
        self.release(session);
        if let Some(record) = self.sessions.get_mut(&session) {
            record.job = None;
        }
        job.fail(error);
        self.remove_forgotten(session);
    }

    /// The state after all tokens of a session, which its slot has seen.
    fn state(&mut self, session: u64) -> Result<Arc<State>> {
        self.keep_state(session)?;
        let Some(record) = self.sessions.get(&session) else {
            return Err(Error::Stopped);
        };
        let kept = record.history.before(record.history.len());
        match (kept.and_then(|c| c.state.clone()), record.live) {
            (Some(state), _) => Ok(state),
            (None, Some(live)) => Ok(Arc::new(self.executor.state(live.slot)?)),
            (None, None) => Err(Error::Stopped),
        }
    }

    pub(super) fn load(&mut self, session: u64, state: Arc<State>) {
        self.release(session);
        let record = Session::new(History::new(Some(state)));
        self.sessions.insert(session, record);
    }

    /// Makes session `to` what `from` is; both have the same states.
    pub(super) fn fork(&mut self, from: u64, to: u64) {
        if let Err(error) = self.keep_state(from) {
            // An older one will do, with more tokens to feed.
            tracing::warn!("a state that a fork should share cannot be read: {error}");
        }
        if let Some(record) = self.sessions.get(&from) {
            let record = Session::new(record.history.clone());
            self.sessions.insert(to, record);
        }
    }

    pub(super) fn rollback(&mut self, session: u64, tokens: usize) -> Result<()> {
        let (len, kept) = self
            .sessions
            .get(&session)
            .map_or((0, 0), |r| (r.history.len(), r.history.origin()));
        let to = len.checked_sub(tokens).filter(|to| *to >= kept);
        let Some(to) = to else {
            return Err(Error::Rollback {
                tokens: len,
                back: tokens,
                kept,
            });
        };
        self.truncate(session, to);
        Ok(())
    }

    pub(super) fn forget(&mut self, session: u64) {
        if let Some(record) = self.sessions.get_mut(&session) {
            record.forgotten = true;
        }
        self.remove_forgotten(session);
    }

    fn remove_forgotten(&mut self, session: u64) {
        let record = self.sessions.get(&session);
        if record.is_some_and(|record| record.forgotten && record.job.is_none()) {
            self.release(session);
            self.sessions.remove(&session);
        }
    }

    /// Makes a session forget what came after `to` tokens.
    fn truncate(&mut self, session: u64, to: usize) {
        let Some(record) = self.sessions.get_mut(&session) else {
            return;
        };
        if !record.history.truncate(to) {
            tracing::error!(session, to, "what a session should go back to is gone");
        }
        if record.live.is_some_and(|live| live.fed > to) {
            self.stats.undone += 1;
            self.release(session);
        }
    }
}
