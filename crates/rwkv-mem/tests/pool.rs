//! The pool on a real adapter: a live buffer is nobody else's, and the counters say what happened.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod support;

use proptest::prelude::*;
use rwkv_gpu::BufferKind;
use rwkv_mem::{Error, Pool, PoolCounters, Pooled};
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
                    want.peak = want.peak.max(want.live);
                    // Reuse is the pool's choice, but it must say which it was, and take the bytes off the shelf.
                    if pool.counters().hits > before.hits {
                        want.hits += 1;
                        want.cached -= buffer.size();
                    } else {
                        want.misses += 1;
                    }
                    live.push(Tagged { buffer, tag });
                }
                Step::Drop(_) if live.is_empty() => {}
                Step::Drop(place) => {
                    let given = live.swap_remove(place % live.len());
                    given.check();
                    want.live -= given.buffer.size();
                    want.cached += given.buffer.size();
                }
                Step::Trim => {
                    pool.trim();
                    want.cached = 0;
                }
            }
            prop_assert_eq!(pool.counters(), want);
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

#[test]
fn threads_share_a_pool() {
    let pool = Pool::new(gpu());
    std::thread::scope(|scope| {
        for thread in 0..4usize {
            let pool = pool.clone();
            scope.spawn(move || {
                let mut live: Vec<Pooled> = Vec::new();
                for step in 0..300usize {
                    let bytes = 256 * (1 + (step * 7 + thread) % 5) as u64;
                    live.push(pool.take(BufferKind::Storage, "test", bytes).unwrap());
                    if step % 3 == 0 {
                        live.swap_remove(step * thread % live.len());
                    }
                    if step % 50 == 49 {
                        for (i, a) in live.iter().enumerate() {
                            assert!(live[..i].iter().all(|b| **a != **b), "handed out twice");
                        }
                        live.clear();
                        pool.trim();
                    }
                }
            });
        }
    });
    let counters = pool.counters();
    assert_eq!(counters.live, 0);
    assert_eq!(counters.hits + counters.misses, 4 * 300);
    pool.trim();
    assert_eq!(pool.counters().cached, 0);
}
