//! The cache as its callers see it: an index behind a lock, and input and output outside of it.

use super::{
    Hit, Peek, StateCacheOptions, StateCacheStats, StateStore,
    caught::Caught,
    encoding::{decode, encode, encoded_bytes},
    index::{Best, Bounds, Found, Index, Write},
    key::CacheKey,
    name::StoredName,
};
use crate::{Result, State, StateLayout, TokenId};
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::{
    collections::HashSet,
    sync::Arc,
    thread::{self, JoinHandle},
};

/// States by the tokens that they have seen. Shared by threads: methods take `&self`, and none but those that say so
/// wait for the store.
pub struct StateCache {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

struct Shared {
    layout: StateLayout,
    store: Option<Caught>,
    guarded: Mutex<Guarded>,
    /// Something waits to be written, or the cache is going.
    work: Condvar,
    /// Nothing is being written.
    idle: Condvar,
}

struct Guarded {
    index: Index,
    /// The cache is going.
    closed: bool,
}

impl StateCache {
    /// A cache of states of this layout; with a store, of those too that it has from before, of which no more than their
    /// names is read. Where the store cannot be listed the cache begins empty, with a warning.
    pub fn new(
        layout: StateLayout,
        options: StateCacheOptions,
        store: Option<Arc<dyn StateStore>>,
    ) -> Self {
        let store = store.map(Caught);
        let bounds = Bounds {
            state: layout.bytes(),
            memory: options.memory_bytes,
            queue: options.queue_bytes,
            store: store.as_ref().map(StateStore::capacity),
        };
        let shared = Arc::new(Shared {
            layout,
            store,
            guarded: Mutex::new(Guarded {
                index: Index::new(bounds),
                closed: false,
            }),
            work: Condvar::new(),
            idle: Condvar::new(),
        });
        shared.refresh();
        let writer = (options.background && shared.store.is_some()).then(|| {
            let shared = shared.clone();
            let builder = thread::Builder::new().name("rwkv states".to_owned());
            builder.spawn(move || shared.write_until_closed())
        });
        let writer = writer.and_then(|started| {
            let warn =
                |e: &_| tracing::warn!("states are kept in memory only for now: no thread: {e}");
            started.inspect_err(warn).ok()
        });
        Self { shared, writer }
    }

    /// What its states are.
    pub fn layout(&self) -> StateLayout {
        self.shared.layout
    }

    /// The longest state for a prefix of `tokens`: one that leaves at least one token to feed, since a state without
    /// logits tells no next token. So a state after all of `tokens` is not found; [`checkpoints`](super::checkpoints())
    /// therefore has one a token before a prompt's end.
    ///
    /// May read the store, on this thread: ask [`peek`](Self::peek) where that must not be. What cannot be read is
    /// dropped, with a warning, and the next shorter one taken.
    pub fn lookup(&self, key: CacheKey, tokens: &[TokenId]) -> Option<Hit> {
        let usable = usable(tokens);
        loop {
            let (best, name) = {
                let mut guarded = self.shared.guarded.lock();
                let (best, _) = guarded.index.best(key, usable, false);
                let best = guarded.count_miss(best)?;
                match best.found {
                    Found::Memory(state) => {
                        return Some(guarded.memory_hit(best.entry, best.tokens, state));
                    }
                    Found::Store(name) => (best, name),
                }
            };
            if let Some(state) = self.shared.read(name) {
                let state = Arc::new(state);
                let seen = &usable[..best.tokens];
                let mut guarded = self.shared.guarded.lock();
                guarded.index.counts.store_hits += 1;
                guarded.index.insert(key, seen, state.clone());
                self.shared.settle(guarded);
                return Some(Hit {
                    tokens: best.tokens,
                    state,
                });
            }
            let mut guarded = self.shared.guarded.lock();
            guarded.index.counts.unreadable += 1;
            guarded.index.not_in_store(best.entry, name);
        }
    }

