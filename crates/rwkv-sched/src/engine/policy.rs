//! What runs next: which requests have slots, and what a step holds. Nothing here runs anything or looks at a clock.
//!
//! - Prompts and tokens take turns: after a chunk of prompts, every sequence that is at its tokens gets some before the
//!   next chunk, and one in the chunk's own step. So a token waits for one chunk at most.
//! - The longest-waiting prompt has half of a chunk, the shortest prompts have the other half; and of the slots that come
//!   free, every second goes to whoever waited longest, every second to the shortest prompt. So neither a flood of long
//!   prompts nor one of short ones starves the others.
//! - Waiting raises the priority, a level for each [`Policy::ageing`]; who has got a slot by that keeps it from requests of
//!   no more than that level.
//! - Blends of adapters take turns, the one that was served longest ago first.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap, HashSet},
    time::Duration,
};

/// How an engine shares its steps out.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Tokens of prompts in one step, at most; and never more than suits the executor
    /// ([`Executor::chunk`](crate::Executor::chunk)) at the time. For each device: each of several [replicas](crate::Executor::replicas)
    /// has as many, and they are as many times more as a batch goes through [stages](crate::Executor::stages).
    pub chunk: usize,
    /// The same while other sequences wait for their next token.
    pub chunk_beside: usize,
    /// And such a chunk is no longer than takes about as long as so many steps of tokens: by so much more than usual a token may
    /// be late. It may always have 128 tokens.
    pub chunk_steps: u32,
    /// Waiting this long is worth one level of priority.
    pub ageing: Duration,
    /// About how long tokens may be made before anything else is looked at: on a GPU, which runs ahead, a request that comes then
    /// waits for them until it joins, and for the chunk of prompts before them.
    pub burst: Duration,
    /// And at most so many tokens of each sequence.
    pub burst_steps: usize,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            chunk: 2048,
            chunk_beside: 512,
            chunk_steps: 4,
            ageing: Duration::from_secs(2),
            burst: Duration::from_millis(25),
            burst_steps: 64,
        }
    }
}

/// Tokens of a chunk beside others at least, however long they take: shorter ones cost nearly as much.
pub(super) const LEAST_BESIDE: usize = 128;

/// Tokens of each sequence between two chunks of prompts, at most.
const BETWEEN_CHUNKS: usize = 8;

/// Of so many slots, all but one may be taken by prompts of more than a chunk.
const SHARE_FOR_SHORT: usize = 4;

/// A request without a slot.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    /// Later requests have larger numbers.
    pub(super) id: u64,
    pub(super) priority: i32,
    pub(super) waited: Duration,
    /// To feed until its next token.
    pub(super) tokens: usize,
}

/// A request with a slot.
#[derive(Clone, Debug)]
pub(super) struct Running {
    pub(super) id: u64,
    pub(super) priority: i32,
    /// The level by which it got its slot.
    pub(super) earned: i64,
    pub(super) waited: Duration,
    pub(super) work: Work,
    /// Whether it may have a token in a chunk of prompts. Whoever gets its last one gets it of a step of tokens, since nobody goes
    /// on without it there.
    pub(super) beside: bool,
    /// Whose weights it runs with next.
    pub(super) blend: u64,
    /// The replica whose slot it has.
    pub(super) replica: usize,
}

/// What a request needs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Tokens to feed: until its next token, and in the next step at most.
    Prompt { left: usize, most: usize },
    /// One more token.
    Token,
    /// Nothing till somebody reads what it made.
    Blocked,
    /// Its blend is not ready.
    Unprepared,
    /// Its state is being read from a store.
    Restoring,
}

/// What changes about the slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// The request loses its slot and waits.
    Pause(u64),
    /// The request gets a slot, by this level.
    Start { id: u64, level: i64 },
}

/// What a step holds: a chunk of prompts, tokens, or one and then the other. The policy asks for one of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) prompts: Option<Prompts>,
    pub(super) tokens: Option<Tokens>,
}

/// So many tokens of these requests, and a token more of each of those beside them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Prompts {
    pub(super) blend: u64,
    pub(super) parts: Vec<(u64, usize)>,
    pub(super) beside: Vec<u64>,
}

/// So many tokens more of each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tokens {
    pub(super) blend: u64,
    pub(super) ids: Vec<u64>,
    pub(super) steps: usize,
}

impl Step {
    /// The blend that it runs with, if it holds anything.
    pub(super) fn blend(&self) -> Option<u64> {
        let prompts = self.prompts.as_ref().map(|prompts| prompts.blend);
        prompts.or(self.tokens.as_ref().map(|tokens| tokens.blend))
    }
}

impl From<Prompts> for Step {
    fn from(prompts: Prompts) -> Self {
        Self {
            prompts: Some(prompts),
            tokens: None,
        }
    }
}

impl From<Tokens> for Step {
    fn from(tokens: Tokens) -> Self {
        Self {
            prompts: None,
            tokens: Some(tokens),
        }
    }
}

/// How long steps take.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Times {
    /// A chunk of prompts.
    pub(super) chunk: Duration,
    /// A token of a prompt, in a chunk that is not short.
    pub(super) prompt_token: Duration,
    /// A token of each sequence.
    pub(super) token: Duration,
}

