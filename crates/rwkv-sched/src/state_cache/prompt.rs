//! Feeding one prompt with what a cache knows of its beginning. An engine does so for many
//! ([`PrefixCache`](crate::engine::PrefixCache)).

use super::{CacheKey, Spacing, StateCache};
use crate::{Error, Executor, Logits, Result, SlotId, StateLayout, TokenId, Wanted, prefill};
use std::{ops::ControlFlow, sync::Arc};

/// What [`feed_prompt`] has done.
#[derive(Clone, Debug)]
pub struct FedPrompt {
    /// The last token's.
    pub logits: Logits,
    /// Tokens that the cache had a state for: they were not fed.
    pub known: usize,
}

/// As [`prefill`] of a slot that has seen nothing, in the executor's chunks, from the longest state that `states` has for a prefix
/// of `tokens`; keeps states along the rest where `spacing` says. `progress` is told how many tokens the slot has seen; where it
/// breaks off, the logits are those of the last chunk. `key` says what states depend on beside the tokens.
///
/// # Errors
/// Those of [`prefill`], and [`Error::State`] for a cache of another layout. A state that cannot be kept is left out, with a
/// warning.
pub fn feed_prompt(
    executor: &mut dyn Executor,
    slot: SlotId,
    tokens: &[TokenId],
    (states, key): (&StateCache, CacheKey),
    spacing: Spacing,
    progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<FedPrompt> {
    let (own, cached) = (StateLayout::of(executor.config()), states.layout());
    if own != cached {
        return Err(Error::State {
            problem: format!(
                "the cache has states of {} layers, the model of {}",
                cached.layers, own.layers
            ),
        });
    }
    let vocab = executor.config().vocab;
    if let Some(&token) = tokens.iter().find(|t| **t as usize >= vocab) {
        return Err(Error::TokenRange { token, vocab });
    }
    let shared = states.peek(key, tokens).shared;
    let hit = states.lookup(key, tokens);
    let known = hit.as_ref().map_or(0, |hit| hit.tokens);
    if let Some(hit) = hit {
        executor.set_state(slot, &hit.state)?;
    }
    let chunk = executor.chunk().saturating_mul(executor.stages());
    let mut seen = known;
    let stops = spacing.along(known..tokens.len(), shared);
    for stop in stops.into_iter().chain([tokens.len()]) {
        let wanted = if stop < tokens.len() {
            Wanted::None
        } else {
            Wanted::Last
        };
        let mut broken = ControlFlow::Continue(());
        let part = tokens.get(seen..stop).unwrap_or_default();
        let logits = prefill(executor, slot, part, chunk, wanted, &mut |done, _| {
            broken = progress(seen + done);
            broken
        })?;
        if broken.is_break() || stop == tokens.len() {
            return Ok(FedPrompt { logits, known });
        }
        seen = stop;
        let state = Arc::new(executor.state(slot)?);
        if let Err(error) = states.insert(key, &tokens[..stop], state) {
            tracing::warn!("a prompt's state cannot be kept: {error}");
        }
    }
    Err(Error::EmptyPrompt)
}