    /// As [`lookup`](Self::lookup), among the states in memory.
    pub fn lookup_in_memory(&self, key: CacheKey, tokens: &[TokenId]) -> Option<Hit> {
        let mut guarded = self.shared.guarded.lock();
        let (best, _) = guarded.index.best(key, usable(tokens), true);
        let best = guarded.count_miss(best)?;
        match best.found {
            Found::Memory(state) => Some(guarded.memory_hit(best.entry, best.tokens, state)),
            Found::Store(_) => None,
        }
    }

    /// What a lookup would find, without reading it, and without counting as a use of it.
    pub fn peek(&self, key: CacheKey, tokens: &[TokenId]) -> Peek {
        let mut guarded = self.shared.guarded.lock();
        let (best, shared) = guarded.index.best(key, usable(tokens), false);
        Peek {
            tokens: best.as_ref().map_or(0, |best| best.tokens),
            in_memory: best.is_some_and(|best| matches!(best.found, Found::Memory(_))),
            shared,
        }
    }

    /// Keeps `state`, which has seen `tokens`, if it is worth more than what would have to go. No tokens are no prefix:
    /// nothing is kept.
    ///
    /// # Errors
    /// [`crate::Error::State`] for a state of another layout.
    pub fn insert(&self, key: CacheKey, tokens: &[TokenId], state: Arc<State>) -> Result<()> {
        state.check(self.shared.layout)?;
        if !tokens.is_empty() {
            let mut guarded = self.shared.guarded.lock();
            guarded.index.insert(key, tokens, state);
            self.shared.settle(guarded);
        }
        Ok(())
    }

    /// Writes the state that has waited longest, and says whether there was one. Waits for the store.
    pub fn write_one(&self) -> bool {
        self.shared.write_one()
    }

    /// Puts every state into the store that is only in memory and is worth its room there; they stay in memory too. Waits
    /// for the store. Dropping the cache does so too.
    pub fn flush(&self) {
        self.shared.flush();
    }

    /// Takes up what other processes have put into the store since, and what has gone from it. Waits for the store, which
    /// reads no entry for it.
    pub fn refresh(&self) {
        self.shared.refresh();
    }

    /// What it holds and has done.
    pub fn stats(&self) -> StateCacheStats {
        let guarded = self.shared.guarded.lock();
        let index = &guarded.index;
        StateCacheStats {
            entries: index.entries(),
            memory_bytes: index.memory_bytes(),
            queue_bytes: index.queue_bytes(),
            store_bytes: index.store_bytes(),
            memory_hits: index.counts.memory_hits,
            store_hits: index.counts.store_hits,
            misses: index.counts.misses,
            written: index.counts.written,
            lost: index.counts.lost,
            unreadable: index.counts.unreadable,
            visits: index.counts.visits,
        }
    }
}

impl Drop for StateCache {
    fn drop(&mut self) {
        self.shared.guarded.lock().closed = true;
        self.shared.work.notify_all();
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::warn!("the thread that writes states has failed; states in memory are lost");
            return;
        }
        self.shared.flush();
    }
}

/// The tokens whose states are of use to a prompt: all but the last.
fn usable(tokens: &[TokenId]) -> &[TokenId] {
    tokens.split_last().map_or(&[], |(_, usable)| usable)
}

impl Guarded {
    fn count_miss(&mut self, best: Option<Best>) -> Option<Best> {
        self.index.counts.misses += u64::from(best.is_none());
        best
    }

    fn memory_hit(&mut self, entry: u64, tokens: usize, state: Arc<State>) -> Hit {
        self.index.counts.memory_hits += 1;
        self.index.touch(entry);
        Hit { tokens, state }
    }
}

impl Shared {
    /// Wakes the writer if there is something to write.
    fn settle(&self, guarded: MutexGuard<'_, Guarded>) {
        let work = guarded.index.has_queue();
        drop(guarded);
        if work {
            self.work.notify_one();
        }
    }

