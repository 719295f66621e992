//! The blends that an executor has computed, or is computing.

use super::{Recipe, recipe::RecipeKey};
use crate::{Error, Model, Result, Weight};
use std::collections::VecDeque;

/// Blends that are kept, whatever they take.
const READY: usize = 5;

/// Unfinished blends that are kept; the one that was worked at longest ago goes first.
const PENDING: usize = 2;

/// How far a blend is, in tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlendProgress {
    /// Tensors done.
    pub done: usize,
    /// Tensors that the blend changes.
    pub total: usize,
}

impl BlendProgress {
    /// Whether [`set_adapters`](crate::Executor::set_adapters) has nothing to compute any more.
    pub fn is_done(self) -> bool {
        self.done >= self.total
    }
}

/// What takes memory beside the base model's weights.
pub(crate) trait Held {
    /// How much.
    fn bytes(&self) -> u64;
}

/// Computes blends for one kind of executor.
pub(crate) trait Blender {
    /// A blend in the making.
    type Partial: Held;
    /// A blend.
    type Blend: Held;

    /// The base model.
    fn model(&self) -> &Model;
    /// Begins a blend of these weights.
    fn start(&self, weights: &[Weight]) -> Result<Self::Partial>;
    /// Computes one weight; may do so again.
    fn blend(&self, recipe: &Recipe, weight: Weight, partial: &mut Self::Partial) -> Result<()>;
    /// Ends it.
    fn finish(&self, recipe: &Recipe, partial: Self::Partial) -> Result<Self::Blend>;
}

struct Pending<P> {
    key: RecipeKey,
    todo: VecDeque<Weight>,
    total: usize,
    partial: P,
    used: u64,
}

struct Ready<B> {
    key: RecipeKey,
    blend: B,
    /// No other one has it; 0 is the base model.
    number: u64,
    used: u64,
}

/// The blends of an executor: those that are ready and those in the making. All together are bounded by bytes, and what
/// was used least recently goes first; but the one in use, the newest until something is switched, and the one that is
/// worked at stay whatever they take.
pub(crate) struct Blends<P, B> {
    ready: Vec<Ready<B>>,
    pending: Vec<Pending<P>>,
    /// Numbers; 0 where there is none.
    active: u64,
    newest: u64,
    made: u64,
    /// Rises with each use.
    clock: u64,
    bound: u64,
}

impl<P: Held, B: Held> Blends<P, B> {
    /// None, of `bound` bytes at most.
    pub(crate) fn new(bound: u64) -> Self {
        Self {
            ready: Vec::new(),
            pending: Vec::new(),
            active: 0,
            newest: 0,
            made: 0,
            clock: 0,
            bound,
        }
    }

    /// Changes how many bytes are kept at most.
    pub(crate) fn set_bound(&mut self, bound: u64) {
        self.bound = bound;
        self.make_room(0);
    }

    /// The blend in use; none for the base model.
    pub(crate) fn active(&self) -> Option<&B> {
        let active = self.ready.iter().find(|r| r.number == self.active);
        active.map(|ready| &ready.blend)
    }

    /// The number of what is in use, 0 for the base model.
    pub(crate) fn number(&self) -> u64 {
        self.active
    }

    /// Whether the base model or a blend that is kept has this number.
    pub(crate) fn has_number(&self, number: u64) -> bool {
        number == 0 || self.ready.iter().any(|ready| ready.number == number)
    }

    /// Bytes of all that is kept, and of what is in the making.
    pub(crate) fn bytes(&self) -> u64 {
        let ready: u64 = self.ready.iter().map(|r| r.blend.bytes()).sum();
        let pending: u64 = self.pending.iter().map(|p| p.partial.bytes()).sum();
        ready + pending
    }

    /// Drops every blend but the one in use, and says whether there was one.
    pub(crate) fn forget(&mut self) -> bool {
        let before = self.ready.len() + self.pending.len();
        self.ready.retain(|ready| ready.number == self.active);
        self.pending.clear();
        self.newest = 0;
        self.ready.len() < before
    }

