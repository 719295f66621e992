//! The blends that an executor has computed, or is computing.

use super::{Recipe, recipe::RecipeKey};
use crate::{Error, Model, Result, Weight};
use quick_cache::unsync::Cache;
use std::{collections::VecDeque, sync::Arc};

/// Blends that are kept. Each holds the tensors that it changes, which may be most of a model.
const READY: usize = 4;

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

/// Computes blends for one kind of executor.
pub(crate) trait Blender {
    /// A blend in the making.
    type Partial;
    /// A blend.
    type Blend;

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
}

/// The blends of an executor: those that are ready, those in the making, the one in use and the newest one, which the
/// cache may choose not to keep.
pub(crate) struct Blends<P, B> {
    ready: Cache<RecipeKey, Arc<Ready<B>>>,
    pending: Vec<Pending<P>>,
    active: Option<Keyed<B>>,
    newest: Option<Keyed<B>>,
    made: u64,
}

type Keyed<B> = (RecipeKey, Arc<Ready<B>>);

/// A blend with a number that no other one has; 0 is the base model.
pub(crate) struct Ready<B> {
    number: u64,
    blend: B,
}

impl<P, B> Default for Blends<P, B> {
    fn default() -> Self {
        Self {
            ready: Cache::new(READY),
            pending: Vec::new(),
            active: None,
            newest: None,
            made: 0,
        }
    }
}

impl<P, B> Blends<P, B> {
    /// The blend in use; none for the base model.
    pub(crate) fn active(&self) -> Option<&B> {
        self.active.as_ref().map(|(_, ready)| &ready.blend)
    }

    /// The number of what is in use, 0 for the base model.
    pub(crate) fn number(&self) -> u64 {
        self.active.as_ref().map_or(0, |(_, ready)| ready.number)
    }

    /// Whether the base model or a blend that is kept has this number.
    pub(crate) fn has_number(&self, number: u64) -> bool {
        number == 0 || self.all().any(|ready| ready.number == number)
    }

    /// Every blend that is kept, and those in the making.
    pub(crate) fn held(&self) -> (impl Iterator<Item = &B>, impl Iterator<Item = &P>) {
        (
            self.all().map(|ready| &ready.blend),
            self.pending.iter().map(|p| &p.partial),
        )
    }

    fn all(&self) -> impl Iterator<Item = &Arc<Ready<B>>> {
        let cached = self.ready.iter().map(|(_, ready)| ready);
        let active = self.active.iter().map(|(_, ready)| ready);
        let newest = self.newest.iter().map(|(_, ready)| ready);
        let newest = newest.filter(|n| n.number != self.number());
        let listed = |number| self.ready.iter().any(|(_, ready)| ready.number == number);
        cached.chain(active.chain(newest).filter(move |r| !listed(r.number)))
    }

    /// Drops every blend but the one in use.
    pub(crate) fn forget(&mut self) {
        self.ready.clear();
        self.pending.clear();
        self.newest = None;
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
            }
        };
        // An error drops what there was of it.
        for _ in 0..tensors.max(1) {
            let Some(weight) = pending.todo.pop_front() else {
                break;
            };
            blender.blend(recipe, weight, &mut pending.partial)?;
        }
        let progress = BlendProgress {
            done: pending.total - pending.todo.len(),
            total: pending.total,
        };
        if pending.todo.is_empty() {
            let blend = blender.finish(recipe, pending.partial)?;
            self.made += 1;
            let number = self.made;
            let ready = Arc::new(Ready { number, blend });
            self.newest = Some((pending.key.clone(), ready.clone()));
            self.ready.insert(pending.key, ready);
        } else {
            if self.pending.len() >= PENDING {
                self.pending.remove(0);
            }
            self.pending.push(pending);
        }
        Ok(progress)
    }

    /// Uses the blend, which is ready.
    pub(crate) fn activate(&mut self, recipe: &Recipe) -> Result<()> {
        let key = recipe.key();
        self.active = if recipe.is_empty() {
            None
        } else if let Some(ready) = self.find(&key) {
            Some((key, ready))
        } else {
            let problem = "a blend that was not kept: this is a mistake in this program".to_owned();
            return Err(Error::Config { problem });
        };
        Ok(())
    }

    fn find(&self, key: &RecipeKey) -> Option<Arc<Ready<B>>> {
        // Asked first, so that the cache sees what is used.
        let cached = self.ready.get(key);
        let others = self.active.iter().chain(&self.newest);
        let mut others = others.filter(|(k, _)| k == key).map(|(_, ready)| ready);
        cached.or_else(|| others.next()).cloned()
    }
}