    fn read(&self, name: StoredName) -> Option<State> {
        let store = self.store.as_ref()?;
        let text = name.to_string();
        let bytes = match store.get(&text, encoded_bytes(self.layout)) {
            Ok(bytes) => bytes?,
            Err(error) => {
                tracing::warn!("the state {text} cannot be read, and is left out: {error}");
                return None;
            }
        };
        let state = decode(name.id, self.layout, &bytes);
        if state.is_none() {
            tracing::warn!("{text} is no state of this model, and is dropped");
            self.remove([name]);
        }
        state
    }

    fn remove(&self, names: impl IntoIterator<Item = StoredName>) {
        let Some(store) = &self.store else {
            return;
        };
        for name in names {
            if let Err(error) = store.remove(&name.to_string()) {
                tracing::warn!("the state {name} cannot be removed from the store: {error}");
            }
        }
    }

    fn write_until_closed(&self) {
        loop {
            {
                let mut guarded = self.guarded.lock();
                while !guarded.index.has_queue() && !guarded.closed {
                    self.work.wait(&mut guarded);
                }
                if guarded.closed {
                    return;
                }
            }
            self.write_one();
        }
    }

    fn write_one(&self) -> bool {
        let (write, removals) = {
            let mut guarded = self.guarded.lock();
            let write = guarded.index.next_write(encoded_bytes(self.layout));
            (write, guarded.index.take_removals())
        };
        self.remove(removals);
        write.as_ref().is_some_and(|write| {
            self.write(write);
            true
        })
    }

    fn write(&self, write: &Write) {
        let bytes = encode(write.name.id, self.layout, &write.state);
        let name = write.name.to_string();
        let put = self.store.as_ref().map(|store| store.put(&name, &bytes));
        let written = match put {
            Some(Ok(bytes)) => Some(bytes),
            Some(Err(error)) => {
                tracing::warn!("the state {name} cannot be stored: {error}");
                None
            }
            None => None,
        };
        let removals = {
            let mut guarded = self.guarded.lock();
            guarded.index.wrote(write, written);
            if !guarded.index.is_writing() {
                self.idle.notify_all();
            }
            guarded.index.take_removals()
        };
        self.remove(removals);
    }

    fn flush(&self) {
        while self.write_one() {}
        let mut seen = HashSet::new();
        loop {
            let (write, removals) = {
                let mut guarded = self.guarded.lock();
                let bytes = encoded_bytes(self.layout);
                let write = guarded.index.next_unsaved(bytes, &mut seen);
                (write, guarded.index.take_removals())
            };
            self.remove(removals);
            match write {
                Some(write) => self.write(&write),
                None => break,
            }
        }
        let mut guarded = self.guarded.lock();
        while guarded.index.is_writing() {
            self.idle.wait(&mut guarded);
        }
    }

    fn refresh(&self) {
        let Some(store) = &self.store else {
            return;
        };
        let believed = self.guarded.lock().index.stored_names();
        let listed = match store.list() {
            Ok(listed) => listed,
            Err(error) => {
                tracing::warn!("the states of the store are left out: {error}");
                return;
            }
        };
        let mut there = HashSet::new();
        let mut foreign = Vec::new();
        let removals = {
            let mut guarded = self.guarded.lock();
            for entry in listed {
                match entry.name.parse::<StoredName>() {
                    Ok(name) => {
                        guarded.index.found_in_store(name, entry.bytes);
                        there.insert(name);
                    }
                    Err(_) => foreign.push(entry.name),
                }
            }
            for (id, name) in believed {
                if !there.contains(&name) {
                    guarded.index.not_in_store(id, name);
                }
            }
            guarded.index.trim_store();
            guarded.index.take_removals()
        };
        self.remove(removals);
        for name in foreign {
            tracing::warn!("{name} in the store is no state, and is dropped");
            if let Err(error) = store.remove(&name) {
                tracing::warn!("{name} cannot be removed from the store: {error}");
            }
        }
    }
}
