//! States by the tokens that they have seen, so that a prompt starts from the longest prefix that is known.
//!
//! ```text
//! prompt ─ lookup ─► prefix tree ─► memory ── evicted ──► queue ── writer ──► StateStore
//!                        ▲             ▲                                          │
//!                        └─────────────┴────────────── read when asked for ◄──────┘
//! ```

mod checkpoints;
mod key;
mod store;

pub use checkpoints::{Spacing, checkpoints};
pub use key::CacheKey;
pub use store::{StateStore, Stored};

use crate::{Result, State, StateLayout, TokenId};
use std::sync::Arc;

/// How much a [`StateCache`] keeps, and who writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateCacheOptions {
    /// Bytes of states in memory, with what the index takes; 1 GiB by default. States that are larger go to the store at
    /// once, or are not kept where there is none.
    pub memory_bytes: u64,
    /// Bytes of states that have left memory and wait to be written; 256 MiB by default. One state may wait whatever its
    /// size; what has no room is lost.
    pub queue_bytes: u64,
    /// Whether a thread of the cache writes. Without it states wait in the queue until [`StateCache::write_one`].
    pub background: bool,
}

impl Default for StateCacheOptions {
    fn default() -> Self {
        Self {
            memory_bytes: 1 << 30,
            queue_bytes: 256 << 20,
            background: true,
        }
    }
}

/// A state that a prompt can start from.
#[derive(Clone, Debug)]
pub struct Hit {
    /// Tokens of the prompt that the state has seen; at least one is left to feed.
    pub tokens: usize,
    /// The state after them.
    pub state: Arc<State>,
}

/// What the index knows of a prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peek {
    /// Tokens that a [`lookup`](StateCache::lookup) would find a state for; 0 for none.
    pub tokens: usize,
    /// Whether that state is in memory: else it must be read first, which takes milliseconds.
    pub in_memory: bool,
    /// Tokens that the prompt has in common with prefixes that were kept, with or without a state of its own after
    /// them; at least `tokens`. A state here is worth keeping ([`checkpoints`]).
    pub shared: usize,
}

/// What a cache holds and has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateCacheStats {
    /// States that can be found, wherever they are.
    pub entries: usize,
    /// Bytes of states in memory and of the index.
    pub memory_bytes: u64,
    /// Bytes of states that wait to be written.
    pub queue_bytes: u64,
    /// Bytes in the store.
    pub store_bytes: u64,
    /// Lookups that found a state in memory.
    pub memory_hits: u64,
    /// Lookups that read a state from the store.
    pub store_hits: u64,
    /// Lookups that found nothing.
    pub misses: u64,
    /// States written to the store.
    pub written: u64,
    /// States that left memory and were not written: no store, no room in the queue or the store, or an error.
    pub lost: u64,
    /// States that were to be read and were gone or damaged.
    pub unreadable: u64,
    /// Nodes and prefixes that lookups have looked at: what a lookup costs beside reading its prompt once.
    pub visits: u64,
}

/// States by the tokens that they have seen. Shared by threads: methods take `&self`, and none but those that say so
/// wait for the store.
pub struct StateCache {
    layout: StateLayout,
}

impl StateCache {
    /// A cache of states of this layout; with a store, of those too that it has from before. Where the store cannot be
    /// listed the cache begins empty, with a warning.
    pub fn new(
        layout: StateLayout,
        options: StateCacheOptions,
        store: Option<Arc<dyn StateStore>>,
    ) -> Self {
        let _ = (options, store);
        Self { layout }
    }

    /// The longest state for a prefix of `tokens`: one that leaves at least one token to feed, since a state without
    /// logits tells no next token. So a state after all of `tokens` is not found; [`checkpoints`] therefore has one a
    /// token before a prompt's end.
    ///
    /// May read the store, on this thread: ask [`peek`](Self::peek) where that must not be. What cannot be read is
    /// dropped, with a warning, and the next shorter one taken.
    pub fn lookup(&self, key: CacheKey, tokens: &[TokenId]) -> Option<Hit> {
        let _ = (key, tokens);
        None
    }

    /// As [`lookup`](Self::lookup), among the states in memory.
    pub fn lookup_in_memory(&self, key: CacheKey, tokens: &[TokenId]) -> Option<Hit> {
        let _ = (key, tokens);
        None
    }

    /// What a lookup would find, without reading it, and without counting as a use of it.
    pub fn peek(&self, key: CacheKey, tokens: &[TokenId]) -> Peek {
        let _ = (key, tokens);
        Peek::default()
    }

    /// Keeps `state`, which has seen `tokens`, if it is worth more than what would have to go. No tokens are no prefix:
    /// nothing is kept.
    ///
    /// # Errors
    /// [`crate::Error::State`] for a state of another layout.
    pub fn insert(&self, key: CacheKey, tokens: &[TokenId], state: Arc<State>) -> Result<()> {
        let _ = (key, tokens);
        state.check(self.layout)
    }

    /// Writes the state that has waited longest, and says whether there was one. Waits for the store.
    pub fn write_one(&self) -> bool {
        false
    }

    /// Puts every state into the store that is only in memory and has room there; they stay in memory too. Waits for the
    /// store. Dropping the cache does so too.
    pub fn flush(&self) {}

    /// Takes up what other processes have put into the store since. Waits for the store, which reads no entry for it.
    pub fn refresh(&self) {}

    /// What it holds and has done.
    pub fn stats(&self) -> StateCacheStats {
        StateCacheStats::default()
    }
}
