//! What goes to the store and comes from it: states that wait, are being written, or were found there.

use super::{Entry, EntryId, Index, Place, Write};
use crate::{State, state_cache::name::StoredName};
use std::{collections::HashSet, sync::Arc};

impl Index {
    /// A state has left memory: it waits to be written, unless it is in the store or has no room.
    pub(super) fn wait_or_lose(&mut self, id: EntryId, state: Arc<State>) {
        let bytes = self.bounds.state;
        let room = self.queue_bytes == 0 || self.queue_bytes + bytes <= self.bounds.queue;
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        let here = entry.stored.is_some() || entry.waiting.is_some() || entry.writing;
        if !here && self.bounds.store.is_some() && room {
            entry.waiting = Some(state);
            self.queue.push_back(id);
            self.queue_bytes += bytes;
        } else if !here {
            self.counts.lost += 1;
        }
        self.drop_if_empty(id);
    }

    /// The state that has waited longest, to be written. `bytes` is what it will take at most.
    pub(in crate::state_cache) fn next_write(&mut self, bytes: u64) -> Option<Write> {
        while let Some(id) = self.queue.pop_front() {
            if let Some(write) = self.begin_write(id, bytes) {
                return Some(write);
            }
            self.stop_waiting(id);
            self.count_if_lost(id);
            self.drop_if_empty(id);
        }
        None
    }

    pub(super) fn count_if_lost(&mut self, id: EntryId) {
        if self
            .entries
            .get(&id)
            .is_some_and(|e| !e.can_be_had() && !e.writing)
        {
            self.counts.lost += 1;
        }
    }

    /// A state to write that is in memory alone, the one worth most first, of those that are not in `seen`, where it is put.
    pub(in crate::state_cache) fn next_unsaved(
        &mut self,
        bytes: u64,
        seen: &mut HashSet<EntryId>,
    ) -> Option<Write> {
        let unsaved = |id: &EntryId| {
            let entry = self.entries.get(id);
            entry.is_some_and(|e| e.stored.is_none() && !e.writing && e.waiting.is_none())
        };
        let ids: Vec<_> = self.memory.ranked().rev().filter(unsaved).collect();
        for id in ids {
            if seen.insert(id)
                && let Some(write) = self.begin_write(id, bytes)
            {
                return Some(write);
            }
        }
        None
    }

    /// Makes room in the store; nothing is written that is there, or where the store has only what is worth more.
    fn begin_write(&mut self, id: EntryId, bytes: u64) -> Option<Write> {
        let capacity = self.bounds.store?;
        let beyond = self.beyond(id);
        let entry = self.entries.get(&id)?;
        let state = entry.held()?.clone();
        if entry.stored.is_some() || entry.writing || bytes > capacity {
            return None;
        }
        let tag = match &entry.place {
            Place::Tree { key, .. } => key.tag(),
            Place::Hashed { tag, .. } => *tag,
        };
        let name = StoredName {
            tag,
            tokens: entry.tokens,
            beyond,
            id: entry.id,
        };
        self.store.insert(id, beyond as u64, bytes);
        self.trim_store();
        if !self.store.contains(id) {
            return None;
        }
        self.entries.get_mut(&id)?.writing = true;
        self.writing += 1;
        Some(Write {
            entry: id,
            name,
            state,
        })
    }

    /// Keeps the store within its bound.
    pub(in crate::state_cache) fn trim_store(&mut self) {
        while self.store.bytes() > self.bounds.store.unwrap_or(0) {
            let Some(id) = self.store.evict() else {
                break;
            };
            let name = self.forget_stored(id);
            self.removals.extend(name);
        }
    }

    /// What the store is to forget, once.
    pub(in crate::state_cache) fn take_removals(&mut self) -> Vec<StoredName> {
        std::mem::take(&mut self.removals)
    }

    /// The store's copy is gone, or is to go.
    pub(super) fn forget_stored(&mut self, id: EntryId) -> Option<StoredName> {
        self.store.forget(id);
        let name = self.entries.get_mut(&id)?.stored.take();
        self.weigh_again([id]);
        self.drop_if_empty(id);
        name
    }

    pub(super) fn stop_waiting(&mut self, id: EntryId) {
        if let Some(entry) = self.entries.get_mut(&id)
            && entry.waiting.take().is_some()
        {
            self.queue_bytes -= self.bounds.state;
        }
    }

    /// A state was written and takes that many bytes, or was not.
    pub(in crate::state_cache) fn wrote(&mut self, write: &Write, bytes: Option<u64>) {
        let id = write.entry;
        self.writing -= 1;
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.writing = false;
        }
        // What came later may have taken its room.
        let room = self.store.contains(id);
        match bytes {
            Some(bytes) if room => {
                self.counts.written += 1;
                self.store.set_bytes(id, bytes);
                if let Some(entry) = self.entries.get_mut(&id) {
                    entry.stored = Some(write.name);
                }
            }
            Some(_) => self.removals.push(write.name),
            None => self.store.forget(id),
        }
        self.stop_waiting(id);
        self.count_if_lost(id);
        self.weigh_again([id]);
        self.drop_if_empty(id);
        self.trim_store();
    }

    // The store's contents.

    /// What this index believes to be in the store.
    pub(in crate::state_cache) fn stored_names(&self) -> Vec<(EntryId, StoredName)> {
        let stored = |(id, entry): (&EntryId, &Entry)| Some((*id, entry.stored?));
        self.entries.iter().filter_map(stored).collect()
    }

    /// The store has this. A prefix is there once: another name for it goes.
    pub(in crate::state_cache) fn found_in_store(&mut self, name: StoredName, bytes: u64) {
        let known = self.by_prefix.get(&name.id).copied();
        if let Some(entry) = known.and_then(|id| self.entries.get_mut(&id)) {
            if entry.stored.is_some_and(|stored| stored != name) {
                self.removals.push(name);
            }
            if entry.stored.is_some() || entry.writing {
                return;
            }
            entry.stored = Some(name);
        }
        let id = known.unwrap_or(self.next);
        if known.is_none() {
            self.next += 1;
            let StoredName {
                tag,
                tokens,
                beyond,
                id: prefix,
            } = name;
            let entry = Entry {
                id: prefix,
                tokens,
                place: Place::Hashed { tag, beyond },
                memory: None,
                waiting: None,
                writing: false,
                stored: Some(name),
            };
            self.entries.insert(id, entry);
            self.by_prefix.insert(prefix, id);
            *self
                .hashed
                .entry(tag)
                .or_default()
                .entry(tokens)
                .or_default() += 1;
        }
        self.store.insert(id, self.beyond(id) as u64, bytes);
        self.weigh_again([id]);
    }

    /// What was stored under `name` is not there, or is no state.
    pub(in crate::state_cache) fn not_in_store(&mut self, id: EntryId, name: StoredName) {
        if self
            .entries
            .get(&id)
            .is_some_and(|e| e.stored == Some(name))
        {
            self.forget_stored(id);
        }
    }
}