/// Whose turn it was.
#[derive(Clone, Debug, Default)]
pub(super) struct Turns {
    clock: u64,
    last_chunk: u64,
    /// When each blend was served last.
    prompts: HashMap<u64, u64>,
    tokens: HashMap<u64, u64>,
    started: u64,
}

impl Turns {
    /// The step is taken.
    pub(super) fn took(&mut self, step: &Step) {
        if let Some(Prompts { blend, .. }) = step.prompts {
            self.clock += 1;
            self.last_chunk = self.clock;
            self.prompts.insert(blend, self.clock);
        }
        if let Some(Tokens { blend, .. }) = step.tokens {
            self.clock += 1;
            self.tokens.insert(blend, self.clock);
        }
    }

    /// What they are when the step is taken.
    pub(super) fn after(&self, step: &Step) -> Self {
        let mut turns = self.clone();
        turns.took(step);
        turns
    }

    /// Only these blends are left.
    pub(super) fn retain(&mut self, blends: &HashSet<u64>) {
        self.prompts.retain(|blend, _| blends.contains(blend));
        self.tokens.retain(|blend, _| blends.contains(blend));
    }

    fn served(turns: &HashMap<u64, u64>, blend: u64) -> u64 {
        turns.get(&blend).copied().unwrap_or(0)
    }

    /// The one of `blends` that was served longest ago.
    fn next(turns: &HashMap<u64, u64>, blends: impl Iterator<Item = u64>) -> Option<u64> {
        blends.min_by_key(|blend| (Self::served(turns, *blend), *blend))
    }
}

impl Policy {
    /// For an executor that takes chunks of so many tokens, and cuts a batch by itself that goes through so many stages.
    pub(super) fn fitted(&self, chunk: usize, stages: usize) -> Self {
        let stages = stages.max(1);
        Self {
            chunk: self.chunk.clamp(1, chunk.max(1)).saturating_mul(stages),
            chunk_beside: self.chunk_beside.saturating_mul(stages),
            ..self.clone()
        }
    }

    /// The priority of a request that has waited so long.
    pub(super) fn level(&self, priority: i32, waited: Duration) -> i64 {
        let ageing = self.ageing.as_nanos().max(1);
        let levels = waited.as_nanos() / ageing;
        i64::from(priority) + i64::try_from(levels).unwrap_or(i64::from(u32::MAX))
    }

    /// Which requests get slots, and which lose theirs, in this order.
    pub(super) fn admit(
        &self,
        slots: usize,
        running: &[Running],
        waiting: &[Waiting],
        turns: &mut Turns,
    ) -> Vec<Change> {
        let mut free = slots.saturating_sub(running.len());
        if waiting.is_empty() {
            return Vec::new();
        }
        let most_long = match slots / SHARE_FOR_SHORT {
            0 if slots > 1 => slots - 1,
            kept => slots - kept,
        };
        if free == 0 {
            let changed = self.replace(running, waiting, most_long, turns);
            return changed.map_or_else(Vec::new, Vec::from);
        }
        let mut changes = Vec::new();
        let mut long = running.iter().filter(|r| self.is_long(r.work)).count();
        let mut left: Vec<&Waiting> = waiting.iter().collect();
        while free > 0 {
            let fits = |w: &&&Waiting| long < most_long || w.tokens <= self.chunk;
            let Some(first) = self.first(&left, fits, turns.started) else {
                break;
            };
            left.retain(|w| w.id != first.id);
            long += usize::from(first.tokens > self.chunk);
            free -= 1;
            changes.push(self.start(first, turns));
        }
        changes
    }

    /// Whether a prompt has more left than a step takes.
    fn is_long(&self, work: Work) -> bool {
        matches!(work, Work::Prompt { left, .. } if left > self.chunk)
    }

    fn start(&self, waiting: &Waiting, turns: &mut Turns) -> Change {
        turns.started += 1;
        Change::Start {
            id: waiting.id,
            level: self.level(waiting.priority, waiting.waited),
        }
    }

    /// Who loses a slot, and who gets it, where there are no others: of whoever there is room for once it is free, one that
    /// is stronger, or anyone in the place of a request whose reader does not read.
    fn replace(
        &self,
        running: &[Running],
        waiting: &[Waiting],
        most_long: usize,
        turns: &mut Turns,
    ) -> Option<[Change; 2]> {
        let blocked = running.iter().find(|r| r.work == Work::Blocked);
        let weakest = || {
            running
                .iter()
                .min_by_key(|r| (r.priority, r.earned, Reverse(r.id)))
        };
        let victim = blocked.or_else(weakest)?;
        let others = running.iter().filter(|r| r.id != victim.id);
        let long = others.filter(|r| self.is_long(r.work)).count();
        let gets_it = |w: &&Waiting| {
            let stronger =
                w.priority > victim.priority && self.level(w.priority, w.waited) > victim.earned;
            let fits = long < most_long || w.tokens <= self.chunk;
            fits && (stronger || blocked.is_some())
        };
        let able: Vec<&Waiting> = waiting.iter().filter(gets_it).collect();
        let first = self.first(&able, |_| true, turns.started)?;
        Some([Change::Pause(victim.id), self.start(first, turns)])
    }