    /// Drops what there is of a blend, unless it is in use.
    pub(crate) fn forget_one(&mut self, recipe: &Recipe) {
        let key = recipe.key();
        let active = self.active;
        self.ready.retain(|r| r.key != key || r.number == active);
        self.pending.retain(|p| p.key != key);
    }

    /// Computes up to `tensors` tensors of the blend, at least one.
    pub(crate) fn prepare(
        &mut self,
        recipe: &Recipe,
        tensors: usize,
        blender: &impl Blender<Partial = P, Blend = B>,
    ) -> Result<BlendProgress> {
        let key = recipe.key();
        if recipe.is_empty() || self.find(&key).is_some() {
            return Ok(BlendProgress { done: 0, total: 0 });
        }
        let begun = self.pending.iter().position(|p| p.key == key);
        let mut pending = if let Some(at) = begun {
            self.pending.remove(at)
        } else {
            let weights = recipe.changed(blender.model())?;
            Pending {
                key,
                total: weights.len(),
                partial: blender.start(&weights)?,
                todo: weights.into(),
                used: 0,
            }
        };
        pending.used = self.now();
        // An error drops what there was of it.
        for _ in 0..tensors.max(1) {
            let Some(weight) = pending.todo.pop_front() else {
                break;
            };
            blender.blend(recipe, weight, &mut pending.partial)?;
            self.make_room(pending.partial.bytes());
        }
        let progress = BlendProgress {
            done: pending.total - pending.todo.len(),
            total: pending.total,
        };
        if pending.todo.is_empty() {
            let blend = blender.finish(recipe, pending.partial)?;
            self.made += 1;
            self.newest = self.made;
            self.ready.push(Ready {
                key: pending.key,
                blend,
                number: self.made,
                used: pending.used,
            });
            self.make_room(0);
        } else {
            if self.pending.len() >= PENDING
                && let Some(at) = oldest(self.pending.iter().map(|p| p.used))
            {
                self.pending.remove(at);
            }
            self.pending.push(pending);
        }
        Ok(progress)
    }

    /// Uses the blend, which is ready.
    pub(crate) fn activate(&mut self, recipe: &Recipe) -> Result<()> {
        self.active = if recipe.is_empty() {
            0
        } else if let Some(number) = self.find(&recipe.key()) {
            number
        } else {
            let problem = "a blend that was not kept: this is a mistake in this program".to_owned();
            return Err(Error::Config { problem });
        };
        self.newest = 0;
        self.make_room(0);
        Ok(())
    }

    /// The number of a blend that is ready, which counts as a use of it.
    fn find(&mut self, key: &RecipeKey) -> Option<u64> {
        let now = self.now();
        let found = self.ready.iter_mut().find(|ready| ready.key == *key)?;
        found.used = now;
        Some(found.number)
    }

    fn now(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// Drops what was used least recently until all fits beside `more` bytes, or nothing is left that may go.
    fn make_room(&mut self, more: u64) {
        loop {
            let over = self.bytes().saturating_add(more) > self.bound;
            if !over && self.ready.len() <= READY {
                return;
            }
            let stays = [self.active, self.newest];
            let used = |r: &Ready<B>| {
                if stays.contains(&r.number) {
                    u64::MAX
                } else {
                    r.used
                }
            };
            let ready = oldest(self.ready.iter().map(used));
            let pending = oldest(self.pending.iter().map(|p| p.used)).filter(|_| over);
            match (ready, pending) {
                (Some(r), Some(p)) if self.pending[p].used < self.ready[r].used => {
                    self.pending.remove(p);
                }
                (Some(r), _) => {
                    self.ready.remove(r);
                }
                (None, Some(p)) => {
                    self.pending.remove(p);
                }
                (None, None) => return,
            }
        }
    }
}

/// The place of the smallest of `used`; `u64::MAX` is never one.
fn oldest(used: impl Iterator<Item = u64>) -> Option<usize> {
    let old = used.enumerate().filter(|(_, used)| *used < u64::MAX);
    old.min_by_key(|(_, used)| *used).map(|(at, _)| at)
}
