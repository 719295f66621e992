//! States by the tokens that they have seen, so that a prompt starts from the longest prefix that is known.
//!
//! ```text
//! prompt ─ lookup ─► prefix tree ─► memory ── evicted ──► queue ── writer ──► StateStore
//!                        ▲             ▲                                          │
//!                        └─────────────┴────────────── read when asked for ◄──────┘
//! ```
//!
//! The index is a radix tree over token ids with states at some of its nodes. Of a state that only the store has, a hash of
//! its tokens is enough, which is its name there: after a restart names are all that is read, a prompt finds its prefixes
//! by hashing itself, and its own tokens go into the tree then. So no tokens are stored, neither once nor once a state.
//!
//! What has no room goes by a policy that weighs what a state would cost to compute again against its bytes and its last
//! use. A state that leaves memory is written, unless the store has it; what is in memory when a process is killed is
//! lost, and what a cache holds when it is dropped, or [flushed](StateCache::flush), is stored as far as there is room.

mod cache;
mod caught;
mod checkpoints;
mod encoding;
mod index;
mod key;
mod name;
mod policy;
mod prompt;
mod store;
mod tree;

pub use cache::StateCache;
pub use checkpoints::{Spacing, checkpoints};
pub use key::CacheKey;
pub use prompt::{FedPrompt, feed_prompt};
pub use store::{StateStore, Stored};

use crate::State;
use std::sync::Arc;

/// How much a [`StateCache`] keeps, and who writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateCacheOptions {
    /// Bytes of states in memory, with the tokens of the index; 1 GiB by default. States that are larger go to the store at
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
    /// them; at least `tokens`. A state here is worth keeping ([`checkpoints`](checkpoints())).
    pub shared: usize,
}

/// What a cache holds and has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateCacheStats {
    /// States that can be found, wherever they are.
    pub entries: usize,
    /// Bytes of states in memory, and of the tokens of the index.
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
