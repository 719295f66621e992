//! Adapters with their strengths, as a request names them.

use crate::{
    Adapter, Result,
    adapter::{Recipe, RecipeKey},
};
use std::sync::Arc;

/// Adapters with their strengths; those that make the same weights are equal. The default is the base model.
#[derive(Clone, Default)]
pub(super) struct Blend {
    recipe: Arc<Recipe>,
    key: RecipeKey,
}

impl Blend {
    /// # Errors
    /// [`crate::Error::Adapter`] for a strength that is no finite number.
    pub(super) fn new(parts: &[(Arc<Adapter>, f32)]) -> Result<Self> {
        let recipe = Recipe::new(parts)?;
        Ok(Self {
            key: recipe.key(),
            recipe: Arc::new(recipe),
        })
    }

    pub(super) fn parts(&self) -> &[(Arc<Adapter>, f32)] {
        self.recipe.parts()
    }

    /// Fingerprints of the adapters and the bits of their strengths, in the order in which they are added up; none where
    /// an adapter has no fingerprint.
    pub(super) fn fingerprints(&self) -> Option<Vec<(&str, u32)>> {
        let parts = self.parts().iter();
        parts
            .map(|(adapter, strength)| Some((adapter.fingerprint()?, strength.to_bits())))
            .collect()
    }
}

impl PartialEq for Blend {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}
