//! An entry of the state store, as it is and with a header that is right; and what a state cache makes of an entry's
//! content.
#![no_main]

use rwkv_model::state_store::unpack;
use rwkv_sched::{CacheKey, State, StateCache, StateCacheOptions, StateLayout, StateStore, Stored};
use std::{
    io,
    sync::{Arc, LazyLock, Mutex},
};

const MOST: u64 = 4096;
const LAYOUT: StateLayout = StateLayout {
    layers: 2,
    wkv: 16,
    shift: 4,
};

/// Gives the bytes that it was told to give.
#[derive(Default)]
struct Given(Mutex<Vec<u8>>);

impl StateStore for Given {
    fn put(&self, _: &str, bytes: &[u8]) -> io::Result<u64> {
        *self.0.lock().unwrap() = bytes.to_vec();
        Ok(bytes.len() as u64)
    }

    fn get(&self, _: &str, _: u64) -> io::Result<Option<Vec<u8>>> {
        Ok(Some(self.0.lock().unwrap().clone()))
    }

    fn remove(&self, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<Stored>> {
        Ok(Vec::new())
    }

    fn capacity(&self) -> u64 {
        1 << 20
    }
}

/// What a cache puts into a store.
static ENCODED: LazyLock<Vec<u8>> = LazyLock::new(|| encoded(None));

/// Stores a state, and reads it again, or `given` in its place.
fn encoded(given: Option<Vec<u8>>) -> Vec<u8> {
    let store = Arc::new(Given::default());
    let options = StateCacheOptions {
        memory_bytes: 0,
        queue_bytes: 0,
        background: false,
    };
    let cache = StateCache::new(LAYOUT, options, Some(store.clone()));
    let key = CacheKey::new(b"model");
    cache
        .insert(key, &[1, 2], Arc::new(State::zeros(LAYOUT)))
        .unwrap();
    assert!(cache.write_one());
    let put = store.0.lock().unwrap().clone();
    let whole = given.as_ref().is_none_or(|given| given.len() == put.len());
    if let Some(given) = given {
        *store.0.lock().unwrap() = given;
    }
    if let Some(hit) = cache.lookup(key, &[1, 2, 3]) {
        assert!(whole && hit.tokens == 2 && hit.state.check(LAYOUT).is_ok());
    }
    put
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let check = |file: &[u8]| {
        if let Ok(content) = unpack("name", file, MOST) {
            assert!(content.len() as u64 <= MOST);
        }
    };
    check(bytes);
    if let Some(fields) = bytes.get(12..32) {
        let mut sum = crc32fast::Hasher::new();
        sum.update(fields);
        sum.update(b"name");
        let sum = sum.finalize().to_le_bytes();
        check(&[b"rwkvse01", &sum[..], &bytes[12..]].concat());
    }
    encoded(Some(bytes.to_vec()));
    let header = ENCODED.len() - LAYOUT.bytes() as usize;
    encoded(Some([&ENCODED[..header], bytes].concat()));
});
