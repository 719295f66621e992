//! A pool of GPU buffers.
//!
//! A buffer that is dropped goes to the shelf of its size class and the next request of that class takes it, while
//! the GPU may still be working with it: there is one queue, and work submitted later runs after it. (Buffers that the
//! host maps do not belong here.)

use dashmap::DashMap;
use parking_lot::Mutex;
use rwkv_gpu::{Buffer, BufferKind, Gpu, Result};
use std::{
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// A pool of buffers of one GPU. Cloning shares it.
#[derive(Clone)]
pub struct Pool {
    inner: Arc<Inner>,
}

struct Inner {
    gpu: Gpu,
    shelves: DashMap<(BufferKind, u64), Vec<Buffer>>,
    /// Bytes handed out and their peak change together.
    live: Mutex<(u64, u64)>,
    cached: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
}

/// What a pool has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolCounters {
    /// Bytes handed out now.
    pub live: u64,
    /// The most bytes handed out at once.
    pub peak: u64,
    /// Bytes on the shelves.
    pub cached: u64,
    /// Requests served from a shelf.
    pub hits: u64,
    /// Requests that made a buffer.
    pub misses: u64,
}

/// A buffer from a pool; it returns when dropped. Its contents are whatever was there before.
pub struct Pooled {
    buffer: Buffer,
    class: (BufferKind, u64),
    pool: Arc<Inner>,
}

impl Pool {
    /// An empty pool.
    pub fn new(gpu: &Gpu) -> Self {
        let inner = Inner {
            gpu: gpu.clone(),
            shelves: DashMap::new(),
            live: Mutex::default(),
            cached: AtomicU64::default(),
            hits: AtomicU64::default(),
            misses: AtomicU64::default(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// The GPU whose buffers these are.
    pub fn gpu(&self) -> &Gpu {
        &self.inner.gpu
    }

    /// A buffer of at least `bytes`, reused if one of its size class is free.
    ///
    /// # Errors
    /// [`rwkv_gpu::Error::OutOfMemory`] or [`rwkv_gpu::Error::OverLimit`].
    pub fn take(&self, kind: BufferKind, label: &str, bytes: u64) -> Result<Pooled> {
        let inner = &self.inner;
        // Buffers are whole words, and the largest one may not be.
        let largest = inner.gpu.capabilities().limits.buffer_bytes / 4 * 4;
        let class = (kind, size_class(bytes).min(largest).max(bytes));
        let shelved = inner
            .shelves
            .get_mut(&class)
            .and_then(|mut shelf| shelf.pop());
        let buffer = if let Some(buffer) = shelved {
            inner.hits.fetch_add(1, Relaxed);
            inner.cached.fetch_sub(class.1, Relaxed);
            buffer
        } else {
            let made = inner.gpu.buffer(kind, label, class.1)?;
            inner.misses.fetch_add(1, Relaxed);
            made
        };
        let mut live = inner.live.lock();
        live.0 += class.1;
        live.1 = live.1.max(live.0);
        Ok(Pooled {
            buffer,
            class,
            pool: inner.clone(),
        })
    }

    /// Frees the buffers that are not in use.
    pub fn trim(&self) {
        self.inner.shelves.retain(|class, shelf| {
            // What other threads put on a shelf meanwhile is not counted off.
            let bytes = class.1 * shelf.len() as u64;
            self.inner.cached.fetch_sub(bytes, Relaxed);
            false
        });
    }

    /// What it has done so far.
    pub fn counters(&self) -> PoolCounters {
        let (live, peak) = *self.inner.live.lock();
        let load = |n: &AtomicU64| n.load(Relaxed);
        let inner = &self.inner;
        PoolCounters {
            live,
            peak,
            cached: load(&inner.cached),
            hits: load(&inner.hits),
            misses: load(&inner.misses),
        }
    }
}

/// The size that requests of `bytes` get: four steps a power of two, so that at most a fifth is unused, from 256 up.
fn size_class(bytes: u64) -> u64 {
    let bytes = bytes.max(256);
    let step = (1u64 << (bytes - 1).ilog2()) / 4;
    bytes.checked_next_multiple_of(step).unwrap_or(bytes)
}

impl Deref for Pooled {
    type Target = Buffer;

    fn deref(&self) -> &Buffer {
        &self.buffer
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        self.pool.live.lock().0 -= self.class.1;
        self.pool.cached.fetch_add(self.class.1, Relaxed);
        self.pool
            .shelves
            .entry(self.class)
            .or_default()
            .push(self.buffer.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn classes_waste_little(bytes in 256u64..1 << 40) {
            let class = size_class(bytes);
            prop_assert!(class >= bytes);
            prop_assert!(class <= bytes + bytes / 4);
            prop_assert_eq!(size_class(class), class);
        }
    }
}
