//! Which session's state lies in which slot.

use super::{
    Job, Result, SlotId, State, Worker,
    sessions::{Live, Session},
};
use crate::{
    Error,
    engine::policy::{Change, Running, Waiting, Work},
};
use std::{sync::Arc, time::Instant};

impl Worker {
    /// Gives slots to jobs, as the policy says.
    pub(super) fn admit(&mut self) {
        if !self.may_admit() {
            return;
        }
        let now = Instant::now();
        let running = self.running_views(now);
        let waiting: Vec<Waiting> = self
            .waiting
            .values()
            .filter(|job| !job.is_blocked())
            .map(|job| {
                let session = self.sessions.get(&job.session);
                let unfed = |s: &Session| s.unfed(job.target(s.history.len()));
                Waiting {
                    id: job.id,
                    priority: job.priority,
                    waited: job.waited(now),
                    tokens: session.map_or(0, unfed),
                }
            })
            .collect();
        let changes = self
            .policy
            .admit(self.slots.len(), &running, &waiting, &mut self.turns);
        for change in changes {
            match change {
                Change::Pause(id) => self.pause(id),
                Change::Start { id, level } => {
                    if let Some(mut job) = self.waiting.remove(&id) {
                        job.level = level;
                        job.place = None;
                        self.running.insert(id, job);
                    }
                }
            }
        }
    }

    /// Whether a job that waits could get a slot: a look at thousands of them is not free.
    fn may_admit(&self) -> bool {
        let running = || self.running.values();
        let lowest = running().map(|job| job.priority).min();
        let free = self.running.len() < self.slots.len();
        let stronger = || self.waiting.values().any(|job| Some(job.priority) > lowest);
        !self.waiting.is_empty() && (free || running().any(Job::is_blocked) || stronger())
    }

    /// A running job waits again; its session's state goes to the host.
    fn pause(&mut self, id: u64) {
        if let Some(job) = self.running.remove(&id) {
            self.stats.pauses += 1;
            self.evict(job.session);
            self.waiting.insert(id, job);
        }
    }

    /// Brings the states of running jobs that have none on the device there. What cannot be brought fails.
    pub(super) fn place_all(&mut self) {
        let jobs = self.running.values().filter(|job| !job.is_restoring());
        let all: Vec<(u64, u64, usize)> = jobs
            .filter_map(|job| {
                let session = self.sessions.get(&job.session)?;
                let latest = job.latest(session.history.len());
                let there = session.live.is_some_and(|live| live.fed <= latest);
                (!there).then_some((job.id, job.session, latest))
            })
            .collect();
        for (id, session, latest) in all {
            if let Err(error) = self.place(session, latest) {
                self.fail(id, error);
            }
        }
    }

    /// Puts a state of a session into a slot: the newest at `latest` or before.
    fn place(&mut self, session: u64, latest: usize) -> Result<()> {
        self.release(session);
        let slot = self.free_slot()?;
        let Some(record) = self.sessions.get_mut(&session) else {
            return Ok(());
        };
        let Some(from) = record.history.before(latest) else {
            return Err(Error::EmptyPrompt);
        };
        match &from.state {
            Some(state) => {
                self.stats.states_written += 1;
                self.executor.set_state(slot, state)?;
            }
            None => self.executor.reset(slot)?,
        }
        let fed = from.at;
        self.clock += 1;
        record.used = self.clock;
        record.live = Some(Live { slot, fed });
        if let Some(owner) = self.slots.get_mut(slot.0 as usize) {
            *owner = Some(session);
        }
        Ok(())
    }

    /// The replica that has a slot.
    fn replica_of(&self, slot: usize) -> usize {
        slot % self.executor.replicas().max(1)
    }

    /// Of the slots that hold nothing, the first on the replica with the fewest requests.
    fn freest_slot(&self) -> Option<SlotId> {
        let mut runs = vec![0; self.executor.replicas().max(1)];
        for job in self.running.values() {
            let session = self.sessions.get(&job.session);
            let live = session.and_then(|session| session.live);
            let replica = live.map(|live| self.replica_of(live.slot.0 as usize));
            if let Some(count) = replica.and_then(|replica| runs.get_mut(replica)) {
                *count += 1;
            }
        }
        let slots = self.slots.iter().enumerate();
        let free = slots.filter(|(_, owner)| owner.is_none());
        let freest = free.min_by_key(|(slot, _)| runs.get(self.replica_of(*slot)).copied());
        freest.and_then(|(slot, _)| u32::try_from(slot).ok().map(SlotId))
    }

