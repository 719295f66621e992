//! Where states of prompts' beginnings come from.

use crate::{Adapter, State, TokenId};
use std::sync::Arc;

/// States by the tokens that led to them, from the state that sequences begin with. An engine asks it before it feeds the
/// prompt of a session that has no state yet, and tells it the states that it passes. It is called between steps: what
/// takes long belongs on a thread of the cache's own.
pub trait PrefixCache: Send + Sync {
    /// The state after the most of `tokens`, fed with the adapters of `blend`, and how many they are.
    fn lookup(
        &self,
        blend: &[(Arc<Adapter>, f32)],
        tokens: &[TokenId],
    ) -> Option<(usize, Arc<State>)>;

    /// Takes the state after all of `tokens`.
    fn insert(&self, blend: &[(Arc<Adapter>, f32)], tokens: &[TokenId], state: Arc<State>);
}