    /// Who gets the next slot.
    fn first<'a>(
        &self,
        waiting: &[&'a Waiting],
        fits: impl Fn(&&&'a Waiting) -> bool,
        turn: u64,
    ) -> Option<&'a Waiting> {
        let fitting = || waiting.iter().filter(&fits).copied();
        if turn.is_multiple_of(2) {
            return fitting().min_by_key(|w| (Reverse(self.level(w.priority, w.waited)), w.id));
        }
        let highest = fitting().map(|w| w.priority).max()?;
        let highest = fitting().filter(|w| w.priority == highest);
        highest.min_by_key(|w| (w.tokens, w.id))
    }

    /// What the next step holds.
    pub(super) fn next(&self, running: &[Running], turns: &Turns, times: Times) -> Step {
        let at_tokens = || running.iter().filter(|r| r.work == Work::Token);
        let at_prompts = || {
            running
                .iter()
                .filter(|r| matches!(r.work, Work::Prompt { .. }))
        };
        let prompting = Turns::next(&turns.prompts, at_prompts().map(|r| r.blend));
        let owed = at_tokens().any(|r| Turns::served(&turns.tokens, r.blend) <= turns.last_chunk);
        if let (Some(blend), false) = (prompting, owed) {
            let of_blend = || at_prompts().filter(|r| r.blend == blend);
            let beside: Vec<&Running> = at_tokens()
                .filter(|r| r.blend == blend && r.beside)
                .collect();
            let most = if at_tokens().next().is_some() {
                self.chunk.min(self.chunk_beside).min(self.in_time(times))
            } else {
                self.chunk
            };
            let replicas: BTreeSet<usize> = of_blend().map(|r| r.replica).collect();
            let share = |replica| {
                let others = beside.iter().filter(|r| r.replica == replica).count();
                let budget = most.saturating_sub(others).max(1);
                self.share(of_blend().filter(|r| r.replica == replica), budget)
            };
            let prompts = Prompts {
                blend,
                parts: replicas.into_iter().flat_map(share).collect(),
                beside: beside.iter().map(|r| r.id).collect(),
            };
            return prompts.into();
        }
        let Some(blend) = Turns::next(&turns.tokens, at_tokens().map(|r| r.blend)) else {
            return Step::default();
        };
        let alone = at_tokens().all(|r| r.blend == blend);
        let of_blend = at_tokens().filter(|r| r.blend == blend);
        let tokens = Tokens {
            blend,
            ids: of_blend.map(|r| r.id).collect(),
            steps: self.steps(prompting.is_some(), alone, times),
        };
        tokens.into()
    }

    /// Tokens of a chunk for which nobody waits longer than for so many steps.
    fn in_time(&self, times: Times) -> usize {
        if times.prompt_token.is_zero() || times.token.is_zero() {
            return usize::MAX;
        }
        let time = times.token.saturating_mul(self.chunk_steps);
        let fit = time.as_nanos() / times.prompt_token.as_nanos();
        usize::try_from(fit).unwrap_or(usize::MAX).max(LEAST_BESIDE)
    }

    /// How many tokens each sequence gets: as many as take as long as a chunk where one waits, else as many as fit a burst.
    fn steps(&self, prompts_wait: bool, alone: bool, times: Times) -> usize {
        let time = if prompts_wait {
            times.chunk.min(self.burst)
        } else {
            self.burst
        };
        let most = if prompts_wait || !alone {
            BETWEEN_CHUNKS.min(self.burst_steps)
        } else {
            self.burst_steps
        };
        let fit = if times.token.is_zero() {
            1
        } else {
            time.as_nanos() / times.token.as_nanos()
        };
        usize::try_from(fit)
            .unwrap_or(usize::MAX)
            .clamp(1, most.max(1))
    }

    /// Shares so many tokens out among the prompts of a replica.
    fn share<'a>(
        &self,
        prompts: impl Iterator<Item = &'a Running>,
        mut budget: usize,
    ) -> Vec<(u64, usize)> {
        let mut sorted: Vec<(&Running, usize, usize)> = prompts
            .filter_map(|r| match r.work {
                Work::Prompt { left, most } => Some((r, left, most)),
                _ => None,
            })
            .collect();
        sorted.sort_by_key(|(r, left, _)| (*left, r.id));
        let first = sorted
            .iter()
            .min_by_key(|(r, ..)| (Reverse(self.level(r.priority, r.waited)), r.id));
        let Some(&(first, _, most)) = first else {
            return Vec::new();
        };
        let mut firsts = most.min(budget.div_ceil(2));
        budget -= firsts;
        let mut parts = Vec::new();
        for (prompt, _, most) in &sorted {
            let part = (*most).min(budget);
            if prompt.id != first.id && part > 0 {
                budget -= part;
                parts.push((prompt.id, part));
            }
        }
        firsts += (most - firsts).min(budget);
        parts.push((first.id, firsts));
        parts
    }
}

#[cfg(test)]
mod tests;
