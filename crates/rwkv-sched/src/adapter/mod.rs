//! Adapters: named sets of changes to a model's weights, and blends of them.
//!
//! A blend is a list of adapters with strengths: `W' = (1 − Σ s) W + Σ s · scale · B A + Σ s T`, where the sums of T and of
//! `1 − s` go over the adapters that have W as a whole tensor T. An executor computes the tensors that a blend changes
//! once, tensor by tensor ([`Executor::prepare_adapters`]), keeps them beside the base model's, and switches between
//! blends and the base without computing anything ([`Executor::set_adapters`]).
//!
//! What is kept is bounded in bytes ([`LoadOptions::blend_bytes`]): the blends that were used least recently go first.
//!
//! A blended matrix is F32 where the base is F32 in the executor (and where it is BF16 on the CPU), and F16 elsewhere:
//! a quantized matrix becomes F16, since quantizing again would lose what a small change says.
//!
//! [`Executor::prepare_adapters`]: crate::Executor::prepare_adapters
//! [`Executor::set_adapters`]: crate::Executor::set_adapters
//! [`LoadOptions::blend_bytes`]: crate::LoadOptions::blend_bytes

mod blends;
mod factor;
mod recipe;

pub use blends::BlendProgress;
pub(crate) use blends::{Blender, Blends, Held};
pub use factor::{Factor, PackedBytes};
pub(crate) use recipe::{Recipe, RecipeKey, TensorRecipe};

use crate::{Error, Model, Result, Weight, Weights};
use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// A low-rank change of a matrix: `scale · B A` is added to it.
#[derive(Clone, Debug)]
pub struct LowRank {
    /// Rows of A, columns of B.
    pub rank: usize,
    /// `[rank, in]`.
    pub a: Factor,
    /// `[out, rank]`.
    pub b: Factor,
    /// `alpha / rank` of whoever trained it, or 1.
    pub scale: f32,
}

/// A named set of changes to a model's weights.
pub struct Adapter {
    /// Tells adapters apart, whatever their names.
    id: u64,
    name: String,
    fingerprint: Option<String>,
    low_rank: HashMap<Weight, LowRank>,
    whole: HashMap<Weight, Arc<dyn Weights>>,
}

impl Adapter {
    /// One that changes nothing yet; `name` names it in messages.
    pub fn new(name: impl Into<String>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            id: NEXT.fetch_add(1, Relaxed),
            name: name.into(),
            fingerprint: None,
            low_rank: HashMap::new(),
            whole: HashMap::new(),
        }
    }

    /// Adds a low-rank change of the matrix `weight`, instead of one that it had.
    pub fn add_low_rank(&mut self, weight: Weight, change: LowRank) {
        self.low_rank.insert(weight, change);
    }

    /// Replaces `weight` by the tensor of that name of `tensors`: at strength 1 altogether, at s by
    /// `W + s (T − W)`.
    pub fn add_whole(&mut self, weight: Weight, tensors: &Arc<dyn Weights>) {
        self.whole.insert(weight, tensors.clone());
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Says what tells its changes from those of others, in other processes too: a checksum of its file, say. States of
    /// prompts fed with it are kept by an engine's [`PrefixCache`](crate::engine::PrefixCache) only if it has one.
    #[must_use]
    pub fn with_fingerprint(mut self, fingerprint: impl Into<String>) -> Self {
        self.fingerprint = Some(fingerprint.into());
        self
    }

    /// What tells its changes from those of others, if that was said.
    pub fn fingerprint(&self) -> Option<&str> {
        self.fingerprint.as_deref()
    }

    /// The weights that it changes, in no order.
    pub fn weights(&self) -> HashSet<Weight> {
        self.low_rank
            .keys()
            .chain(self.whole.keys())
            .copied()
            .collect()
    }

    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.low_rank.is_empty() && self.whole.is_empty()
    }

    /// Checks that `model` has the weights that this changes, in their shapes.
    ///
    /// # Errors
    /// [`Error::Adapter`] names the tensor that does not fit.
    pub fn check(&self, model: &Model) -> Result<()> {
        let model = &model.whole();
        let tensors: HashSet<Weight> = model.tensors().into_iter().collect();
        let matrices = model.matrices();
        let weights = model.weights();
        let refuse = |problem: String| Err(self.error(problem));
        for weight in self.weights() {
            if !tensors.contains(&weight) {
                return refuse(format!(
                    "it changes {weight:?}, which {} does not have",
                    model.config().version
                ));
            }
        }
        for (&weight, change) in &self.low_rank {
            let (name, shape) = (weights.name(weight), weights.describe(weight)?.1);
            let LowRank { rank, a, b, scale } = change;
            let sizes = [
                rank.checked_mul(shape.cols.0),
                shape.rows.0.checked_mul(*rank),
            ];
            if !matrices.contains(&weight) {
                return refuse(format!("a low-rank change of {name}, which is no matrix"));
            }
            if *rank == 0 || sizes != [Some(a.len()), Some(b.len())] {
                return refuse(format!(
                    "a low-rank change of {} by {} elements and rank {rank} does not fit {name}, which is {shape}",
                    b.len(),
                    a.len()
                ));
            }
            if !scale.is_finite() {
                return refuse(format!("the scale of its change of {name} is {scale}"));
            }
        }
        for (&weight, tensors) in &self.whole {
            let want = weights.describe(weight)?.1;
            let got = tensors.describe(weight)?.1;
            let fits = if matrices.contains(&weight) {
                want == got
            } else {
                want.elements() == got.elements()
            };
            if !fits {
                return refuse(format!(
                    "its tensor {} is {got}, where the model's is {want}",
                    tensors.name(weight)
                ));
            }
        }
        Ok(())
    }

    pub(crate) fn error(&self, problem: String) -> Error {
        Error::Adapter {
            name: self.name.clone(),
            problem,
        }
    }
}

impl fmt::Debug for Adapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} low-rank changes, {} whole tensors",
            self.name,
            self.low_rank.len(),
            self.whole.len()
        )
    }
}
