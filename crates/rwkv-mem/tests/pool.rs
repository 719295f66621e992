//! The pool on a real adapter: a live buffer is nobody else's, and the counters say what happened.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod support;

use proptest::prelude::*;
use rwkv_gpu::{Buffer, BufferKind, Readback};
use rwkv_mem::{Error, Pool, PoolCounters, Pooled};
use std::{collections::HashSet, sync::Mutex};
use support::{contents, gpu};

#[derive(Clone, Debug)]
enum Step {
    Take(u64),
    /// Gives back the live buffer at this place, modulo their number.
    Drop(usize),
    Trim,
}

fn step() -> impl Strategy<Value = Step> {
    // Few sizes, so that buffers are reused, and some odd ones.
    let sizes = prop_oneof![
        prop::sample::select(vec![0u64, 1, 256, 257, 300, 1000, 4096]),
        1..20_000u64
    ];
    prop_oneof![
        8 => sizes.prop_map(Step::Take),
        6 => any::<usize>().prop_map(Step::Drop),
        1 => Just(Step::Trim),
    ]
}

/// A live buffer and the number that is written at its start and its end.
struct Tagged {
    buffer: Pooled,
    tag: u32,
    /// Bytes that it was taken for.
    asked: u64,
}

impl Tagged {
    fn check(&self) {
        for offset in [0, self.buffer.size() - 4] {
            let got = contents(gpu(), &self.buffer, offset, 4);
            assert_eq!(
                got,
                self.tag.to_le_bytes(),
                "a live buffer was written by another owner"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 48,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn live_buffers_are_never_shared(steps in prop::collection::vec(step(), 1..80)) {
        let pool = Pool::new(gpu());
        let mut live: Vec<Tagged> = Vec::new();
        let mut want = PoolCounters::default();
        for (tag, step) in (1u32..).zip(steps) {
            match step {
                Step::Take(bytes) => {
                    let before = pool.counters();
                    let buffer = pool.take(BufferKind::Storage, "test", bytes).unwrap();
                    prop_assert!(buffer.size() >= bytes.max(4));
                    for offset in [0, buffer.size() - 4] {
                        gpu().write(&buffer, offset, &tag.to_le_bytes()).unwrap();
                    }
                    want.live += buffer.size();
                    want.asked += bytes;
                    want.peak = want.peak.max(want.live);
                    // Reuse is the pool's choice, but it must say which it was, and take the bytes off the shelf.
                    if pool.counters().hits > before.hits {
                        want.hits += 1;
                        want.cached -= buffer.size();
                    } else {
                        want.misses += 1;
                    }
                    live.push(Tagged { buffer, tag, asked: bytes });
                }
                Step::Drop(_) if live.is_empty() => {}
                Step::Drop(place) => {
                    let given = live.swap_remove(place % live.len());
                    given.check();
                    want.live -= given.buffer.size();
                    want.asked -= given.asked;
                    want.cached += given.buffer.size();
                }
                Step::Trim => {
                    prop_assert_eq!(pool.trim(), want.cached);
                    want.cached = 0;
                }
            }
            prop_assert_eq!(pool.counters(), want);
            let unasked = want.live + want.cached - want.asked;
            let bytes = (want.live + want.cached) as f64;
            let share = pool.counters().fragmentation().unwrap_or(0.0);
            prop_assert!((share * bytes - unasked as f64).abs() < 1e-6 * bytes.max(1.0));
        }
        live.iter().for_each(Tagged::check);
        drop(live);
        prop_assert_eq!(pool.counters().live, 0);
    }
}

#[test]
fn a_buffer_that_was_given_back_is_taken_again() {
    let pool = Pool::new(gpu());
    for bytes in [256u64, 1000, 5000, 100_000] {
        let first = pool.take(BufferKind::Storage, "first", bytes).unwrap();
        let kept = (*first).clone();
        drop(first);
        // Of the same kind only.
        let other = pool.take(BufferKind::Uniform, "other", bytes).unwrap();
        assert_ne!(*other, kept);
        let again = pool.take(BufferKind::Storage, "again", bytes).unwrap();
        assert_eq!(*again, kept);
    }
    assert_eq!((pool.counters().hits, pool.counters().misses), (4, 8));
}

#[test]
fn too_large_a_request_changes_nothing() {
    let pool = Pool::new(gpu());
    let limit = gpu().capabilities().limits.buffer_bytes;
    for bytes in [limit.saturating_add(1), u64::MAX] {
        let Err(error) = pool.take(BufferKind::Storage, "huge", bytes) else {
            panic!("took {bytes} bytes, over the limit of {limit}");
        };
        assert!(matches!(error, Error::OverLimit { .. }), "{error}");
    }
    assert_eq!(pool.counters(), PoolCounters::default());
}

/// What one of several threads has in its hands when it ends, each of which `all` has seen with one owner at a time.
fn act(pool: &Pool, all: &Mutex<HashSet<Buffer>>, steps: &[Step]) -> Vec<(Pooled, u64)> {
    let mut live: Vec<(Pooled, u64)> = Vec::new();
    for step in steps {
        match *step {
            Step::Take(bytes) => {
                let buffer = pool.take(BufferKind::Storage, "test", bytes).unwrap();
                assert!(buffer.size() >= bytes.max(4));
                assert!(
                    all.lock().unwrap().insert((*buffer).clone()),
                    "handed out twice"
                );
                live.push((buffer, bytes));
            }
            Step::Drop(_) if live.is_empty() => {}
            Step::Drop(place) => {
                let (buffer, _) = live.swap_remove(place % live.len());
                assert!(all.lock().unwrap().remove(&*buffer));
            }
            Step::Trim => {
                pool.trim();
            }
        }
    }
    live
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 24,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Eight threads that take, drop and trim at random never have a buffer in common.
    #[test]
    fn threads_share_a_pool(
        scripts in prop::collection::vec(prop::collection::vec(step(), 1..60), 8),
    ) {
        let pool = Pool::new(gpu());
        let all = Mutex::new(HashSet::new());
        let held: Vec<(Pooled, u64)> = std::thread::scope(|scope| {
            let threads: Vec<_> = scripts
                .iter()
                .map(|steps| scope.spawn(|| act(&pool, &all, steps)))
                .collect();
            let ends = threads.into_iter().map(|thread| thread.join().unwrap());
            ends.flatten().collect()
        });
        prop_assert_eq!(all.lock().unwrap().len(), held.len());
        let taken = scripts.iter().flatten().filter(|s| matches!(s, Step::Take(_))).count();
        let counters = pool.counters();
        prop_assert_eq!(counters.hits + counters.misses, taken as u64);
        prop_assert_eq!(counters.live, held.iter().map(|(buffer, _)| buffer.size()).sum::<u64>());
        prop_assert_eq!(counters.asked, held.iter().map(|(_, bytes)| bytes).sum::<u64>());
        drop(held);
        let cached = pool.counters().cached;
        prop_assert_eq!(pool.trim(), cached);
        let end = pool.counters();
        prop_assert_eq!((end.live, end.asked, end.cached), (0, 0, 0));
    }
}

/// A buffer is reused at once, while the GPU has work that uses it: what its last owner submitted sees what that one
/// wrote, since there is one queue.
#[test]
fn reuse_needs_no_wait() {
    let pool = Pool::new(gpu());
    let bytes = 1 << 20;
    let words = |word: u32| -> Vec<u8> { word.to_le_bytes().repeat(bytes / 4) };
    let mut kept: Option<Buffer> = None;
    let copies: Vec<_> = (1..=20u32)
        .map(|word| {
            let buffer = pool
                .take(BufferKind::Storage, "reused", bytes as u64)
                .unwrap();
            assert_eq!(*buffer, *kept.get_or_insert((*buffer).clone()), "made anew");
            gpu().write(&buffer, 0, &words(word)).unwrap();
            let copy = Readback::new(gpu(), "copy", bytes as u64).unwrap();
            let mut recorder = gpu().recorder("copy");
            recorder.read(&buffer, 0, bytes as u64, &copy);
            (word, recorder.submit().unwrap(), copy)
        })
        .collect();
    for (word, submission, copy) in copies {
        let same = |got: &[u8]| got == words(word);
        assert!(copy.view(gpu(), &submission, bytes as u64, same).unwrap());
    }
}