    /// A slot that holds nothing: that of the idle session that was used longest ago where none is free.
    pub(super) fn free_slot(&mut self) -> Result<SlotId> {
        let slots = self.slots.len();
        loop {
            if let Some(free) = self.freest_slot() {
                return Ok(free);
            }
            let idle = self.slots.iter().flatten().filter_map(|session| {
                let record = self.sessions.get(session)?;
                let runs = record
                    .job
                    .is_some_and(|job| self.running.contains_key(&job));
                (!runs).then_some((record.used, *session))
            });
            let Some((_, oldest)) = idle.min() else {
                return Err(Error::SlotRange {
                    slot: SlotId(u32::try_from(slots).unwrap_or(u32::MAX)),
                    slots,
                });
            };
            self.stats.evictions += 1;
            self.evict(oldest);
        }
    }

    /// Frees a session's slot, and keeps the state on the host.
    fn evict(&mut self, session: u64) {
        if let Err(error) = self.keep_state(session) {
            // An older one will do, with more tokens to feed.
            tracing::warn!("a state that leaves its slot cannot be read: {error}");
        }
        self.release(session);
    }

    /// Frees a session's slot.
    pub(super) fn release(&mut self, session: u64) {
        let live = self.sessions.get_mut(&session).and_then(|s| s.live.take());
        if let Some(owner) = live.and_then(|live| self.slots.get_mut(live.slot.0 as usize)) {
            *owner = None;
        }
    }

    /// Keeps the state in a session's slot on the host too.
    pub(super) fn keep_state(&mut self, session: u64) -> Result<()> {
        let Some(record) = self.sessions.get_mut(&session) else {
            return Ok(());
        };
        let Some(live) = record.live else {
            return Ok(());
        };
        let kept = record.history.before(live.fed).map(|c| c.at);
        if kept == Some(live.fed) {
            return Ok(());
        }
        let state = Arc::new(self.executor.state(live.slot)?);
        self.stats.states_read += 1;
        record.history.keep(live.fed, state);
        let job = record.job.and_then(|job| self.running.get(&job));
        let needed = record.needed(job.map_or(0, Job::seen));
        // What the slot has seen is not beyond reach, nor is the last token, whose logits may be asked for again.
        let reachable = live.fed.min(record.history.len().saturating_sub(1));
        let needed = needed.min(reachable);
        record.history.trim(self.options.checkpoints, needed);
        Ok(())
    }

    /// The state in a slot, from the host if it is there too.
    pub(super) fn state_of(&mut self, session: u64, live: Live) -> Result<Arc<State>> {
        let record = self.sessions.get(&session);
        let kept = record.and_then(|record| record.history.before(live.fed));
        let kept = kept.filter(|kept| kept.at == live.fed);
        if let Some(state) = kept.and_then(|kept| kept.state.clone()) {
            return Ok(state);
        }
        self.stats.states_read += 1;
        Ok(Arc::new(self.executor.state(live.slot)?))
    }

    /// Keeps states at intervals of a session's tokens.
    pub(super) fn keep_passing_state(&mut self, session: u64) {
        let Some(record) = self.sessions.get(&session) else {
            return;
        };
        let Some(live) = record.live else {
            return;
        };
        let kept = record.history.before(live.fed).map_or(0, |c| c.at);
        let due = live.fed - kept >= self.options.checkpoint_every.max(1);
        if due && let Err(error) = self.keep_state(session) {
            tracing::warn!("a state cannot be kept: {error}");
        }
    }

    /// Keeps the state before a job's first token, if the session may go back to it.
    pub(super) fn keep_before_answer(&mut self, id: u64, session: u64) {
        let rewinds = self.running.get(&id).is_some_and(Job::rewinds);
        if rewinds && let Err(error) = self.keep_state(session) {
            tracing::warn!("a state cannot be kept: {error}");
        }
    }

    /// The running jobs as the policy sees them.
    pub(super) fn running_views(&mut self, now: Instant) -> Vec<Running> {
        let mut views = Vec::with_capacity(self.running.len());
        for job in self.running.values() {
            let Some(session) = self.sessions.get(&job.session) else {
                continue;
            };
            let history = &session.history;
            let target = job.target(history.len());
            let fed = session
                .live
                .map_or(target - session.unfed(target), |l| l.fed);
            let (blend, run) = history.run(fed).unwrap_or((&job.blend, &[]));
            let number = self.blends.number(blend);
            let to_keep = job.keeps_next(fed).map_or(usize::MAX, |at| at - fed);
            let left = target.saturating_sub(fed);
            let work = if job.is_restoring() {
                Work::Restoring
            } else if !self.blends.is_ready(number) {
                Work::Unprepared
            } else if left > 0 {
                let most = left.min(run.len()).min(to_keep);
                Work::Prompt { left, most }
            } else if job.is_blocked() {
                Work::Blocked
            } else {
                Work::Token
            };
            let slot = session.live.map_or(0, |live| live.slot.0 as usize);
            views.push(Running {
                replica: self.replica_of(slot),
                id: job.id,
                priority: job.priority,
                earned: job.level,
                waited: job.waited(now),
                work,
                beside: self.executor.draws() && job.unmade() > 1,
                blend: number,
            });
        }
        views
    }
}
