//! Adapters with their strengths, as a request names them.

use crate::{
    Adapter, Result,
    adapter::{Recipe, RecipeKey},
};
use std::sync::Arc;

/// Adapters with their strengths; those that make the same weights are equal. The default is the base model.
#[derive(Clone, Default)]
pub(super) struct Blend {
    parts: Arc<[(Arc<Adapter>, f32)]>,
    key: RecipeKey,
}

impl Blend {
    /// # Errors
    /// [`crate::Error::Adapter`] for a strength that is no finite number.
    pub(super) fn new(parts: &[(Arc<Adapter>, f32)]) -> Result<Self> {
        Ok(Self {
            key: Recipe::new(parts)?.key(),
            parts: parts.into(),
        })
    }

    pub(super) fn parts(&self) -> &[(Arc<Adapter>, f32)] {
        &self.parts
    }
}

impl PartialEq for Blend {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}
