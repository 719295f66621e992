//! What a cache finds in a store, and what that costs.

use super::{MemoryStore, STATE, cache, found, insert, keys};
use rwkv_sched::TokenId;
use std::sync::{Arc, atomic::Ordering::SeqCst};

const PLENTY: u64 = 1 << 30;

/// Tokens that do not repeat soon.
fn prompt(seed: u32, length: usize) -> Vec<TokenId> {
    let token = |n: usize| (n as u32).wrapping_mul(2_654_435_761).wrapping_add(seed) % 65_536;
    (0..length).map(token).collect()
}

/// 26,000 shared tokens among 3,000 prefixes: found by looking at few nodes, and after a restart by reading one state.
#[test]
fn a_long_prefix_costs_little() {
    let key = keys()[0];
    let store = Arc::new(MemoryStore::new(PLENTY));
    let before = cache(PLENTY, 0, Some(&store));
    let shared = prompt(0, 26_000);
    insert(&before, key, &shared);
    for n in 0..3_000 {
        // From anywhere in the prefix, and from its start.
        let own = prompt(n + 1, 20);
        let common = if n % 2 == 0 { 0 } else { n as usize * 8 };
        insert(&before, key, &[&shared[..common], &own].concat());
    }
    let request = [&shared[..], &prompt(99, 50)].concat();
    let visits = |cache: &rwkv_sched::StateCache| {
        let from = cache.stats().visits;
        assert_eq!(found(cache, key, &request), 26_000);
        cache.stats().visits - from
    };
    // A node for every place where one of the 1,500 left, and no more.
    let seen = visits(&before);
    assert!(seen <= 1_502, "{seen} nodes");
    drop(before);

    let after = cache(PLENTY, 0, Some(&store));
    assert_eq!(store.gets.load(SeqCst), 0, "names are enough for an index");
    assert_eq!(after.stats().entries, 3_001);
    assert_eq!(after.stats().memory_bytes, 0);
    assert_eq!(after.peek(key, &request).tokens, 26_000);
    assert!(!after.peek(key, &request).in_memory);
    assert_eq!(store.gets.load(SeqCst), 0);
    // At most one probe for each length that there is.
    let seen = visits(&after);
    assert!(seen <= 1_502, "{seen} probes");
    assert_eq!(store.gets.load(SeqCst), 1, "one state is read");
    assert!(after.peek(key, &request).in_memory);
    // Once its tokens are known it is found as any other.
    assert!(visits(&after) <= 2);
    assert_eq!(store.gets.load(SeqCst), 1);
    assert_eq!(after.stats().memory_bytes, STATE + 4 * 26_000);
}

/// The tokens of what is only in the store take no memory that states need.
#[test]
fn tokens_are_bounded_too() {
    let key = keys()[0];
    let store = Arc::new(MemoryStore::new(PLENTY));
    let memory = 10 * STATE + 4 * 5_000;
    let cache = cache(memory, 1 << 20, Some(&store));
    for n in 0..100 {
        insert(&cache, key, &prompt(n, 1_000));
        while cache.write_one() {}
        assert!(cache.stats().memory_bytes <= memory);
    }
    for n in 0..100 {
        let request = prompt(n, 1_001);
        assert_eq!(found(&cache, key, &request), 1_000, "prompt {n}");
        assert!(cache.stats().memory_bytes <= memory);
    }
    assert_eq!(cache.stats().lost, 0);
}

/// A damaged entry is dropped, and the next shorter prefix taken.
#[test]
fn damaged_entries() {
    let key = keys()[0];
    let store = Arc::new(MemoryStore::new(PLENTY));
    let before = cache(PLENTY, 0, Some(&store));
    let tokens = prompt(0, 40);
    for length in [10, 20, 30] {
        insert(&before, key, &tokens[..length]);
    }
    drop(before);
    let damage = |length: usize, how: fn(&mut Vec<u8>)| {
        let mut entries = store.entries();
        let part = format!("-{length}-");
        for (name, bytes) in entries.iter_mut() {
            if name.contains(&part) && name.split('-').nth(1) == Some(&length.to_string()) {
                how(bytes);
            }
        }
    };
    damage(30, |bytes| bytes.truncate(100));
    damage(20, |bytes| bytes[10] ^= 1);
    let after = cache(PLENTY, 0, Some(&store));
    assert_eq!(after.peek(key, &tokens).tokens, 30);
    assert_eq!(found(&after, key, &tokens), 10);
    let stats = after.stats();
    assert_eq!((stats.unreadable, stats.entries), (2, 1));
    assert_eq!(store.entries().len(), 1, "what is no state was removed");
}

/// What other programs put there is none of ours.
#[test]
fn foreign_entries() {
    let store = Arc::new(MemoryStore::new(PLENTY));
    store.entries().push(("hello".to_owned(), vec![1; 70]));
    let cache = cache(PLENTY, 0, Some(&store));
    assert_eq!(cache.stats().entries, 0);
    assert!(store.entries().is_empty());
}

/// A store that has become smaller, or that others have filled.
#[test]
fn a_smaller_store() {
    let key = keys()[0];
    let large = Arc::new(MemoryStore::new(PLENTY));
    let before = cache(PLENTY, 0, Some(&large));
    for n in 0..10 {
        insert(&before, key, &prompt(n, 10 + n as usize));
    }
    drop(before);
    let small = Arc::new(MemoryStore::new(400));
    small.entries().append(&mut large.entries());
    let after = cache(PLENTY, 0, Some(&small));
    assert!(small.bytes() <= 400 && after.stats().entries == 3);
    // The three that cost most to compute again.
    assert_eq!(found(&after, key, &prompt(9, 20)), 19);
}

/// Two caches on one store: each finds what the other has put there, once it looks, and misses what is gone.
#[test]
fn two_caches() {
    let key = keys()[0];
    let store = Arc::new(MemoryStore::new(PLENTY));
    let (a, b) = (
        cache(PLENTY, 0, Some(&store)),
        cache(PLENTY, 0, Some(&store)),
    );
    let tokens = prompt(0, 30);
    insert(&a, key, &tokens[..20]);
    a.flush();
    assert_eq!(found(&b, key, &tokens), 0);
    b.refresh();
    assert_eq!(found(&b, key, &tokens), 20);
    // Both have it, under one name or two.
    insert(&b, key, &tokens[..10]);
    insert(&b, key, &tokens[..25]);
    insert(&a, key, &tokens[..25]);
    b.flush();
    a.flush();
    a.refresh();
    b.refresh();
    assert_eq!(a.stats().entries, 3);
    assert_eq!(b.stats().entries, 3);
    store.entries().clear();
    b.refresh();
    assert_eq!(b.stats().store_bytes, 0);
    assert_eq!(found(&b, key, &tokens), 25, "memory has it still");
    a.refresh();
    assert_eq!(found(&a, key, &tokens), 25);
}
