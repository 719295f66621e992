//! Every order in which few threads can take, put back and free, tried by loom.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p rwkv-mem --lib --target-dir target/loom`

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use super::{Attempt, Class, Counts, Shelves};
use loom::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
};

/// Memory for some bytes, and what was made of it.
struct Memory {
    free: AtomicU64,
    made: AtomicU64,
}

/// A thing that tells when two have it at once, or when one does not see what its last owner wrote.
struct Thing {
    owners: AtomicU64,
    /// Written and read without order: a lost one means that the shelf did not order its owners.
    uses: AtomicU64,
    bytes: u64,
    memory: Arc<Memory>,
}

#[derive(Debug, PartialEq)]
struct Exhausted;

type Pool = Shelves<u8, Arc<Thing>>;

impl Memory {
    fn of(bytes: u64) -> Arc<Self> {
        Arc::new(Self {
            free: AtomicU64::new(bytes),
            made: AtomicU64::new(0),
        })
    }
}

fn make(memory: &Arc<Memory>, bytes: u64) -> Result<Arc<Thing>, Exhausted> {
    let less = |free: u64| free.checked_sub(bytes);
    memory
        .free
        .fetch_update(Relaxed, Relaxed, less)
        .map_err(|_| Exhausted)?;
    memory.made.fetch_add(1, Relaxed);
    Ok(Arc::new(Thing {
        owners: AtomicU64::new(0),
        uses: AtomicU64::new(0),
        bytes,
        memory: memory.clone(),
    }))
}

impl Drop for Thing {
    fn drop(&mut self) {
        assert_eq!(self.owners.load(Relaxed), 0, "freed while somebody has it");
        self.memory.free.fetch_add(self.bytes, Relaxed);
    }
}

fn class(kind: u8, bytes: u64) -> Class<u8> {
    Class { kind, bytes }
}

/// Takes one and uses it; the caller puts it back.
fn take(pool: &Pool, memory: &Arc<Memory>, class: Class<u8>) -> Result<Arc<Thing>, Exhausted> {
    let make = |_: Attempt| make(memory, class.bytes);
    let thing = pool.take(class, class.bytes - 1, make, |_| true)?;
    assert_eq!(thing.owners.swap(1, Relaxed), 0, "handed out twice");
    thing.uses.store(thing.uses.load(Relaxed) + 1, Relaxed);
    Ok(thing)
}

fn put(pool: &Pool, class: Class<u8>, thing: Arc<Thing>) {
    assert_eq!(thing.owners.swap(0, Relaxed), 1);
    pool.put(class, class.bytes - 1, thing);
}

/// Takes one, and puts it back.
fn borrow(pool: &Pool, memory: &Arc<Memory>, class: Class<u8>) {
    let thing = take(pool, memory, class);
    put(pool, class, thing.unwrap_or_else(|e| panic!("{e:?}")));
}

/// All orders in which threads are interrupted at most three times, or as `LOOM_MAX_PREEMPTIONS` has it: any number of
/// times takes half a minute and has found no more.
fn model(threads: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(3));
    builder.check(threads);
}

/// Two threads want the same class, one of them twice; nobody has what another one has, and each use is seen.
#[test]
fn one_owner_at_a_time() {
    model(|| {
        let (pool, memory) = (Arc::new(Pool::new()), Memory::of(u64::MAX));
        let other = {
            let (pool, memory) = (pool.clone(), memory.clone());
            thread::spawn(move || borrow(&pool, &memory, class(0, 8)))
        };
        borrow(&pool, &memory, class(0, 8));
        borrow(&pool, &memory, class(0, 8));
        other.join().unwrap();
        let made = memory.made.load(Relaxed);
        let counts = pool.counts();
        assert!((1..=2).contains(&made));
        let want = Counts {
            live: 0,
            asked: 0,
            // The second was made because the first was out, though it may have come back before this one went.
            peak: counts.peak,
            cached: made * 8,
            hits: 3 - made,
            misses: made,
        };
        assert_eq!(counts, want);
        assert!((8..=made * 8).contains(&counts.peak));
        let things: Vec<_> = (0..made)
            .map(|_| take(&pool, &memory, class(0, 8)).unwrap())
            .collect();
        let uses: u64 = things.iter().map(|thing| thing.uses.load(Relaxed)).sum();
        assert_eq!(uses, 3 + made, "a use was not seen by the next owner");
        for thing in things {
            put(&pool, class(0, 8), thing);
        }
    });
}

/// What is freed was on a shelf, is freed once, and leaves the counts right.
#[test]
fn freeing_meets_taking() {
    model(|| {
        let (pool, memory) = (Arc::new(Pool::new()), Memory::of(u64::MAX));
        borrow(&pool, &memory, class(0, 8));
        let other = {
            let pool = pool.clone();
            thread::spawn(move || pool.trim())
        };
        let held = take(&pool, &memory, class(0, 8)).unwrap();
        let freed = other.join().unwrap();
        let made = memory.made.load(Relaxed);
        // Either it was freed and another one made, or it was taken before.
        assert_eq!(freed, (made - 1) * 8);
        assert_eq!((pool.counts().live, pool.counts().cached), (8, 0));
        put(&pool, class(0, 8), held);
        assert_eq!(pool.trim(), 8);
        assert_eq!(memory.free.load(Relaxed), u64::MAX);
    });
}

/// Memory is full of what lies free, and two threads need it in other sizes: both get theirs, whatever the order.
#[test]
fn exhausted_memory_is_found_on_the_shelves() {
    model(|| {
        let (pool, memory) = (Arc::new(Pool::new()), Memory::of(16));
        borrow(&pool, &memory, class(0, 16));
        let other = {
            let (pool, memory) = (pool.clone(), memory.clone());
            thread::spawn(move || take(&pool, &memory, class(0, 7)))
        };
        let mine = take(&pool, &memory, class(1, 9));
        let (theirs, mine) = (other.join().unwrap().unwrap(), mine.unwrap());
        assert_eq!((pool.counts().live, pool.counts().cached), (16, 0));
        // What cannot be is an error, and changes nothing.
        let before = pool.counts();
        assert!(matches!(take(&pool, &memory, class(0, 1)), Err(Exhausted)));
        assert_eq!(pool.counts(), before);
        put(&pool, class(0, 7), theirs);
        put(&pool, class(1, 9), mine);
    });
}
