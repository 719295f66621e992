//! Random acts, compared with a map of everything that was ever inserted.

use super::{MemoryStore, STATE, cache, check_hit, found, insert, keys};
use proptest::prelude::*;
use rwkv_sched::{CacheKey, StateCache, TokenId};
use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering::SeqCst},
};

#[derive(Clone, Debug)]
enum Act {
    Insert(usize, Vec<TokenId>),
    Lookup(usize, Vec<TokenId>),
    InMemory(usize, Vec<TokenId>),
    Write,
    Flush,
    Refresh,
    Restart,
    /// Flips bits of an entry of the store, or removes it.
    Damage(prop::sample::Index, prop::sample::Index, u8),
    /// From here on the store fails, or does not.
    Fail(bool),
}

fn tokens() -> impl Strategy<Value = Vec<TokenId>> {
    prop::collection::vec((0u32..3, 1usize..5), 0..7)
        .prop_map(|runs| runs.iter().flat_map(|(t, n)| vec![*t; *n]).collect())
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        8 => (0usize..3, tokens()).prop_map(|(key, tokens)| Act::Insert(key, tokens)),
        8 => (0usize..3, tokens()).prop_map(|(key, tokens)| Act::Lookup(key, tokens)),
        2 => (0usize..3, tokens()).prop_map(|(key, tokens)| Act::InMemory(key, tokens)),
        3 => Just(Act::Write),
        1 => Just(Act::Flush),
        1 => Just(Act::Refresh),
        1 => Just(Act::Restart),
        1 => any::<(prop::sample::Index, prop::sample::Index, u8)>().prop_map(|(a, b, c)| Act::Damage(a, b, c)),
        1 => prop::bool::weighted(0.3).prop_map(Act::Fail),
    ]
}

/// The longest prefix of `tokens` that was inserted and leaves a token.
fn longest(all: &BTreeSet<(CacheKey, Vec<TokenId>)>, key: CacheKey, tokens: &[TokenId]) -> usize {
    let lengths = (1..tokens.len()).rev();
    let mut there = lengths.filter(|n| all.contains(&(key, tokens[..*n].to_vec())));
    there.next().unwrap_or(0)
}

fn check_bounds(cache: &StateCache, store: &MemoryStore, memory: u64, queue: u64, capacity: u64) {
    let stats = cache.stats();
    assert!(stats.memory_bytes <= memory, "{stats:?}");
    assert!(stats.queue_bytes <= queue.max(STATE), "{stats:?}");
    assert!(stats.store_bytes <= capacity, "{stats:?}");
    if !store.fails.load(SeqCst) {
        assert!(store.bytes() <= capacity, "{} > {capacity}", store.bytes());
    }
}

proptest! {
    /// Whatever happens: bounds hold, and what is found is the state of that prefix.
    #[test]
    fn bounds_and_truth(
        acts in prop::collection::vec(act(), 1..150),
        memory in 0u64..1500,
        queue in 0u64..300,
        capacity in 0u64..2000,
        with_store in prop::bool::weighted(0.9),
    ) {
        let store = Arc::new(MemoryStore::new(capacity));
        let open = || cache(memory, queue, with_store.then_some(&store));
        let mut cache = open();
        let mut all = BTreeSet::new();
        let mut failed = false;
        for act in acts {
            match act {
                Act::Insert(key, tokens) => {
                    let key = keys()[key];
                    insert(&cache, key, &tokens);
                    all.insert((key, tokens));
                }
                Act::Lookup(key, tokens) => {
                    let key = keys()[key];
                    let peek = cache.peek(key, &tokens);
                    let hit = found(&cache, key, &tokens);
                    prop_assert!(hit <= longest(&all, key, &tokens));
                    // Only what cannot be read is not as it was said to be.
                    prop_assert!(hit <= peek.tokens && peek.tokens <= peek.shared);
                    prop_assert!(hit == peek.tokens || !peek.in_memory);
                    prop_assert!(peek.shared < tokens.len().max(1));
                }
                Act::InMemory(key, tokens) => {
                    let key = keys()[key];
                    let gets = store.gets.load(SeqCst);
                    if let Some(hit) = cache.lookup_in_memory(key, &tokens) {
                        check_hit(key, &tokens, &hit);
                    }
                    prop_assert_eq!(store.gets.load(SeqCst), gets);
                }
                Act::Write => {
                    let waits = cache.stats().queue_bytes > 0;
                    prop_assert!(waits || !cache.write_one());
                }
                Act::Flush => cache.flush(),
                Act::Refresh => cache.refresh(),
                Act::Restart => {
                    drop(cache);
                    cache = open();
                }
                Act::Damage(which, at, by) => {
                    let mut entries = store.entries();
                    if !entries.is_empty() {
                        let which = which.index(entries.len());
                        let bytes = &mut entries[which].1;
                        // Not the values: what tells whether those are damaged is the store.
                        let at = at.index(60);
                        if by == 0 { entries.remove(which); } else { bytes[at] ^= by; }
                    }
                }
                Act::Fail(fails) => {
                    store.fails.store(fails, SeqCst);
                    failed |= fails;
                }
            }
            if failed {
                // What could not be removed is still there.
                prop_assert!(cache.stats().memory_bytes <= memory);
            } else {
                check_bounds(&cache, &store, memory, queue, capacity);
            }
        }
    }

    /// With room for all, a lookup finds what a search through all finds, in memory and after a restart.
    #[test]
    fn as_a_map(
        inserts in prop::collection::vec((0usize..3, tokens()), 0..40),
        lookups in prop::collection::vec((0usize..3, tokens()), 0..40),
        memory in prop_oneof![Just(0u64), Just(300), Just(1000), Just(1 << 20)],
    ) {
        let store = Arc::new(MemoryStore::new(1 << 20));
        let open = || cache(memory, 1 << 20, Some(&store));
        let mut cache = open();
        let mut all = BTreeSet::new();
        for (key, tokens) in inserts {
            insert(&cache, keys()[key], &tokens);
            all.insert((keys()[key], tokens));
        }
        for round in 0..3 {
            for (key, tokens) in &lookups {
                let key = keys()[*key];
                let peek = cache.peek(key, tokens);
                let want = longest(&all, key, tokens);
                prop_assert_eq!(peek.tokens, want);
                prop_assert_eq!(found(&cache, key, tokens), want);
                let common = |other: &[TokenId]| other.iter().zip(tokens).take_while(|(a, b)| a == b).count();
                let shared = all.iter().filter(|(k, _)| *k == key).map(|(_, other)| common(other)).max();
                let shared = shared.unwrap_or(0).min(tokens.len().saturating_sub(1));
                if memory == 1 << 20 && round == 0 {
                    prop_assert_eq!(peek.shared, shared);
                } else {
                    prop_assert!(peek.shared <= shared);
                }
            }
            if round == 0 {
                while cache.write_one() {}
            } else {
                drop(cache);
                cache = open();
            }
        }
        let there = all.iter().filter(|(_, tokens)| !tokens.is_empty()).count();
        prop_assert_eq!(cache.stats().entries, there);
        prop_assert_eq!(cache.stats().lost, 0);
    }
}
