//! The state cache: a long prompt among thousands of prefixes, and states of a 1.5B model to a disk and back.
//!
//! Files are read from the system's page cache where it has them: what a disk costs comes on top.
#![allow(
    missing_docs,
    reason = "criterion's macros make undocumented functions"
)]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rwkv_model::DiskStateStore;
use rwkv_sched::{
    CacheKey, State, StateCache, StateCacheOptions, StateLayout, StateStore, TokenId,
};
use std::{hint::black_box, path::Path, sync::Arc};

const SMALL: StateLayout = StateLayout {
    layers: 1,
    wkv: 12,
    shift: 4,
};
/// RWKV-7 of 24 layers × 2048: 12.98 MB.
const OF_1_5B: StateLayout = StateLayout {
    layers: 24,
    wkv: 2048 * 64,
    shift: 2 * 2048,
};
/// Tokens that all have in common.
const SHARED: usize = 26_000;

fn prompt(seed: u32, length: usize) -> Vec<TokenId> {
    let token = |n: u32| n.wrapping_mul(2_654_435_761).wrapping_add(seed) % 65_536;
    (0..).map(token).take(length).collect()
}

fn options(memory_bytes: u64) -> StateCacheOptions {
    StateCacheOptions {
        memory_bytes,
        queue_bytes: 1 << 30,
        background: false,
    }
}

fn store(folder: &Path) -> Option<Arc<dyn StateStore>> {
    let store = DiskStateStore::open(folder, "bench", 300 << 20).ok()?;
    Some(Arc::new(store))
}

/// Values whose exponents are as those of states: sums of four, of either sign.
fn state(layout: StateLayout) -> State {
    let mut x = 0x9e37_79b9_u32;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        x as f32 / u32::MAX as f32 - 0.5
    };
    let mut state = State::zeros(layout);
    for value in state.wkv.iter_mut().chain(&mut state.shift).flatten() {
        *value = next() + next() + next() + next();
    }
    state
}

/// A long prefix and `others`, half of which leave it somewhere, while half share nothing.
fn filled(others: u32, store: Option<Arc<dyn StateStore>>) -> StateCache {
    let key = CacheKey::new(b"model");
    let state = Arc::new(State::zeros(SMALL));
    let cache = StateCache::new(SMALL, options(1 << 30), store);
    let shared = prompt(0, SHARED);
    let _ = cache.insert(key, &shared, state.clone());
    for n in 0..others {
        let common = if n % 2 == 0 { 0 } else { n as usize * 5 };
        let tokens = [&shared[..common], &prompt(n, 20)].concat();
        let _ = cache.insert(key, &tokens, state.clone());
    }
    cache
}

fn lookup(c: &mut Criterion) {
    let Ok(folder) = tempfile::tempdir() else {
        return;
    };
    let key = CacheKey::new(b"model");
    let request = [prompt(0, SHARED), prompt(1, 50)].concat();
    let mut group = c.benchmark_group("26,000 tokens");
    let cache = filled(5_000, None);
    group.bench_function("among 5,000 prefixes", |b| {
        b.iter(|| cache.lookup(black_box(key), black_box(&request)));
    });
    let state = Arc::new(State::zeros(SMALL));
    group.bench_function("insert", |b| {
        let mut tokens = request.clone();
        b.iter(|| {
            tokens[SHARED] = tokens[SHARED].wrapping_add(1);
            cache.insert(key, &tokens, state.clone())
        });
    });
    // Writes them.
    drop(filled(1_000, store(folder.path())));
    group.bench_function("open 1,000 entries", |b| {
        b.iter(|| StateCache::new(SMALL, options(1 << 30), store(folder.path())));
    });
    let cache = StateCache::new(SMALL, options(0), store(folder.path()));
    group.bench_function("among 1,000 hashes", |b| {
        b.iter(|| cache.peek(black_box(key), black_box(&request)));
    });
    group.finish();
}

fn disk(c: &mut Criterion) {
    let Ok(folder) = tempfile::tempdir() else {
        return;
    };
    let key = CacheKey::new(b"model");
    let state = Arc::new(state(OF_1_5B));
    let cache = StateCache::new(OF_1_5B, options(0), store(folder.path()));
    let mut group = c.benchmark_group("state of 1.5B");
    group.throughput(Throughput::Bytes(OF_1_5B.bytes()));
    group.sample_size(20);
    let mut n = 0;
    group.bench_function("write", |b| {
        b.iter(|| {
            n += 1;
            let _ = cache.insert(key, &prompt(n, 100), state.clone());
            cache.write_one()
        });
    });
    let request = prompt(n, 101);
    group.bench_function("read", |b| b.iter(|| cache.lookup(key, &request)));
    group.finish();
    let stats = cache.stats();
    let files = store(folder.path()).and_then(|store| store.list().ok());
    if let Some(one) = files.unwrap_or_default().first() {
        let share = one.bytes as f64 / OF_1_5B.bytes() as f64;
        println!(
            "{} bytes a file, {share:.3} of the state; {stats:?}",
            one.bytes
        );
    }
}

criterion_group!(benches, lookup, disk);
criterion_main!(benches);
