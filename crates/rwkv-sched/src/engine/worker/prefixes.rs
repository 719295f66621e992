//! Prompts that begin as others did, and the states that are kept for those to come.

use super::Worker;
use crate::{Hit, engine::job::Prefix};
use std::collections::VecDeque;

impl Worker {
    /// Looks up the prompts of jobs that have just got a slot.
    pub(super) fn look_up_all(&mut self) {
        let jobs = self.running.values();
        let unknown = jobs.filter(|job| matches!(job.prefix, Prefix::Unknown));
        let unknown: Vec<u64> = unknown.map(|job| job.id).collect();
        for id in unknown {
            self.look_up(id);
        }
    }

    /// Looks up a job's prompt. What is in memory is taken at once; what is not, another thread reads.
    fn look_up(&mut self, id: u64) {
        let Some(job) = self.running.get_mut(&id) else {
            return;
        };
        let keep = VecDeque::new();
        job.prefix = Prefix::Known { keep };
        let (Some(prefixes), Some(record)) = (&self.prefixes, self.sessions.get_mut(&job.session))
        else {
            return;
        };
        let Some((blend, tokens)) = record.history.beginning() else {
            return;
        };
        let Some(key) = prefixes.key(blend) else {
            return;
        };
        let peek = prefixes.states.peek(key, tokens);
        // A session that has seen something has a state of its own.
        let latest = job.latest(record.history.len());
        let mut known = record.live.map_or(0, |live| live.fed);
        known = known.max(record.history.before(latest).map_or(0, |c| c.at));
        if known == 0 {
            self.stats.cache_lookups += 1;
            if peek.tokens > 0 && !peek.in_memory {
                let shared = peek.shared;
                job.prefix = Prefix::Restoring { shared };
                return prefixes.read(id, key, tokens);
            }
            if peek.tokens > 0 {
                let hit = prefixes.states.lookup_in_memory(key, tokens);
                known = self.start_from(id, hit);
            }
        }
        self.plan(id, known, peek.shared);
    }

    /// A state was read for a job, or could not be.
    pub(super) fn restored(&mut self, id: u64, hit: Option<Hit>) {
        let job = self.running.get(&id).or_else(|| self.waiting.get(&id));
        let Some(Prefix::Restoring { shared }) = job.map(|job| &job.prefix) else {
            return;
        };
        let shared = *shared;
        self.stats.cache_reads += u64::from(hit.is_some());
        let known = self.start_from(id, hit);
        self.plan(id, known, shared);
    }

    /// Gives a job's session the state that was found; says how much of its prompt that has seen.
    fn start_from(&mut self, id: u64, hit: Option<Hit>) -> usize {
        let job = self.running.get(&id).or_else(|| self.waiting.get(&id));
        let record = job.and_then(|job| self.sessions.get_mut(&job.session));
        let (Some(record), Some(hit)) = (record, hit) else {
            return 0;
        };
        self.stats.cache_hits += 1;
        self.stats.cached_tokens += hit.tokens as u64;
        record.history.keep(hit.tokens, hit.state);
        hit.tokens
    }

    /// Says after which tokens of a job's prompt states are to be kept: none where little is to be fed.
    fn plan(&mut self, id: u64, known: usize, shared: usize) {
        let job = self
            .running
            .get_mut(&id)
            .or_else(|| self.waiting.get_mut(&id));
        let (Some(prefixes), Some(job)) = (&self.prefixes, job) else {
            return;
        };
        let record = self.sessions.get(&job.session);
        let beginning = record.and_then(|record| record.history.beginning());
        let len = beginning.map_or(0, |(_, tokens)| tokens.len());
        let keep = prefixes.spacing.along(known..len, shared).into();
        job.prefix = Prefix::Known { keep };
    }

    /// Gives the prefix cache the state that a job's session has come to, if it is one to keep.
    pub(super) fn keep_prefix(&mut self, id: u64) {
        let Some(job) = self.running.get_mut(&id) else {
            return;
        };
        let session = job.session;
        let live = self.sessions.get(&session).and_then(|s| s.live);
        let Some(live) = live.filter(|live| job.takes_keep(live.fed)) else {
            return;
        };
        let state = match self.state_of(session, live) {
            Ok(state) => state,
            Err(error) => return tracing::warn!("a prompt's state cannot be read: {error}"),
        };
        let (Some(prefixes), Some(record)) = (&self.prefixes, self.sessions.get(&session)) else {
            return;
        };
        let Some((blend, tokens)) = record.history.beginning() else {
            return;
        };
        let (Some(key), Some(tokens)) = (prefixes.key(blend), tokens.get(..live.fed)) else {
            return;
        };
        if let Err(error) = prefixes.states.insert(key, tokens, state) {
            tracing::warn!("a prompt's state cannot be kept: {error}");
        }
    }
}
