//! What lies free in a pool, on a shelf a class: the concurrent core of the pool, which knows nothing of GPUs.
//!
//! Shelves are spread over shards by size, so that threads meet in a lock only where they want about the same size, and
//! hold it only while something is put on a shelf or taken off it: things are made and freed outside. Where memory is
//! exhausted, one thread at a time frees what lies on the shelves and tries again.

#[cfg(all(test, loom))]
mod interleavings;
#[cfg(all(test, not(loom)))]
mod threads;

use crate::sync::{AtomicU64, Mutex};
use std::sync::atomic::Ordering::Relaxed;

/// Four steps of size lie in each power of two, so four powers follow each other without meeting.
#[cfg(not(loom))]
const SHARDS: usize = 16;

/// As few as there can be several, since each is a lock whose orders are tried.
#[cfg(loom)]
const SHARDS: usize = 2;

/// Things of kind `K` and some bytes, which are free.
pub(crate) struct Shelves<K, B> {
    shards: [Mutex<Shard<K, B>>; SHARDS],
    /// Bytes handed out, and the most there were.
    live: AtomicU64,
    peak: AtomicU64,
    /// Held by the thread that frees what lies here: another one that finds no memory meanwhile waits for it, since
    /// the shelves are empty already and the memory is not free yet.
    freeing: Mutex<()>,
}

/// What is interchangeable: things of one kind and size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Class<K> {
    pub(crate) kind: K,
    /// Size.
    pub(crate) bytes: u64,
}

/// Which attempt to make a thing it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attempt {
    First,
    /// The first one found no memory, and everything that was free is gone since.
    AfterFreeing,
}

/// Sums over all shelves. Each is exact when nothing happens meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) live: u64,
    pub(crate) asked: u64,
    pub(crate) peak: u64,
    pub(crate) cached: u64,
    pub(crate) hits: u64,
    pub(crate) misses: u64,
}

struct Shard<K, B> {
    shelves: Vec<Shelf<K, B>>,
    /// Bytes that those who have things of this shard asked for.
    asked: u64,
    cached: u64,
    hits: u64,
    misses: u64,
}

struct Shelf<K, B> {
    class: Class<K>,
    free: Vec<B>,
}

impl<K: Copy + Eq, B> Shelves<K, B> {
    pub(crate) fn new() -> Self {
        let empty = || Shard {
            shelves: Vec::new(),
            asked: 0,
            cached: 0,
            hits: 0,
            misses: 0,
        };
        Self {
            shards: std::array::from_fn(|_| Mutex::new(empty())),
            live: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            freeing: Mutex::new(()),
        }
    }

    /// A thing of `class` off its shelf, or made, for somebody who needs `asked` bytes of it. Where making it finds no
    /// memory, as `exhausted` tells by the error, what is free goes and it is tried once more.
    ///
    /// # Errors
    /// What `make` says last; nothing is counted then.
    pub(crate) fn take<E>(
        &self,
        class: Class<K>,
        asked: u64,
        make: impl Fn(Attempt) -> Result<B, E>,
        exhausted: impl FnOnce(&E) -> bool,
    ) -> Result<B, E> {
        if let Some(thing) = self.pop(class, asked) {
            return Ok(thing);
        }
        let thing = match make(Attempt::First) {
            Err(error) if exhausted(&error) => {
                let alone = self.freeing.lock();
                // Somebody may have brought one back meanwhile.
                if let Some(thing) = self.pop(class, asked) {
                    return Ok(thing);
                }
                self.free_all();
                let made = make(Attempt::AfterFreeing);
                drop(alone);
                made?
            }
            made => made?,
        };
        let mut shard = self.shard(class).lock();
        shard.misses += 1;
        shard.asked += asked;
        drop(shard);
        self.hand_out(class);
        Ok(thing)
    }

    /// Puts back what [`take`](Self::take) gave for these `class` and `asked`.
    pub(crate) fn put(&self, class: Class<K>, asked: u64, thing: B) {
        self.live.fetch_sub(class.bytes, Relaxed);
        let mut shard = self.shard(class).lock();
        shard.asked -= asked;
        shard.cached += class.bytes;
        if let Some(shelf) = shard.shelves.iter_mut().find(|s| s.class == class) {
            shelf.free.push(thing);
        } else {
            let free = vec![thing];
            shard.shelves.push(Shelf { class, free });
        }
    }

    /// Frees what lies here, and tells how many bytes.
    pub(crate) fn trim(&self) -> u64 {
        let _alone = self.freeing.lock();
        self.free_all()
    }

    pub(crate) fn counts(&self) -> Counts {
        let mut counts = Counts {
            live: self.live.load(Relaxed),
            peak: self.peak.load(Relaxed),
            ..Counts::default()
        };
        for shard in &self.shards {
            let shard = shard.lock();
            counts.asked += shard.asked;
            counts.cached += shard.cached;
            counts.hits += shard.hits;
            counts.misses += shard.misses;
        }
        counts
    }

    /// The one that came back last: it is the likeliest to be in a cache.
    fn pop(&self, class: Class<K>, asked: u64) -> Option<B> {
        let mut shard = self.shard(class).lock();
        let shelf = shard.shelves.iter_mut().find(|s| s.class == class)?;
        let thing = shelf.free.pop()?;
        shard.cached -= class.bytes;
        shard.asked += asked;
        shard.hits += 1;
        drop(shard);
        self.hand_out(class);
        Some(thing)
    }

    fn hand_out(&self, class: Class<K>) {
        let live = self.live.fetch_add(class.bytes, Relaxed) + class.bytes;
        self.peak.fetch_max(live, Relaxed);
    }

    fn free_all(&self) -> u64 {
        let mut bytes = 0;
        for shard in &self.shards {
            let mut shard = shard.lock();
            bytes += std::mem::take(&mut shard.cached);
            let shelves = std::mem::take(&mut shard.shelves);
            // Freeing takes a driver long.
            drop(shard);
            drop(shelves);
        }
        bytes
    }

    fn shard(&self, class: Class<K>) -> &Mutex<Shard<K, B>> {
        let power = class.bytes.max(1).ilog2();
        let quarter = class.bytes >> power.saturating_sub(2) & 3;
        let place = (u64::from(power) * 4 + quarter) % SHARDS as u64;
        #[allow(
            clippy::cast_possible_truncation,
            reason = "it is less than the number of shards"
        )]
        &self.shards[place as usize]
    }
}
