//! Memory, the queue and the store: what goes where, and what goes first.

use super::{LAYOUT, MemoryStore, STATE, cache, found, insert, keys, options, state};
use rwkv_sched::{CacheKey, Error, State, StateCache, StateLayout, StateStore, TokenId};
use std::{
    sync::{
        Arc,
        atomic::Ordering::{Relaxed, SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

/// Room for everything.
const PLENTY: u64 = 1 << 30;
/// An encoded state.
const ENTRY: u64 = 60 + STATE;

/// States of 64 KiB, beside which tokens take nothing.
const LARGE: StateLayout = StateLayout {
    layers: 1,
    wkv: 16_380,
    shift: 4,
};

/// A cache with room for some large states in memory, and for the tokens of all.
fn room_for(states: u64, store: Option<&Arc<MemoryStore>>) -> StateCache {
    let store = store.map(|store| store.clone() as Arc<_>);
    let memory = states * LARGE.bytes() + LARGE.bytes() / 2;
    StateCache::new(LARGE, options(memory, 0, false), store)
}

fn insert_large(cache: &StateCache, tokens: &[TokenId]) {
    let inserted = cache.insert(keys()[0], tokens, Arc::new(State::zeros(LARGE)));
    assert!(inserted.is_ok());
}

fn found_large(cache: &StateCache, tokens: &[TokenId]) -> usize {
    cache.lookup(keys()[0], tokens).map_or(0, |hit| hit.tokens)
}

fn run(token: TokenId, length: usize) -> Vec<TokenId> {
    vec![token; length]
}

#[test]
fn a_token_is_left_to_feed() {
    let key = keys()[0];
    let cache = cache(PLENTY, 0, None);
    insert(&cache, key, &[1, 2, 3]);
    assert_eq!(found(&cache, key, &[1, 2, 3]), 0);
    assert_eq!(cache.peek(key, &[1, 2, 3]).shared, 2);
    assert_eq!(found(&cache, key, &[1, 2, 3, 4]), 3);
    insert(&cache, key, &[1, 2]);
    assert_eq!(found(&cache, key, &[1, 2, 3]), 2);
    assert_eq!(found(&cache, key, &[1]), 0);
    assert_eq!(found(&cache, key, &[]), 0);
}

#[test]
fn nothing_seen_is_no_prefix() {
    let cache = cache(PLENTY, 0, None);
    insert(&cache, keys()[0], &[]);
    assert_eq!(cache.stats().entries, 0);
}

#[test]
fn keys_do_not_mix() {
    let cache = cache(PLENTY, 0, None);
    let [a, b, c] = keys();
    insert(&cache, a, &[1, 2]);
    insert(&cache, b, &[1]);
    assert_eq!(
        [a, b, c].map(|key| found(&cache, key, &[1, 2, 3])),
        [2, 1, 0]
    );
    // Parts are not run together, their order counts, and so does every value of an initial state.
    let model = CacheKey::new(b"m");
    let zeros = State::zeros(LAYOUT);
    let mut other = zeros.clone();
    other.shift[0][3] = f32::MIN_POSITIVE;
    let all = [
        model,
        CacheKey::new(b"ma"),
        model.with(b"a"),
        model.with(b"a").with(b"b"),
        model.with(b"b").with(b"a"),
        model.with(b"ab"),
        model.with(b""),
        model.with_initial_state(&zeros),
        model.with_initial_state(&other),
    ];
    for (n, key) in all.iter().enumerate() {
        assert_eq!(all.iter().position(|k| k == key), Some(n));
    }
    assert_eq!(model.with(b"a"), CacheKey::new(b"m").with(b"a"));
}

#[test]
fn another_layout_is_refused() {
    let cache = cache(PLENTY, 0, None);
    let layout = StateLayout { wkv: 13, ..LAYOUT };
    let refused = cache.insert(keys()[0], &[1], Arc::new(State::zeros(layout)));
    assert!(matches!(refused, Err(Error::State { .. })));
    assert_eq!(cache.stats().entries, 0);
}

/// What is cheap to compute again beyond its neighbour goes first, and what was not asked for.
#[test]
fn the_cheap_go_first() {
    let cache = room_for(4, None);
    let long = run(1, 400);
    insert_large(&cache, &long[..200]);
    insert_large(&cache, &long[..202]);
    insert_large(&cache, &long[..399]);
    insert_large(&cache, &run(2, 100));
    // 202 is two tokens from 200.
    insert_large(&cache, &run(3, 100));
    assert_eq!(found_large(&cache, &long[..250]), 200);
    assert_eq!(found_large(&cache, &long), 399);
    assert_eq!(found_large(&cache, &run(2, 101)), 100);
    assert_eq!(found_large(&cache, &run(3, 101)), 100);
    // Of equals the one that was used longest ago.
    insert_large(&cache, &run(4, 150));
    assert_eq!(found_large(&cache, &run(2, 101)), 0);
    assert_eq!(found_large(&cache, &long), 399);
    assert_eq!(cache.stats().lost, 2);
}

/// Costs follow what is kept: a neighbour that comes makes a state cheap, one that goes makes it dear.
#[test]
fn neighbours_count() {
    let long = run(1, 300);
    let cache = room_for(2, None);
    insert_large(&cache, &long[..250]);
    insert_large(&cache, &run(2, 100));
    // 250 is 10 tokens from 240 now.
    insert_large(&cache, &long[..240]);
    assert_eq!(cache.peek(keys()[0], &long).tokens, 240);
    assert_eq!(found_large(&cache, &run(2, 101)), 100);
    let cache = room_for(2, None);
    insert_large(&cache, &long[..90]);
    insert_large(&cache, &long[..200]);
    // 90 goes: 200, 110 tokens from it before, is worth 200 then.
    insert_large(&cache, &run(2, 150));
    assert_eq!(found_large(&cache, &long[..150]), 0);
    insert_large(&cache, &run(3, 150));
    assert_eq!(found_large(&cache, &run(2, 151)), 0);
    assert_eq!(found_large(&cache, &long), 200);
}

/// A state that the store has costs only its reading, so that memory keeps those that it would lose.
#[test]
fn what_is_stored_leaves_memory_first() {
    let key = keys()[0];
    let store = Arc::new(MemoryStore::new(PLENTY));
    let cache = room_for(2, Some(&store));
    insert_large(&cache, &run(1, 1000));
    cache.flush();
    insert_large(&cache, &run(2, 500));
    insert_large(&cache, &run(3, 500));
    assert!(!cache.peek(key, &run(1, 1001)).in_memory);
    assert!(cache.peek(key, &run(2, 501)).in_memory);
    assert!(cache.peek(key, &run(3, 501)).in_memory);
    assert_eq!(found_large(&cache, &run(1, 1001)), 1000);
    assert_eq!(store.puts.load(SeqCst), 1, "it was not written twice");
}

/// Larger than memory: to the store at once, or not kept.
#[test]
fn states_larger_than_memory() {
    let key = keys()[0];
    for memory in [0, STATE - 1] {
        let store = Arc::new(MemoryStore::new(PLENTY));
        let cache = cache(memory, 0, Some(&store));
        for token in 1..=3 {
            insert(&cache, key, &run(token, 5));
            let stats = cache.stats();
            assert_eq!((stats.memory_bytes, stats.queue_bytes), (0, STATE));
            assert_eq!(
                found(&cache, key, &run(token, 6)),
                5,
                "it can be had while it waits"
            );
            assert!(cache.write_one());
        }
        assert!(!cache.write_one());
        assert_eq!(found(&cache, key, &run(1, 6)), 5);
        assert_eq!(cache.stats().memory_bytes, 0);
    }
    let alone = cache(STATE - 1, PLENTY, None);
    insert(&alone, key, &[1]);
    let stats = alone.stats();
    assert_eq!((stats.entries, stats.lost), (0, 1));
}

/// What the queue has no room for is lost, and says so.
#[test]
fn a_full_queue() {
    let key = keys()[0];
    let store = Arc::new(MemoryStore::new(PLENTY));
    let cache = cache(0, 2 * STATE, Some(&store));
    for token in 1..=5 {
        insert(&cache, key, &run(token, 5));
    }
    let stats = cache.stats();
    assert_eq!(
        (stats.entries, stats.lost, stats.queue_bytes),
        (2, 3, 2 * STATE)
    );
    cache.flush();
    let stats = cache.stats();
    assert_eq!((stats.written, stats.queue_bytes), (2, 0));
}

/// The store keeps what is worth most, and never more than it may.
#[test]
fn a_full_store() {
    let key = keys()[0];
    let store = Arc::new(MemoryStore::new(2 * ENTRY));
    let cache = cache(0, 0, Some(&store));
    for (token, length) in [(1, 50), (2, 10), (3, 60), (4, 5), (5, 40)] {
        insert(&cache, key, &run(token, length));
        cache.write_one();
        assert!(store.bytes() <= 2 * ENTRY);
    }
    // 2 went for 3. 4 was not written: it was worth less than both. 5 came when the clock stood at 10.
    assert_eq!(found(&cache, key, &run(4, 6)), 0);
    assert_eq!(found(&cache, key, &run(3, 61)), 60);
    let gone =
        [(1, 50), (5, 40)].map(|(token, length)| found(&cache, key, &run(token, length + 1)));
    assert_eq!(gone.iter().filter(|n| **n == 0).count(), 1, "{gone:?}");
    assert_eq!(store.most.load(SeqCst), 2 * ENTRY);
}

/// One that no store of this size could have.
#[test]
fn an_entry_larger_than_the_store() {
    let key = keys()[0];
    let too_small = Arc::new(MemoryStore::new(ENTRY - 1));
    let cache = cache(0, 0, Some(&too_small));
    insert(&cache, key, &[1, 2]);
    cache.flush();
    assert_eq!((cache.stats().entries, cache.stats().lost), (0, 1));
}

/// A store that fails costs what it was to keep, and nothing else.
#[test]
fn a_store_that_fails() {
    let key = keys()[0];
    let store = Arc::new(MemoryStore::new(PLENTY));
    store.fails.store(true, SeqCst);
    let cache = cache(STATE + 100, 0, Some(&store));
    insert(&cache, key, &[1, 2]);
    cache.flush();
    assert_eq!(found(&cache, key, &[1, 2, 3]), 2);
    insert(&cache, key, &[3; 9]);
    assert!(cache.write_one());
    assert_eq!(cache.stats().lost, 1);
    store.fails.store(false, SeqCst);
    cache.flush();
    assert_eq!(cache.stats().written, 1);
    assert_eq!(store.entries().len(), 1);
}

/// One that panics costs no more: who waits for a write does not wait for ever, nor does who drops the cache.
#[test]
fn a_store_that_panics() {
    let key = keys()[0];
    for background in [false, true] {
        let store = Arc::new(MemoryStore::new(PLENTY));
        let given = Some(store.clone() as Arc<dyn StateStore>);
        let cache = StateCache::new(LAYOUT, options(STATE + 100, PLENTY, background), given);
        store.panics.store(true, SeqCst);
        for token in 0..3 {
            insert(&cache, key, &[token; 5]);
        }
        cache.flush();
        assert_eq!(cache.stats().written, 0);
        cache.refresh();
        // All that was to be written is lost, but for what is in memory.
        let lost = cache.stats().lost;
        assert_eq!(lost, 2, "in the background: {background}");
        store.panics.store(false, SeqCst);
        insert(&cache, key, &[7; 5]);
        cache.flush();
        assert_eq!(found(&cache, key, &[7; 6]), 5);
        let written = cache.stats().written;
        assert!(written >= 1);
        store.panics.store(true, SeqCst);
        insert(&cache, key, &[8; 9]);
        assert_eq!(found(&cache, key, &[7; 6]), 0, "it cannot be read");
        drop(cache);
        assert_eq!(store.entries().len() as u64, written);
    }
}

/// The cache's own thread writes, and goes when the cache does, with everything written.
#[test]
fn the_writer() {
    let key = keys()[0];
    let store = Arc::new(MemoryStore::new(PLENTY));
    let cache = StateCache::new(LAYOUT, options(0, PLENTY, true), Some(store.clone()));
    for token in 0..50 {
        insert(&cache, key, &run(token, 3));
    }
    let begun = Instant::now();
    while cache.stats().written < 50 {
        assert!(begun.elapsed() < Duration::from_mins(10), "nobody writes");
        thread::sleep(Duration::from_millis(1));
    }
    drop(cache);
    assert_eq!(store.entries().len(), 50);
    assert_eq!(
        Arc::strong_count(&store),
        1,
        "nothing holds the store any more"
    );
}

#[test]
fn threads() {
    let store = Arc::new(MemoryStore::new(40 * ENTRY));
    let cache = StateCache::new(
        LAYOUT,
        options(20 * STATE, 10 * STATE, true),
        Some(store.clone()),
    );
    thread::scope(|scope| {
        for thread in 0..4u32 {
            let cache = &cache;
            scope.spawn(move || {
                for n in 0..400u32 {
                    let key = keys()[(n % 3) as usize];
                    let tokens = run(n % 7, (n % 11 + thread) as usize);
                    match (n * 7 + thread) % 5 {
                        0 | 1 => insert(cache, key, &tokens),
                        2 if n % 50 == 0 => cache.flush(),
                        2 if n % 50 == 5 => cache.refresh(),
                        _ => {
                            found(cache, key, &tokens);
                        }
                    }
                    let stats = cache.stats();
                    assert!(stats.memory_bytes <= 20 * STATE && stats.queue_bytes <= 10 * STATE);
                }
            });
        }
    });
    let written = store.puts.load(Relaxed);
    drop(cache);
    assert!(written > 0 && store.bytes() <= 40 * ENTRY);
}

/// A state in two hands is the same one, not a copy.
#[test]
fn shared() {
    let key = keys()[0];
    let cache = cache(PLENTY, 0, None);
    let kept = state(key, &[1]);
    assert!(cache.insert(key, &[1], kept.clone()).is_ok());
    assert!(
        cache
            .lookup(key, &[1, 2])
            .is_some_and(|hit| Arc::ptr_eq(&hit.state, &kept))
    );
}
