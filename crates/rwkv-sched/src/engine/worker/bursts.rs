//! What the executor is asked for at once: a chunk of prompts, tokens, or one and then the other.

use super::{Command, EngineStats, Error, Goal, Job, Worker, lookahead::Lookahead, publish};
use crate::engine::policy::{LEAST_BESIDE, Prompts, Step};
use crate::{Batch, BatchSpan, Burst, Decoding, TokenId, Wanted};
use std::{
    collections::HashSet,
    ops::ControlFlow,
    time::{Duration, Instant},
};

/// How long its parts took, as far as that can be told.
#[derive(Default)]
pub(super) struct Took {
    pub(super) chunk: Option<Duration>,
    /// A token of a prompt.
    pub(super) prompt_token: Option<Duration>,
    /// A token of each sequence.
    pub(super) token: Option<Duration>,
}

/// Prompts to be fed, and the jobs of their spans.
#[derive(Default)]
struct Chunk {
    batch: Batch,
    jobs: Vec<u64>,
    /// Those that begin with what their last logits say.
    beginning: Vec<u64>,
    /// Those that were at their tokens before, and get one more of it.
    beside: Vec<u64>,
}

impl Chunk {
    /// The jobs, and how many of their tokens are fed.
    fn parts(&self) -> impl Iterator<Item = (u64, usize)> {
        let spans = self.jobs.iter().zip(&self.batch.spans);
        spans.map(|(job, span)| (*job, span.tokens.len()))
    }

    /// Those that get a token of it.
    fn drawing(&self) -> impl Iterator<Item = &u64> {
        self.beginning.iter().chain(&self.beside)
    }

    /// It was fed.
    fn count(&self, stats: &mut EngineStats) {
        stats.chunks += u64::from(!self.jobs.is_empty());
        stats.prompt_tokens += (self.batch.tokens() - self.beside.len()) as u64;
    }

    fn fed(&self, id: u64) -> usize {
        let part = self.parts().find(|(job, _)| *job == id);
        part.map_or(0, |(_, tokens)| tokens)
    }
}

/// A sequence that gets tokens.
struct Member {
    job: u64,
    session: u64,
    made: Vec<TokenId>,
    ended: bool,
}

/// When the executor told of tokens.
struct Clock {
    started: Instant,
    first: Option<Duration>,
    last: Duration,
    told: u32,
}

impl Clock {
    fn tick(&mut self) {
        self.last = self.started.elapsed();
        self.first.get_or_insert(self.last);
        self.told += 1;
    }

    /// Of a chunk of so many tokens, if any, which drew tokens or did not.
    fn took(&self, chunk: usize, drew: bool) -> Took {
        let Some(first) = self.first else {
            return Took {
                chunk: (chunk > 0).then(|| self.started.elapsed()),
                ..Took::default()
            };
        };
        if chunk == 0 {
            return Took {
                token: self.last.checked_div(self.told),
                ..Took::default()
            };
        }
        let token = self.last.saturating_sub(first);
        let token = token.checked_div(self.told - 1);
        let in_first = token.filter(|_| !drew).unwrap_or_default();
        let all = first.saturating_sub(in_first);
        let tokens = u32::try_from(chunk).unwrap_or(u32::MAX);
        Took {
            chunk: Some(all),
            prompt_token: (chunk >= LEAST_BESIDE / 2).then(|| all / tokens),
            token,
        }
    }
}

