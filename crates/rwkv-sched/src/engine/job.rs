//! A request as the engine works at it.

use super::{
    blend::Blend,
    outbox::Writer,
    request::{End, Token},
};
use crate::{Error, Result, State, TokenId, sampling::Sampler};
use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// Something that a session waits for.
pub(super) struct Job {
    /// Later ones have larger numbers.
    pub(super) id: u64,
    pub(super) session: u64,
    pub(super) priority: i32,
    pub(super) arrived: Instant,
    /// Its place in the queue, until it has a slot.
    pub(super) place: Option<OwnedSemaphorePermit>,
    pub(super) blend: Blend,
    pub(super) prompt: Vec<TokenId>,
    pub(super) goal: Goal,
    /// By which it got its slot.
    pub(super) level: i64,
    /// A step that held it and others failed: until so many tokens of its session are fed it runs alone, to see whose fault
    /// it is.
    pub(super) alone: usize,
    pub(super) prefix: Prefix,
}

/// What is known of its prompt's beginning in the prefix cache.
#[derive(Default)]
pub(super) enum Prefix {
    #[default]
    Unknown,
    /// A state is being read. `shared` is how much of the prompt others have in common with it.
    Restoring { shared: usize },
    /// After so many tokens of its session states are to be kept, ascending.
    Known { keep: VecDeque<usize> },
}

/// What it is for.
pub(super) enum Goal {
    Generate(Making),
    /// That its tokens are fed.
    Feed(oneshot::Sender<Result<()>>),
    /// The state after all tokens.
    Save(oneshot::Sender<Result<Arc<State>>>),
}

/// Tokens that are generated.
pub(super) struct Making {
    pub(super) sampler: Sampler,
    pub(super) made: usize,
    pub(super) most: usize,
    /// Sorted.
    pub(super) stops: Vec<TokenId>,
    /// Whether the state before the first token is kept.
    pub(super) rewinds: bool,
    pub(super) writer: Writer,
}

impl Making {
    /// Hands out a token that was chosen in a step of `batch` sequences; says whether it was the last one.
    pub(super) fn take(&mut self, id: TokenId, counted: bool, batch: usize) -> bool {
        self.sampler.drawn(id, counted);
        let index = self.made;
        self.made += 1;
        let end = if self.stops.binary_search(&id).is_ok() {
            Some(End::Stop)
        } else {
            (self.made >= self.most).then_some(End::Length)
        };
        self.writer.write(Ok(Token {
            id,
            index,
            batch,
            end,
        }));
        end.is_some()
    }
}

impl Job {
    /// Tokens made so far; none for what makes no tokens.
    pub(super) fn made(&self) -> Option<usize> {
        match &self.goal {
            Goal::Generate(making) => Some(making.made),
            _ => None,
        }
    }

    /// Tokens that it may still get.
    pub(super) fn unmade(&self) -> usize {
        match &self.goal {
            Goal::Generate(making) => making.most.saturating_sub(making.made),
            _ => 0,
        }
    }

    /// Those of them that are made before somebody reads.
    pub(super) fn room(&self) -> usize {
        match &self.goal {
            Goal::Generate(making) => making.writer.0.room(),
            _ => 0,
        }
    }

    /// Of a session's `len` tokens, how many are to be fed as a prompt: the last token made is fed by the step that makes
    /// the next.
    pub(super) fn target(&self, len: usize) -> usize {
        match self.made() {
            Some(made) if made > 0 => len.saturating_sub(1),
            _ => len,
        }
    }

    /// The latest state that it can begin with: logits come of a token that is fed.
    pub(super) fn latest(&self, len: usize) -> usize {
        match self.goal {
            Goal::Generate(_) => len.saturating_sub(1),
            _ => len,
        }
    }

    /// Whether the state before its first token is kept.
    pub(super) fn rewinds(&self) -> bool {
        matches!(&self.goal, Goal::Generate(making) if making.rewinds)
    }

    /// Whether nobody reads what it makes.
    pub(super) fn is_blocked(&self) -> bool {
        match &self.goal {
            Goal::Generate(making) => making.made > 0 && !making.writer.0.has_room(),
            _ => false,
        }
    }

    /// Its tokens that were read.
    pub(super) fn seen(&self) -> usize {
        match &self.goal {
            Goal::Generate(making) => making.writer.0.seen(),
            _ => 0,
        }
    }

    /// Whether its state is being read.
    pub(super) fn is_restoring(&self) -> bool {
        matches!(self.prefix, Prefix::Restoring { .. })
    }

    /// Of `fed` tokens and more, the next number of them after which a state is to be kept.
    pub(super) fn keeps_next(&self, fed: usize) -> Option<usize> {
        match &self.prefix {
            Prefix::Known { keep } => keep.iter().copied().find(|at| *at > fed),
            _ => None,
        }
    }

    /// Whether the state after `fed` tokens is to be kept; says so once.
    pub(super) fn takes_keep(&mut self, fed: usize) -> bool {
        let Prefix::Known { keep } = &mut self.prefix else {
            return false;
        };
        let mut due = false;
        while let Some(at) = keep.pop_front_if(|at| *at <= fed) {
            due = at == fed;
        }
        due
    }

    pub(super) fn waited(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.arrived)
    }

    /// Ends it with an error.
    pub(super) fn fail(self, error: Error) {
        match self.goal {
            Goal::Generate(making) => making.writer.write(Err(error)),
            // Whoever asked may have gone.
            Goal::Feed(reply) => drop(reply.send(Err(error))),
            Goal::Save(reply) => drop(reply.send(Err(error))),
        }
    }
}
