//! The state cache against a plain map, with little room, with stores that fail, across restarts and threads.
#![allow(
    clippy::expect_used,
    clippy::cast_possible_truncation,
    reason = "tests fail by panicking; small numbers"
)]

mod memory_store;
mod random;
mod restart;
mod tiers;

use memory_store::MemoryStore;
use rwkv_sched::{CacheKey, Hit, State, StateCache, StateCacheOptions, StateLayout, TokenId};
use std::sync::Arc;

/// 64 bytes a state.
const LAYOUT: StateLayout = StateLayout {
    layers: 1,
    wkv: 12,
    shift: 4,
};
const STATE: u64 = 64;

/// A state that tells whose it is.
fn state(key: CacheKey, tokens: &[TokenId]) -> Arc<State> {
    let mut seen: Vec<u32> = tokens.iter().rev().take(10).copied().collect();
    seen.resize(10, u32::MAX);
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for token in tokens {
        hash = (hash ^ u64::from(*token)).wrapping_mul(0x0100_0000_01b3);
    }
    let (high, low) = ((hash >> 32) as u32, (hash & 0xffff_ffff) as u32);
    seen.extend([high, low]);
    let floats = |bits: &[u32]| {
        bits.iter()
            .map(|b| f32::from_bits(*b))
            .collect::<Vec<f32>>()
    };
    let shift = [tokens.len() as f32, f32::from(key_number(key)), -0.0, 1e-40];
    Arc::new(State {
        wkv: vec![floats(&seen)],
        shift: vec![shift.to_vec()],
    })
}

fn keys() -> [CacheKey; 3] {
    let model = CacheKey::new(b"model");
    [model, model.with(b"adapter"), CacheKey::new(b"another")]
}

fn key_number(key: CacheKey) -> u8 {
    keys()
        .iter()
        .position(|k| *k == key)
        .map_or(99, |n| n as u8)
}

fn bits(state: &State) -> Vec<u32> {
    let all = state.wkv.iter().chain(&state.shift).flatten();
    all.map(|x| x.to_bits()).collect()
}

/// A hit is the state of that prefix, and leaves a token.
fn check_hit(key: CacheKey, tokens: &[TokenId], hit: &Hit) {
    assert!(hit.tokens > 0 && hit.tokens < tokens.len());
    let want = state(key, &tokens[..hit.tokens]);
    assert_eq!(
        bits(&hit.state),
        bits(&want),
        "{} of {tokens:?}",
        hit.tokens
    );
}

fn options(memory: u64, queue: u64, background: bool) -> StateCacheOptions {
    StateCacheOptions {
        memory_bytes: memory,
        queue_bytes: queue,
        background,
    }
}

fn cache(memory: u64, queue: u64, store: Option<&Arc<MemoryStore>>) -> StateCache {
    let store = store.map(|store| store.clone() as Arc<_>);
    StateCache::new(LAYOUT, options(memory, queue, false), store)
}

fn insert(cache: &StateCache, key: CacheKey, tokens: &[TokenId]) {
    cache
        .insert(key, tokens, state(key, tokens))
        .expect("a state of this layout");
}

/// How many tokens a lookup finds a state for; 0 for none.
fn found(cache: &StateCache, key: CacheKey, tokens: &[TokenId]) -> usize {
    cache.lookup(key, tokens).map_or(0, |hit| {
        check_hit(key, tokens, &hit);
        hit.tokens
    })
}