impl Worker {
    /// Runs a step.
    pub(super) fn run_burst(&mut self, step: &Step, mut lookahead: Option<Lookahead>) -> Took {
        let chunk = step.prompts.as_ref().map(|prompts| self.chunk(prompts));
        let chunk = chunk.unwrap_or_default();
        let tokens = step.tokens.as_ref();
        let (ids, steps) = tokens.map_or((&[][..], 0), |t| (&t.ids[..], t.steps));
        let (mut sequences, mut members) = self.members(ids, &chunk);
        let going_on = members.iter().filter(|m| ids.contains(&m.job)).count();
        let draws = chunk.drawing().next().is_some();
        let spans = chunk.batch.spans.len();
        if spans == 0 && going_on == 0 {
            return Took::default();
        }
        let _prompts = (spans > 0).then(|| {
            let tokens = chunk.batch.tokens();
            tracing::debug_span!("prompts", sequences = spans, tokens).entered()
        });
        let _tokens = (!ids.is_empty())
            .then(|| tracing::debug_span!("tokens", sequences = going_on, steps).entered());
        let may_stop = self.may_stop(members.iter().take(going_on));
        let ahead = self.executor.runs_ahead();
        let stop_together = self.stop_together(going_on);
        let Self {
            executor,
            running,
            uncounted,
            inbox,
            commands,
            stats,
            published,
            ..
        } = self;
        let counted = |token: TokenId| uncounted.counts(token);
        let mut clock = Clock {
            started: Instant::now(),
            first: None,
            last: Duration::ZERO,
            told: 0,
        };
        let mut ran: u32 = 0;
        let mut handed_out = 0;
        let burst = Burst {
            prompts: &chunk.batch,
            sequences: &mut sequences,
            going_on,
            steps,
            counted: &counted,
            may_stop,
        };
        let done = executor.burst(burst, &mut |drawn| {
            let beginning = clock.told == 0 && draws;
            if clock.told == 0 && spans > 0 {
                // Not after tokens that were read.
                chunk.count(stats);
                publish(stats, published);
            }
            clock.tick();
            ran += u32::from(!beginning);
            let together = if beginning { spans } else { going_on };
            for (member, token) in members.iter_mut().zip(drawn) {
                let job = running.get_mut(&member.job).filter(|_| !member.ended);
                let (
                    Some(Job {
                        goal: Goal::Generate(making),
                        ..
                    }),
                    Some(token),
                ) = (job, *token)
                else {
                    continue;
                };
                member.made.push(token);
                handed_out += 1;
                member.ended = making.take(token, counted(token), together);
            }
            for command in commands.try_iter() {
                if let (Command::Run(job), Some(lookahead)) = (&command, &mut lookahead) {
                    lookahead.came(job);
                }
                inbox.push_back(command);
            }
            let mut stepping = members.iter().take(going_on);
            let all = stepping.clone().all(|member| member.ended);
            let any = stepping.any(|member| member.ended);
            // Where nothing runs ahead, stopping costs nothing.
            if all || (any && stop_together) || (!ahead && !inbox.is_empty()) {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        let each = chunk
            .batch
            .tokens()
            .div_ceil(self.executor.replicas().max(1));
        let took = clock.took(each, draws);
        self.stats.token_steps += u64::from(ran);
        self.stats.batched += u64::from(ran) * going_on as u64;
        self.stats.tokens += handed_out;
        self.note_made(&members);
        if clock.told == 0 && done.is_ok() {
            chunk.count(&mut self.stats);
        }
        match done {
            Ok(()) => {
                let stepping = members.iter().take(going_on);
                self.note_fed(&chunk, stepping.map(|member| (member.job, ran as usize)));
            }
            Err(error) => self.burst_failed(&chunk, &members, error),
        }
        for member in members.iter().filter(|member| member.ended) {
            self.finish(member.job);
        }
        self.finish_fed();
        took
    }

    /// So many tokens of each of these jobs, and the next token of those beside them.
    fn chunk(&self, prompts: &Prompts) -> Chunk {
        let Prompts { parts, beside, .. } = prompts;
        let mut chunk = Chunk::default();
        let tokens = beside.iter().map(|id| (*id, 1));
        for (id, count) in parts.iter().copied().chain(tokens) {
            let Some((job, session)) = self.job_and_session(id) else {
                continue;
            };
            let Some(live) = session.live else {
                continue;
            };
            let Some((_, tokens)) = session.history.run(live.fed) else {
                continue;
            };
            let tokens = tokens.get(..count).unwrap_or(tokens).to_vec();
            let ends = live.fed + tokens.len() == session.history.len();
            let draws = if beside.contains(&id) {
                chunk.beside.push(id);
                true
            } else if ends && job.made() == Some(0) {
                chunk.beginning.push(id);
                true
            } else {
                false
            };
            chunk.jobs.push(id);
            chunk.batch.spans.push(BatchSpan {
                slot: live.slot,
                tokens,
                wanted: if draws { Wanted::Last } else { Wanted::None },
            });
        }
        chunk
    }

    /// The sequences of these jobs once the prompts are fed, and then of the others that get a token of them.
    fn members(&self, ids: &[u64], chunk: &Chunk) -> (Vec<Decoding>, Vec<Member>) {
        let others = chunk.drawing().filter(|id| !ids.contains(id));
        let members = ids.iter().chain(others).filter_map(|id| {
            let (job, session) = self.job_and_session(*id)?;
            let (Some(live), Goal::Generate(making)) = (session.live, &job.goal) else {
                return None;
            };
            let token = if chunk.drawing().any(|drawing| drawing == id) {
                TokenId::default()
            } else {
                let (_, tokens) = session.history.run(live.fed + chunk.fed(*id))?;
                *tokens.first()?
            };
            let sequence = Decoding {
                slot: live.slot,
                token,
                sampler: making.sampler.clone(),
            };
            let member = Member {
                job: *id,
                session: job.session,
                made: Vec::new(),
                ended: false,
            };
            Some((sequence, member))
        });
        members.unzip()
    }

    /// Whether it is of use to break off where one of these ends: not on account of their numbers of tokens, which are known.
    fn may_stop<'a>(&self, mut members: impl ExactSizeIterator<Item = &'a Member>) -> bool {
        let together = self.stop_together(members.len());
        let stops = |member: &Member| {
            let goal = self.running.get(&member.job).map(|job| &job.goal);
            matches!(goal, Some(Goal::Generate(making)) if !making.stops.is_empty())
        };
        (together && members.any(stops)) || !self.executor.runs_ahead()
    }

    /// Sessions have more tokens.
    fn note_made(&mut self, members: &[Member]) {
        for member in members {
            let job = self.running.get(&member.job);
            let session = self.sessions.get_mut(&member.session);
            if let (Some(job), Some(session)) = (job, session) {
                session.history.extend(&member.made, &job.blend);
            }
        }
    }

    /// Slots have seen the prompts, and so many tokens of each that went on.
    fn note_fed(&mut self, chunk: &Chunk, steps: impl Iterator<Item = (u64, usize)>) {
        let prompts = chunk.parts();
        let fed: Vec<(u64, usize)> = prompts.chain(steps).collect();
        let went_on: HashSet<u64> = fed.iter().skip(chunk.jobs.len()).map(|f| f.0).collect();
        for (id, tokens) in &fed {
            if let Some(session) = self.running.get(id).map(|job| job.session) {
                self.fed(session, *tokens);
            }
        }
        for (id, _) in fed {
            let Some(session) = self.running.get(&id).map(|job| job.session) else {
                continue;
            };
            self.clear_suspicion(id);
            self.keep_passing_state(session);
            if chunk.beginning.contains(&id) && !went_on.contains(&id) {
                self.keep_before_answer(id, session);
            }
            self.keep_prefix(id);
        }
    }

    /// The states of all that were in it are lost.
    fn burst_failed(&mut self, chunk: &Chunk, members: &[Member], error: Error) {
        for member in members {
            self.release(member.session);
        }
        let goes_on = |id: &&u64| !members.iter().any(|m| m.job == **id && m.ended);
        let others = chunk.jobs.iter();
        let others = others.filter(|id| !members.iter().any(|m| m.job == **id));
        let all = members.iter().map(|member| &member.job).chain(others);
        let sequences = all.clone().count();
        let going_on: Vec<u64> = all.filter(goes_on).copied().collect();
        self.step_failed(&going_on, sequences, error);
    }
}
