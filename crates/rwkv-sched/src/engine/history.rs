//! What a session has seen, and the states that it can go back to.

use super::blend::Blend;
use crate::{State, TokenId};
use std::{collections::VecDeque, sync::Arc};

/// The tokens of a session since the oldest state that is kept, and such states. So the state after any of the tokens
/// can be had: the newest state before it, and the tokens since fed again.
#[derive(Clone)]
pub(super) struct History {
    tokens: Vec<TokenId>,
    /// Which blend feeds the tokens, from which position on.
    blends: Vec<(usize, Blend)>,
    /// By position, at least one; the first lies before the first token.
    checkpoints: VecDeque<Checkpoint>,
}

/// A state on the host.
#[derive(Clone)]
pub(super) struct Checkpoint {
    /// Tokens that the session had seen.
    pub(super) at: usize,
    /// None is the state that sequences begin with.
    pub(super) state: Option<Arc<State>>,
}

impl History {
    /// A session that begins with `state`, or with what sequences begin with.
    pub(super) fn new(state: Option<Arc<State>>) -> Self {
        Self {
            tokens: Vec::new(),
            blends: Vec::new(),
            checkpoints: VecDeque::from([Checkpoint { at: 0, state }]),
        }
    }

    /// The position of the first token that is kept.
    pub(super) fn origin(&self) -> usize {
        self.checkpoints.front().map_or(0, |c| c.at)
    }

    /// How many tokens the session has seen.
    pub(super) fn len(&self) -> usize {
        self.origin() + self.tokens.len()
    }

    /// Adds tokens that `blend` feeds.
    pub(super) fn extend(&mut self, tokens: &[TokenId], blend: &Blend) {
        let last = self.blends.last();
        if !tokens.is_empty() && last.is_none_or(|(_, last)| last != blend) {
            self.blends.push((self.len(), blend.clone()));
        }
        self.tokens.extend_from_slice(tokens);
    }

    /// The tokens from `from` on that one blend feeds, and that blend; none at the end.
    pub(super) fn run(&self, from: usize) -> Option<(&Blend, &[TokenId])> {
        let next = self.blends.partition_point(|(start, _)| *start <= from);
        let end = self
            .blends
            .get(next)
            .map_or(self.len(), |(start, _)| *start);
        let (_, blend) = self.blends.get(next.checked_sub(1)?)?;
        let tokens = self
            .tokens
            .get(from.checked_sub(self.origin())?..end - self.origin())?;
        (!tokens.is_empty()).then_some((blend, tokens))
    }

    /// The tokens from the beginning on that one blend feeds, and that blend, if they are all here and begin where sequences
    /// begin.
    pub(super) fn beginning(&self) -> Option<(&Blend, &[TokenId])> {
        let first = self.checkpoints.front()?;
        if first.at > 0 || first.state.is_some() {
            return None;
        }
        self.run(0)
    }

    /// The newest state at `to` or before.
    pub(super) fn before(&self, to: usize) -> Option<&Checkpoint> {
        self.checkpoints.iter().rev().find(|c| c.at <= to)
    }

    /// Keeps the state after `at` tokens.
    pub(super) fn keep(&mut self, at: usize, state: Arc<State>) {
        let place = self.checkpoints.partition_point(|c| c.at < at);
        if self.checkpoints.get(place).is_none_or(|c| c.at > at) && place > 0 {
            let state = Some(state);
            self.checkpoints.insert(place, Checkpoint { at, state });
        }
    }

    /// Drops states until `states` are left, the oldest first and the tokens before them; one from which position
    /// `needed` can be had stays, and the newest does.
    pub(super) fn trim(&mut self, states: usize, needed: usize) {
        while self
            .checkpoints
            .iter()
            .filter(|c| c.state.is_some())
            .count()
            > states.max(1)
        {
            let next = self.checkpoints.get(1).map(|c| c.at);
            match next {
                Some(next) if next <= needed => {
                    self.tokens.drain(..next - self.origin());
                    self.checkpoints.pop_front();
                    let keep = self.blends.partition_point(|(start, _)| *start <= next);
                    self.blends.drain(..keep.saturating_sub(1));
                }
                Some(_) if self.checkpoints.len() > 2 => drop(self.checkpoints.remove(1)),
                _ => return,
            }
        }
    }

    /// Forgets what came after `to` tokens; says whether it could.
    pub(super) fn truncate(&mut self, to: usize) -> bool {
        let Some(kept) = to.checked_sub(self.origin()) else {
            return false;
        };
        self.tokens.truncate(kept);
        self.checkpoints.retain(|c| c.at <= to);
        self.blends.retain(|(start, _)| *start < to);
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::cast_possible_truncation,
        reason = "tests"
    )]

    use super::*;
    use proptest::prelude::*;

    fn state(value: usize) -> Arc<State> {
        Arc::new(State {
            wkv: vec![vec![value as f32]],
            shift: Vec::new(),
        })
    }

    #[derive(Clone, Debug)]
    enum Change {
        Extend(usize),
        Keep(usize),
        Trim(usize, usize),
        Truncate(usize),
    }

    fn change() -> impl Strategy<Value = Change> {
        prop_oneof![
            (1..20usize).prop_map(Change::Extend),
            (0..100usize).prop_map(Change::Keep),
            (1..4usize, 0..100usize).prop_map(|(states, needed)| Change::Trim(states, needed)),
            (0..100usize).prop_map(Change::Truncate),
        ]
    }

    proptest! {
        /// Whatever is done, each position from the origin on can be reached from a state of its own past, by the
        /// tokens that a plain list has there; and what is needed is never dropped.
        #[test]
        fn every_position_can_be_reached(changes in prop::collection::vec(change(), 1..60)) {
            let mut history = History::new(None);
            let mut all: Vec<u32> = Vec::new();
            let percent = |share: usize, of: usize| of * share / 100;
            for change in changes {
                match change {
                    Change::Extend(count) => {
                        let from = all.len() as u32;
                        let tokens: Vec<u32> = (from..from + count as u32).collect();
                        history.extend(&tokens, &Blend::default());
                        all.extend(tokens);
                    }
                    Change::Keep(share) => {
                        let span = all.len() - history.origin();
                        let at = history.origin() + percent(share, span);
                        history.keep(at, state(at));
                    }
                    Change::Trim(states, share) => {
                        let span = all.len() - history.origin();
                        let needed = history.origin() + percent(share, span);
                        history.trim(states, needed);
                        prop_assert!(history.origin() <= needed);
                        if needed == all.len() {
                            let kept = history.checkpoints.iter().filter(|c| c.state.is_some());
                            prop_assert!(kept.count() <= states);
                        }
                    }
                    Change::Truncate(share) => {
                        let to = percent(share, all.len());
                        let could = to >= history.origin();
                        prop_assert_eq!(history.truncate(to), could);
                        if could {
                            all.truncate(to);
                        }
                    }
                }
                prop_assert_eq!(history.len(), all.len());
                for position in history.origin()..=all.len() {
                    let from = history.before(position).unwrap();
                    prop_assert!(from.at <= position);
                    if let Some(kept) = &from.state {
                        prop_assert_eq!(kept, &state(from.at));
                    } else {
                        prop_assert_eq!(from.at, 0);
                    }
                    let fed = history.run(from.at).map_or(&[][..], |(_, tokens)| tokens);
                    prop_assert_eq!(fed, &all[from.at..]);
                }
            }
        }
    }
}
