//! Which step comes next, learnt from those before.

use quick_cache::unsync::Cache;
use std::{cmp::Reverse, collections::VecDeque, hash::Hash};

/// Steps that are worth telling at most.
const MOST: usize = 3;

/// Steps that are known to follow one, at most.
const FOLLOWERS: usize = 8;

/// Pairs of steps whose followers are known.
const CONTEXTS: usize = 256;

/// A guess that comes true less often than this is not worth its making.
const WORTH: f32 = 0.04;

/// How much of what was known is left after each step: some forty steps tell how many guesses pay.
const KEPT: f32 = 0.975;

/// What has followed, and how often of late.
type Followers<S> = Vec<(S, f32)>;

/// Learns which step follows which two, and how many guesses pay. `S` is what steps that can be recorded alike have in common.
///
/// The guesses are the steps that have followed the last two most often of late, then those that have followed the last one, then
/// those of late. One is told always, and a second and third as long as they come true.
#[derive(Debug)]
pub struct Forecast<S> {
    /// After the last two steps, and after the last one.
    after: Cache<(Option<S>, S), Followers<S>>,
    /// The last steps, without repetitions, the newest first.
    recent: VecDeque<S>,
    before: Option<S>,
    last: Option<S>,
    /// How often each guess has come true of late.
    came_true: [f32; MOST],
}

impl<S: Clone + Eq + Hash> Default for Forecast<S> {
    fn default() -> Self {
        Self {
            after: Cache::new(2 * CONTEXTS),
            recent: VecDeque::new(),
            before: None,
            last: None,
            came_true: [1.0; MOST],
        }
    }
}

impl<S: Clone + Eq + Hash> Forecast<S> {
    /// A step runs.
    pub fn observe(&mut self, step: &S) {
        if self.last.is_some() {
            let rank = self.guesses().iter().position(|guess| guess == step);
            for (at, share) in self.came_true.iter_mut().enumerate() {
                *share *= KEPT;
                if rank == Some(at) {
                    *share += 1.0 - KEPT;
                }
            }
        }
        if let Some(last) = self.last.clone() {
            for context in [self.before.clone(), None] {
                let key = (context, last.clone());
                let mut followers = self
                    .after
                    .remove(&key)
                    .map_or_else(Vec::new, |(_, known)| known);
                learn(&mut followers, step);
                self.after.insert(key, followers);
            }
        }
        self.recent.retain(|known| known != step);
        self.recent.push_front(step.clone());
        self.recent.truncate(MOST);
        self.before = self.last.replace(step.clone());
    }

    /// The steps that are worth preparing, the likeliest first: one to three, or none before the first step.
    pub fn next(&self) -> Vec<S> {
        let mut guesses = self.guesses();
        guesses.truncate(self.depth());
        guesses
    }

    /// How many guesses pay, 1 to 3.
    pub fn depth(&self) -> usize {
        let pays = self.came_true.iter().rposition(|share| *share >= WORTH);
        pays.map_or(1, |last| last + 1)
    }

    fn guesses(&self) -> Vec<S> {
        let Some(last) = &self.last else {
            return Vec::new();
        };
        let mut guesses: Vec<S> = Vec::with_capacity(MOST);
        let both = self
            .before
            .is_some()
            .then(|| (self.before.clone(), last.clone()));
        let followers = both.into_iter().chain([(None, last.clone())]);
        let followers = followers.filter_map(|key| self.after.peek(&key));
        let followers = followers.flatten().map(|(step, _)| step);
        for step in followers.chain(&self.recent) {
            if guesses.len() < MOST && !guesses.contains(step) {
                guesses.push(step.clone());
            }
        }
        guesses
    }
}

/// Adds a follower; those that came more often of late come first.
fn learn<S: Clone + Eq>(followers: &mut Followers<S>, step: &S) {
    // A step that came last weighs as much as three that came before it.
    for (_, weight) in followers.iter_mut() {
        *weight *= 0.75;
    }
    match followers.iter_mut().find(|(known, _)| known == step) {
        Some((_, weight)) => *weight += 1.0,
        None => followers.push((step.clone(), 1.0)),
    }
    followers.sort_by_key(|(_, weight)| Reverse(weight.to_bits()));
    followers.truncate(FOLLOWERS);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of `steps` were among the guesses, without the first `learning`.
    fn hits(steps: &[u32], learning: usize) -> (f64, usize) {
        let mut forecast = Forecast::default();
        let mut hits = 0;
        for (at, step) in steps.iter().enumerate() {
            let guesses = forecast.next();
            assert!(guesses.len() <= MOST && guesses.len() <= forecast.depth());
            hits += usize::from(at >= learning && guesses.contains(step));
            forecast.observe(step);
        }
        let all = u32::try_from(steps.len() - learning).unwrap_or(u32::MAX);
        (
            f64::from(u32::try_from(hits).unwrap_or(0)) / f64::from(all),
            forecast.depth(),
        )
    }

    #[test]
    fn one_guess_is_enough_for_what_repeats() {
        let rounds = |round: &[u32]| round.repeat(600 / round.len());
        for round in [&[1][..], &[1, 2], &[1, 1, 2], &[5, 1, 2, 3]] {
            let (hits, depth) = hits(&rounds(round), 100);
            assert!(hits > 0.9999 && depth == 1, "{round:?}: {hits}, {depth}");
        }
    }

    /// What comes after 0 is one of several: as many guesses are told as there are of them, three at most.
    #[test]
    fn more_guesses_where_they_pay() {
        for several in [2u32, 3, 40] {
            let mut random = 1u32;
            let steps = (0..4000u32).map(|at| {
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                if at.is_multiple_of(2) {
                    0
                } else {
                    1 + (random >> 8) % several
                }
            });
            let (hits, depth) = hits(&steps.collect::<Vec<_>>(), 400);
            match several {
                40 => assert!(hits > 0.5 && hits < 0.6, "{hits}"),
                _ => assert!(
                    hits > 0.9999 && depth == several as usize,
                    "{several}: {hits}, {depth}"
                ),
            }
        }
    }

    #[test]
    fn bounded() {
        let mut forecast = Forecast::default();
        for step in 0..10_000u32 {
            forecast.observe(&(step.wrapping_mul(2_654_435_761) >> 8));
        }
        assert!(forecast.after.len() <= 2 * CONTEXTS && forecast.recent.len() <= MOST);
        assert!(forecast.next().len() <= MOST);
    }

    #[test]
    fn nothing_before_the_first_step() {
        assert!(Forecast::<u32>::default().next().is_empty());
    }
}
