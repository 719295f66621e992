//! Small parameters of kernels, shared by content.
//!
//! A kernel's sizes stay the same from step to step, so they live in uniform buffers that are written once: what
//! differs between steps (tokens, slots) comes through storage buffers. Blocks are carved from larger buffers at the
//! adapter's offset alignment.
//!
//! The cache is bounded: kernels that run once, while weights are blended say, have parameters that never come again.
//! When it is full it forgets all blocks at once, because a larger buffer is free only when no block of it is in use;
//! what is bound somewhere stays there.

use dashmap::DashMap;
use parking_lot::Mutex;
use rwkv_gpu::{Binding, Buffer, BufferKind, CacheCounter, CacheCounts, Gpu, Result};
use std::sync::Arc;

/// Bytes of one buffer that blocks are carved from: WebGPU's smallest limit for a uniform binding.
const ARENA_BYTES: u64 = 64 << 10;

/// Blocks that are kept: 1 MiB at the usual alignment of 256. A plan of a large model has a few hundred different ones.
const MOST_BLOCKS: usize = 4096;

/// A cache of parameter blocks of one GPU. Cloning shares it.
#[derive(Clone)]
pub struct ParamCache {
    inner: Arc<Inner>,
}

struct Inner {
    gpu: Gpu,
    blocks: DashMap<Box<[u8]>, ParamBlock>,
    arena: Mutex<Option<(Buffer, u64)>>,
    counter: CacheCounter,
}

/// Parameters on the GPU, ready to bind; they stay as they are while this or a bind group of it lives.
#[derive(Clone, Debug)]
pub struct ParamBlock {
    buffer: Buffer,
    offset: u64,
    size: u64,
}

impl ParamBlock {
    /// What to bind.
    pub fn binding(&self) -> Binding<'_> {
        Binding {
            buffer: &self.buffer,
            offset: self.offset,
            size: Some(self.size),
        }
    }
}

impl ParamCache {
    /// An empty cache.
    pub fn new(gpu: &Gpu) -> Self {
        let inner = Inner {
            gpu: gpu.clone(),
            blocks: DashMap::new(),
            arena: Mutex::default(),
            counter: CacheCounter::default(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// The block that holds `params` (padded to 16 bytes, as uniform structs are).
    ///
    /// # Errors
    /// [`rwkv_gpu::Error::OutOfMemory`] when a new arena does not fit.
    pub fn block<T: bytemuck::NoUninit>(&self, params: &T) -> Result<ParamBlock> {
        let mut bytes = bytemuck::bytes_of(params).to_vec();
        bytes.resize(bytes.len().next_multiple_of(16), 0);
        if let Some(found) = self.inner.blocks.get(bytes.as_slice()) {
            self.inner.counter.hit();
            return Ok(found.clone());
        }
        self.inner.counter.miss();
        let made = self.carve(&bytes)?;
        // Two threads may carve the same block; the first one stored is kept.
        Ok(self
            .inner
            .blocks
            .entry(bytes.into_boxed_slice())
            .or_insert(made)
            .clone())
    }

    /// Requests so far.
    pub fn counts(&self) -> CacheCounts {
        self.inner.counter.counts()
    }

    /// Blocks held: 4096 at most, and one a thread that is adding one.
    pub fn len(&self) -> usize {
        self.inner.blocks.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.inner.blocks.is_empty()
    }

    fn carve(&self, bytes: &[u8]) -> Result<ParamBlock> {
        let gpu = &self.inner.gpu;
        let size = bytes.len() as u64;
        let step = size.next_multiple_of(gpu.capabilities().limits.offset_alignment);
        let mut arena = self.inner.arena.lock();
        if self.inner.blocks.len() >= MOST_BLOCKS {
            self.inner.blocks.clear();
            *arena = None;
        }
        let (buffer, offset) = match arena.take() {
            Some((buffer, used)) if used + size <= buffer.size() => (buffer, used),
            _ => (
                gpu.buffer(BufferKind::Uniform, "parameters", ARENA_BYTES.max(size))?,
                0,
            ),
        };
        gpu.write(&buffer, offset, bytes)?;
        *arena = Some((buffer.clone(), offset + step));
        Ok(ParamBlock {
            buffer,
            offset,
            size,
        })
    }
}
