//! What the cache knows: prefixes, and where their states are. Does no input or output; says what there is to do.

mod store;

use super::{
    key::{CacheKey, GrowingPrefix, PrefixId},
    name::StoredName,
    policy::GreedyDual,
    tree::{NodeId, PrefixTree},
};
use crate::{State, TokenId};
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

/// What reading a state back costs, in tokens to compute: a few milliseconds. Memory keeps a state that the store has too
/// for no more than that.
const READ: usize = 256;

/// Tells entries apart, also those that are gone.
pub(super) type EntryId = u64;

/// What may be kept.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    /// Bytes of a state in memory.
    pub(super) state: u64,
    /// Bytes of states and tokens in memory.
    pub(super) memory: u64,
    /// Bytes of states that wait to be written.
    pub(super) queue: u64,
    /// Bytes in the store; none without a store.
    pub(super) store: Option<u64>,
}

pub(super) struct Index {
    bounds: Bounds,
    entries: HashMap<EntryId, Entry>,
    by_prefix: HashMap<PrefixId, EntryId>,
    /// The prefixes whose tokens are known.
    trees: HashMap<CacheKey, PrefixTree<EntryId>>,
    /// How many prefixes there are of which only the hash is known, by the key's tag and their tokens.
    hashed: HashMap<u64, BTreeMap<usize, usize>>,
    memory: GreedyDual<EntryId>,
    store: GreedyDual<EntryId>,
    queue: VecDeque<EntryId>,
    queue_bytes: u64,
    /// States that are being written.
    writing: usize,
    next: EntryId,
    /// What the store is to forget.
    removals: Vec<StoredName>,
    pub(super) counts: Counts,
}

/// What has been done.
#[derive(Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) memory_hits: u64,
    pub(super) store_hits: u64,
    pub(super) misses: u64,
    pub(super) written: u64,
    pub(super) lost: u64,
    pub(super) unreadable: u64,
    pub(super) visits: u64,
}

/// A prefix with a state, somewhere.
struct Entry {
    id: PrefixId,
    tokens: usize,
    place: Place,
    memory: Option<Arc<State>>,
    /// Of a state that has left memory and waits to be written.
    waiting: Option<Arc<State>>,
    /// Whether somebody is writing it.
    writing: bool,
    stored: Option<StoredName>,
}

enum Place {
    /// Tokens are known.
    Tree { key: CacheKey, node: NodeId },
    /// Tokens are not known, or not worth their memory. `beyond` is what was so when they were.
    Hashed { tag: u64, beyond: usize },
}

impl Entry {
    fn held(&self) -> Option<&Arc<State>> {
        self.memory.as_ref().or(self.waiting.as_ref())
    }

    fn can_be_had(&self) -> bool {
        self.held().is_some() || self.stored.is_some()
    }
}

/// Where a state was found.
pub(super) enum Found {
    Memory(Arc<State>),
    Store(StoredName),
}

/// The longest state for a prompt.
pub(super) struct Best {
    pub(super) entry: EntryId,
    pub(super) tokens: usize,
    pub(super) found: Found,
}

/// A state to write.
pub(super) struct Write {
    pub(super) entry: EntryId,
    pub(super) name: StoredName,
    pub(super) state: Arc<State>,
}

