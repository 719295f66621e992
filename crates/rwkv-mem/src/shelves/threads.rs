//! Eight threads that take, put back and free at random.

#![allow(clippy::unwrap_used, reason = "tests")]

use super::{Attempt, Class, Counts, SHARDS, Shelves};
use proptest::prelude::*;
use std::{
    collections::HashSet,
    sync::{
        Arc, Barrier,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

const THREADS: usize = 8;

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Of this kind and so many bytes, fewer of which are needed.
    Take(u8, u64, u64),
    /// What the thread has at this place, modulo their number.
    Put(usize),
    Trim,
}

fn step() -> impl Strategy<Value = Step> {
    // Few sizes, so that threads meet.
    let bytes = prop::sample::select(vec![1u64, 2, 3, 300, 1 << 40]);
    let taken = (0u8..2, bytes, 0u64..3).prop_map(|(kind, bytes, less)| {
        let asked = bytes.saturating_sub(less);
        Step::Take(kind, bytes, asked)
    });
    prop_oneof![
        8 => taken,
        7 => any::<usize>().prop_map(Step::Put),
        1 => Just(Step::Trim),
    ]
}

/// Memory that gets full, in bytes.
struct Memory {
    free: AtomicU64,
    made: AtomicU64,
    freed: AtomicU64,
}

struct Thing {
    /// The number of the thread that has it, or none.
    owner: AtomicU64,
    class: Class<u8>,
    memory: Arc<Memory>,
}

impl Drop for Thing {
    fn drop(&mut self) {
        assert_eq!(self.owner.load(Relaxed), 0, "freed while somebody has it");
        self.memory.free.fetch_add(self.class.bytes, Relaxed);
        self.memory.freed.fetch_add(1, Relaxed);
    }
}

fn make(memory: &Arc<Memory>, class: Class<u8>) -> Result<Arc<Thing>, ()> {
    let less = |free: u64| free.checked_sub(class.bytes);
    memory
        .free
        .fetch_update(Relaxed, Relaxed, less)
        .map_err(|_| ())?;
    memory.made.fetch_add(1, Relaxed);
    Ok(Arc::new(Thing {
        owner: AtomicU64::new(0),
        class,
        memory: memory.clone(),
    }))
}

type Held = (Arc<Thing>, u64);

/// What a thread has at its end, and how often it was given something.
fn act(
    thread: u64,
    pool: &Shelves<u8, Arc<Thing>>,
    memory: &Arc<Memory>,
    steps: &[Step],
) -> (Vec<Held>, u64) {
    let mut held: Vec<Held> = Vec::new();
    let mut given = 0;
    for step in steps {
        match *step {
            Step::Take(kind, bytes, asked) => {
                let class = Class { kind, bytes };
                let thing = pool.take(class, asked, |_| make(memory, class), |()| true);
                // Memory may be full of what others have.
                if let Ok(thing) = thing {
                    let before = thing.owner.swap(thread, Relaxed);
                    assert_eq!(before, 0, "{thread} was given what {before} has");
                    assert_eq!(thing.class, class);
                    held.push((thing, asked));
                    given += 1;
                }
            }
            Step::Put(_) if held.is_empty() => {}
            Step::Put(place) => {
                let (thing, asked) = held.swap_remove(place % held.len());
                assert_eq!(thing.owner.swap(0, Relaxed), thread, "taken away");
                pool.put(thing.class, asked, thing);
            }
            Step::Trim => {
                pool.trim();
            }
        }
    }
    (held, given)
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn live_things_are_never_shared(
        scripts in prop::collection::vec(prop::collection::vec(step(), 1..60), THREADS),
        // From enough for all to enough for a few.
        room in prop::sample::select(vec![u64::MAX, 20 << 40, 3 << 40, 5000, 300]),
    ) {
        let memory = Arc::new(Memory {
            free: AtomicU64::new(room),
            made: AtomicU64::new(0),
            freed: AtomicU64::new(0),
        });
        let pool = Shelves::new();
        let begin = Barrier::new(THREADS);
        let ends: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (1u64..).zip(&scripts).map(|(thread, steps)| {
                let (pool, memory, begin) = (&pool, &memory, &begin);
                scope.spawn(move || {
                    begin.wait();
                    act(thread, pool, memory, steps)
                })
            }).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let given: u64 = ends.iter().map(|(_, given)| given).sum();
        let held: Vec<Held> = ends.into_iter().flat_map(|(held, _)| held).collect();
        let distinct: HashSet<_> = held.iter().map(|(thing, _)| Arc::as_ptr(thing)).collect();
        prop_assert_eq!(distinct.len(), held.len());
        let live: u64 = held.iter().map(|(thing, _)| thing.class.bytes).sum();
        let counts = pool.counts();
        let made = memory.made.load(Relaxed);
        let want = Counts {
            live,
            asked: held.iter().map(|(_, asked)| asked).sum(),
            peak: counts.peak,
            cached: room - memory.free.load(Relaxed) - live,
            hits: given - made,
            misses: made,
        };
        prop_assert_eq!(counts, want);
        prop_assert!(counts.peak >= live && counts.peak <= room);
        prop_assert_eq!(pool.trim(), counts.cached);
        prop_assert_eq!(made - memory.freed.load(Relaxed), held.len() as u64);
        for (thing, asked) in held {
            thing.owner.store(0, Relaxed);
            pool.put(thing.class, asked, thing);
        }
        pool.trim();
        prop_assert_eq!(memory.free.load(Relaxed), room);
        let end = pool.counts();
        prop_assert_eq!((end.live, end.asked, end.cached), (0, 0, 0));
    }
}

/// How an attempt ends: what is on the shelves, what is made and which error comes out.
#[test]
fn a_failed_attempt_frees_what_lies_on_the_shelves() {
    #[track_caller]
    fn check(results: &[Result<u32, &str>], want: Result<u32, &str>, attempts: usize, freed: bool) {
        let pool = Shelves::new();
        let other = Class {
            kind: 0u8,
            bytes: 64,
        };
        let first: Result<u32, &str> = pool.take(other, 64, |_| Ok(7), |_| false);
        pool.put(other, 64, first.unwrap());
        let before = pool.counts();
        let tried = std::cell::RefCell::new(Vec::new());
        let make = |attempt: Attempt| {
            let mut tried = tried.borrow_mut();
            tried.push(attempt);
            results[tried.len() - 1]
        };
        let class = Class {
            kind: 1u8,
            bytes: 64,
        };
        let got = pool.take(class, 60, make, |error| *error == "no memory");
        assert_eq!(got, want);
        let all = [Attempt::First, Attempt::AfterFreeing];
        assert_eq!(*tried.borrow(), all[..attempts]);
        let mut counts = before;
        if freed {
            counts.cached = 0;
        }
        if want.is_ok() {
            (counts.live, counts.asked, counts.misses) = (64, 60, 2);
        }
        assert_eq!(pool.counts(), counts);
    }
    check(&[Ok(1)], Ok(1), 1, false);
    check(&[Err("too large")], Err("too large"), 1, false);
    check(&[Err("no memory"), Ok(2)], Ok(2), 2, true);
    check(
        &[Err("no memory"), Err("no memory")],
        Err("no memory"),
        2,
        true,
    );
    check(&[Err("no memory"), Err("lost")], Err("lost"), 2, true);
}

/// Sizes that follow each other lie in different shards.
#[test]
fn sizes_are_spread() {
    let pool = Shelves::<u8, ()>::new();
    let sizes = (8..12).flat_map(|power| (4..8).map(move |quarter| (1u64 << power) / 4 * quarter));
    let shard = |bytes: u64| std::ptr::from_ref(pool.shard(Class { kind: 0, bytes }));
    let shards: HashSet<_> = sizes.map(shard).collect();
    assert_eq!(shards.len(), SHARDS);
    // No size is out of range.
    for bytes in [0, 1, 2, 3, u64::MAX] {
        shard(bytes);
    }
}
