//! A pool of GPU buffers.
//!
//! A buffer goes back when it is dropped, and the next request of its size class takes it at once, without waiting for
//! the GPU: a device has one queue, which runs submissions in the order in which they were made, and writes by the host
//! in between. So whoever takes a buffer uses it after whoever had it, if that one dropped it after its last submission.
//! (Buffers that the host maps do not belong here.)
//!
//! Where the GPU has no memory for a new buffer, all free ones go, and it is tried once more.

use crate::shelves::{Attempt, Class, Shelves};
use rwkv_gpu::{Buffer, BufferKind, CacheCounts, Error, Gpu, Result};
use std::{ops::Deref, sync::Arc};

/// A pool of buffers of one GPU, for any number of threads. Cloning shares it.
#[derive(Clone)]
pub struct Pool {
    inner: Arc<Inner>,
}

struct Inner {
    gpu: Gpu,
    shelves: Shelves<BufferKind, Buffer>,
}

/// What a pool has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolCounters {
    /// Bytes handed out now.
    pub live: u64,
    /// Bytes of those that were asked for: size classes are larger.
    pub asked: u64,
    /// The most bytes handed out at once.
    pub peak: u64,
    /// Bytes on the shelves.
    pub cached: u64,
    /// Requests served from a shelf.
    pub hits: u64,
    /// Requests that made a buffer.
    pub misses: u64,
}

impl PoolCounters {
    /// Bytes that the pool's buffers take.
    pub fn bytes(self) -> u64 {
        self.live + self.cached
    }

    /// Requests by where their buffer came from.
    pub fn requests(self) -> CacheCounts {
        CacheCounts {
            hits: self.hits,
            misses: self.misses,
        }
    }

    /// The share of its bytes that nobody asked for, from 0 to 1: what lies free, and what size classes add; none where
    /// there are no buffers.
    pub fn fragmentation(self) -> Option<f64> {
        let bytes = self.bytes();
        (bytes > 0).then(|| bytes.saturating_sub(self.asked) as f64 / bytes as f64)
    }
}

/// A buffer from a pool; it returns when dropped. Its contents are whatever was there before.
///
/// Drop it after the last submission that uses it was made: the next owner's work comes after what is submitted by then.
pub struct Pooled {
    buffer: Buffer,
    class: Class<BufferKind>,
    asked: u64,
    pool: Arc<Inner>,
}

impl Pool {
    /// An empty pool.
    pub fn new(gpu: &Gpu) -> Self {
        let inner = Inner {
            gpu: gpu.clone(),
            shelves: Shelves::new(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// The GPU whose buffers these are.
    pub fn gpu(&self) -> &Gpu {
        &self.inner.gpu
    }

    /// A buffer of at least `bytes`, reused if one of its size class is free. Its size is a multiple of the adapter's
    /// offset alignment, where the largest buffer allows it. Where there is no memory for a new one, what is free goes and
    /// it is tried once more, when the GPU has done everything that was submitted.
    ///
    /// # Errors
    /// [`rwkv_gpu::Error::OutOfMemory`] or [`rwkv_gpu::Error::OverLimit`].
    pub fn take(&self, kind: BufferKind, label: &str, bytes: u64) -> Result<Pooled> {
        let inner = &self.inner;
        let class = Class {
            kind,
            bytes: self.bytes_for(bytes),
        };
        let make = |attempt: Attempt| {
            if attempt == Attempt::AfterFreeing {
                tracing::debug!(label, bytes, "no memory: the pool's free buffers went");
                inner.gpu.finish()?;
            }
            inner.gpu.buffer(kind, label, class.bytes)
        };
        let exhausted = |error: &Error| matches!(error, Error::OutOfMemory { .. });
        let buffer = inner.shelves.take(class, bytes, make, exhausted)?;
        Ok(Pooled {
            buffer,
            class,
            asked: bytes,
            pool: inner.clone(),
        })
    }

    /// Bytes of the buffer that [`take`](Self::take) hands out for `bytes`.
    pub fn bytes_for(&self, bytes: u64) -> u64 {
        let limits = &self.inner.gpu.capabilities().limits;
        // Buffers are whole words, and the largest one may not be.
        let largest = limits.buffer_bytes / 4 * 4;
        let class = size_class(bytes, limits.offset_alignment);
        class.min(largest).max(bytes)
    }

    /// Frees the buffers that are not in use, and tells how many bytes they have.
    pub fn trim(&self) -> u64 {
        self.inner.shelves.trim()
    }

    /// What it has done so far. Each counter is exact when nobody takes or drops buffers meanwhile.
    pub fn counters(&self) -> PoolCounters {
        let counts = self.inner.shelves.counts();
        PoolCounters {
            live: counts.live,
            asked: counts.asked,
            peak: counts.peak,
            cached: counts.cached,
            hits: counts.hits,
            misses: counts.misses,
        }
    }
}

/// From here on a size has more classes: there are few such buffers, and what they leave unused counts.
const LARGE: u64 = 1 << 20;

/// The size that requests of `bytes` get: four steps a power of two, so that at most a fifth is unused, from 256 up, and 16 of
/// [`LARGE`] buffers, of which at most a seventeenth is; no less than the next multiple of `alignment`, a power of two.
fn size_class(bytes: u64, alignment: u64) -> u64 {
    let bytes = bytes.max(256);
    let steps = if bytes > LARGE { 16 } else { 4 };
    let step = (1u64 << (bytes - 1).ilog2()) / steps;
    let step = step.max(alignment);
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
        let shelves = &self.pool.shelves;
        shelves.put(self.class, self.asked, self.buffer.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn classes_waste_little(bytes in 256u64..1 << 40, alignment in 4u32..9) {
            let alignment = 1 << alignment;
            let class = size_class(bytes, alignment);
            prop_assert!(class >= bytes);
            let part = if bytes > LARGE { 16 } else { 4 };
            prop_assert!(class < bytes + (bytes / part).max(alignment));
            prop_assert!(class.is_multiple_of(alignment));
            prop_assert_eq!(size_class(class, alignment), class);
        }
    }

    #[test]
    fn shares() {
        #[track_caller]
        fn check(live: u64, asked: u64, cached: u64, want: Option<f64>) {
            let counters = PoolCounters {
                live,
                asked,
                cached,
                ..PoolCounters::default()
            };
            assert_eq!(counters.fragmentation(), want);
        }
        check(0, 0, 0, None);
        check(512, 512, 0, Some(0.0));
        check(512, 256, 0, Some(0.5));
        check(256, 256, 768, Some(0.75));
        check(0, 0, 256, Some(1.0));
        check(256, 0, 0, Some(1.0));
    }
}