impl Index {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            entries: HashMap::new(),
            by_prefix: HashMap::new(),
            trees: HashMap::new(),
            hashed: HashMap::new(),
            memory: GreedyDual::new(),
            store: GreedyDual::new(),
            queue: VecDeque::new(),
            queue_bytes: 0,
            writing: 0,
            next: 0,
            removals: Vec::new(),
            counts: Counts::default(),
        }
    }

    pub(super) fn entries(&self) -> usize {
        self.entries.len()
    }

    /// Bytes of states and tokens in memory.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.memory.bytes() + self.token_bytes()
    }

    pub(super) fn queue_bytes(&self) -> u64 {
        self.queue_bytes
    }

    pub(super) fn store_bytes(&self) -> u64 {
        self.store.bytes()
    }

    /// Whether states wait to be written.
    pub(super) fn has_queue(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Whether states are being written.
    pub(super) fn is_writing(&self) -> bool {
        self.writing > 0
    }

    fn token_bytes(&self) -> u64 {
        let tokens: usize = self.trees.values().map(PrefixTree::tokens).sum();
        (tokens * size_of::<TokenId>()) as u64
    }

    // Finding.

    /// The longest state for a prefix of `tokens`, and how many of them are known at all.
    pub(super) fn best(
        &mut self,
        key: CacheKey,
        tokens: &[TokenId],
        in_memory: bool,
    ) -> (Option<Best>, usize) {
        let (mut entry, mut shared) = (None, 0);
        if let Some(tree) = self.trees.get(&key) {
            let path = tree.path(tokens);
            self.counts.visits += path.visits;
            shared = path.shared;
            let of_use = |id: &EntryId| {
                let entry = self.entries.get(id);
                entry.is_some_and(|e| e.held().is_some() || !in_memory && e.can_be_had())
            };
            entry = path.values.into_iter().rev().find(of_use);
        }
        let known = entry
            .and_then(|id| self.entries.get(&id))
            .map_or(0, |e| e.tokens);
        if !in_memory {
            entry = self.best_hashed(key, tokens, known).or(entry);
        }
        let best = entry.and_then(|id| {
            let entry = self.entries.get(&id)?;
            let found = match (entry.held(), entry.stored) {
                (Some(state), _) => Found::Memory(state.clone()),
                (None, Some(name)) => Found::Store(name),
                (None, None) => return None,
            };
            Some(Best {
                entry: id,
                tokens: entry.tokens,
                found,
            })
        });
        let shared = best.as_ref().map_or(shared, |best| shared.max(best.tokens));
        (best, shared)
    }

    /// The longest prefix of more than `known` tokens of which only the hash is there.
    fn best_hashed(&mut self, key: CacheKey, tokens: &[TokenId], known: usize) -> Option<EntryId> {
        if known >= tokens.len() {
            return None;
        }
        let lengths = self.hashed.get(&key.tag())?;
        let mut prefix = GrowingPrefix::new(key);
        let mut done = 0;
        let mut best = None;
        for length in lengths.range(known + 1..=tokens.len()).map(|(n, _)| *n) {
            prefix.push(&tokens[done..length]);
            done = length;
            self.counts.visits += 1;
            let found = self.by_prefix.get(&prefix.id()).copied();
            let of_use = |id: &EntryId| self.entries.get(id).is_some_and(Entry::can_be_had);
            best = found.filter(of_use).or(best);
        }
        best
    }

    /// The entry was of use.
    pub(super) fn touch(&mut self, id: EntryId) {
        self.memory.touch(id);
        self.store.touch(id);
    }

    // Keeping.

    /// Keeps a state in memory, or in the queue if it is too large for that.
    pub(super) fn insert(&mut self, key: CacheKey, tokens: &[TokenId], state: Arc<State>) {
        let id = self.entry(key, tokens);
        self.touch(id);
        self.keep(id, state);
    }

    /// The entry of these tokens, in the tree.
    fn entry(&mut self, key: CacheKey, tokens: &[TokenId]) -> EntryId {
        let tree = self.trees.entry(key).or_insert_with(PrefixTree::new);
        if let Some(id) = tree.get(tokens) {
            return id;
        }
        let prefix = PrefixId::of(key, tokens);
        let id = match self.by_prefix.get(&prefix) {
            Some(id) => *id,
            None => self.next,
        };
        let node = tree.insert(tokens, id);
        let place = Place::Tree { key, node };
        if let Some(entry) = self.entries.get_mut(&id) {
            let was = std::mem::replace(&mut entry.place, place);
            self.uncount(&was, tokens.len());
        } else {
            self.next += 1;
            self.by_prefix.insert(prefix, id);
            let entry = Entry {
                id: prefix,
                tokens: tokens.len(),
                place,
                memory: None,
                waiting: None,
                writing: false,
                stored: None,
            };
            self.entries.insert(id, entry);
        }
        let below = self.trees.get(&key).map(|tree| tree.below(node));
        self.weigh_again(below.unwrap_or_default());
        self.weigh_again([id]);
        id
    }

    fn keep(&mut self, id: EntryId, state: Arc<State>) {
        let bytes = self.bounds.state;
        if let Some(entry) = self.entries.get_mut(&id)
            && entry.memory.is_none()
        {
            if bytes <= self.bounds.memory {
                // It need not be written now: it is when it leaves memory again.
                entry.memory = Some(state);
                let cost = self.cost_in_memory(id);
                self.memory.insert(id, cost, bytes);
            } else {
                self.wait_or_lose(id, state);
            }
        }
        self.trim();
    }

    /// Keeps memory within its bound.
    fn trim(&mut self) {
        while self.token_bytes() > self.bounds.memory / 4 {
            if !self.forget_tokens() {
                break;
            }
        }
        while self.memory_bytes() > self.bounds.memory {
            let Some(id) = self.memory.evict() else {
                break;
            };
            if let Some(state) = self.entries.get_mut(&id).and_then(|e| e.memory.take()) {
                self.wait_or_lose(id, state);
            }
        }
        while self.memory_bytes() > self.bounds.memory {
            if !self.forget_tokens() {
                break;
            }
        }
    }

    /// Gives up the tokens of one prefix that has no state in memory, the one worth least; its hash stays.
    fn forget_tokens(&mut self) -> bool {
        let in_tree = |id: &EntryId| {
            let entry = self.entries.get(id);
            entry.is_some_and(|e| e.memory.is_none() && matches!(e.place, Place::Tree { .. }))
        };
        let waiting = self.queue.iter().copied();
        let Some(id) = self.store.ranked().chain(waiting).find(in_tree) else {
            return false;
        };
        let beyond = self.beyond(id);
        let Some(entry) = self.entries.get_mut(&id) else {
            return false;
        };
        let Place::Tree { key, node } = entry.place else {
            return false;
        };
        let tag = key.tag();
        entry.place = Place::Hashed { tag, beyond };
        let tokens = entry.tokens;
        *self
            .hashed
            .entry(tag)
            .or_default()
            .entry(tokens)
            .or_default() += 1;
        self.take_from_tree(key, node);
        true
    }

    fn take_from_tree(&mut self, key: CacheKey, node: NodeId) {
        let Some(tree) = self.trees.get_mut(&key) else {
            return;
        };
        let below = tree.below(node);
        tree.remove(node);
        if tree.is_empty() {
            self.trees.remove(&key);
        }
        self.weigh_again(below);
    }

    fn uncount(&mut self, place: &Place, tokens: usize) {
        let Place::Hashed { tag, .. } = place else {
            return;
        };
        if let Some(lengths) = self.hashed.get_mut(tag) {
            if let Some(count) = lengths.get_mut(&tokens) {
                *count -= 1;
                if *count == 0 {
                    lengths.remove(&tokens);
                }
            }
            if lengths.is_empty() {
                self.hashed.remove(tag);
            }
        }
    }

    /// Forgets an entry whose state is nowhere.
    fn drop_if_empty(&mut self, id: EntryId) {
        let empty = |e: &Entry| e.held().is_none() && e.stored.is_none() && !e.writing;
        if !self.entries.get(&id).is_some_and(empty) {
            return;
        }
        if let Some(entry) = self.entries.remove(&id) {
            self.by_prefix.remove(&entry.id);
            self.uncount(&entry.place, entry.tokens);
            if let Place::Tree { key, node } = entry.place {
                self.take_from_tree(key, node);
            }
        }
    }

    // Weighing.

    /// Tokens that would have to be computed again without this entry.
    fn beyond(&self, id: EntryId) -> usize {
        let Some(entry) = self.entries.get(&id) else {
            return 0;
        };
        match &entry.place {
            Place::Hashed { beyond, .. } => *beyond,
            Place::Tree { key, node } => {
                let above = self.trees.get(key).and_then(|tree| tree.above(*node));
                let above = above.and_then(|id| self.entries.get(&id));
                entry.tokens - above.map_or(0, |above| above.tokens)
            }
        }
    }

    fn cost_in_memory(&self, id: EntryId) -> u64 {
        let beyond = self.beyond(id);
        let stored = self.entries.get(&id).is_some_and(|e| e.stored.is_some());
        (if stored { beyond.min(READ) } else { beyond }) as u64
    }

    /// What lies above these entries has changed, or where they are.
    fn weigh_again(&mut self, ids: impl IntoIterator<Item = EntryId>) {
        for id in ids {
            let (memory, store) = (self.cost_in_memory(id), self.beyond(id) as u64);
            self.memory.set_cost(id, memory);
            self.store.set_cost(id, store);
        }
    }
}
