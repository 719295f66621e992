//! States of prompts that were fed before, in the cache folder.

use crate::cache;
use rwkv_model::{DiskStateStore, ModelFile};
use rwkv_sched::{
    CacheKey, Executor, FedPrompt, SlotId, Spacing, StateCache, StateCacheOptions, StateLayout,
    feed_prompt,
};
use std::{ops::ControlFlow, sync::Arc};

/// States in memory: they are there to be written.
const IN_MEMORY: u64 = 256 << 20;

/// What is known of prompts.
pub(crate) struct PromptCache {
    states: StateCache,
    key: CacheKey,
}

impl PromptCache {
    /// That of `file` in the cache folder, with at most `capacity` bytes of all models' states; none, with a note, where there
    /// is no folder. `key` says what states depend on.
    pub(crate) fn open(
        file: &ModelFile,
        executor: &dyn Executor,
        key: CacheKey,
        capacity: u64,
    ) -> Option<Self> {
        let folder = cache::folder()?.join("states");
        let store = DiskStateStore::open(&folder, &file.fingerprint(), capacity);
        let store = store
            .inspect_err(|error| eprintln!("note: prompts are not kept: {error}"))
            .ok()?;
        let options = StateCacheOptions {
            memory_bytes: IN_MEMORY,
            ..StateCacheOptions::default()
        };
        let layout = StateLayout::of(executor.config());
        Some(Self {
            states: StateCache::new(layout, options, Some(Arc::new(store))),
            key,
        })
    }

    /// Feeds a prompt, from what is known of it, and keeps what is not.
    pub(crate) fn feed(
        &self,
        executor: &mut dyn Executor,
        slot: SlotId,
        tokens: &[u32],
        progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> rwkv_sched::Result<FedPrompt> {
        let cache = (&self.states, self.key);
        feed_prompt(executor, slot, tokens, cache, Spacing::default(), progress)
    }
}
