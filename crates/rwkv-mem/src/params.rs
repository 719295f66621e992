//! Small parameters of kernels, shared by content.
//!
//! A kernel's sizes stay the same from step to step, so they live in uniform buffers that are written once: what
//! differs between steps (tokens, slots) comes through storage buffers. Blocks are carved from larger buffers at the
//! adapter's offset alignment.
//!
//! The cache is bounded: kernels that run once, while weights are blended say, have parameters that never come again, and
//! give way to those that are asked for more. A place in a larger buffer is not used again, because a bind group may have
//! it; so when several times as much was carved as is kept, all blocks are forgotten at once, and the larger buffers are
//! free as soon as nobody has bound them.

use parking_lot::Mutex;
use quick_cache::sync::Cache;
use rwkv_gpu::{Binding, Buffer, BufferKind, CacheCounter, CacheCounts, Gpu, Result};
use std::{borrow::Cow, sync::Arc};

/// Bytes of one buffer that blocks are carved from: WebGPU's smallest limit for a uniform binding.
const ARENA_BYTES: u64 = 64 << 10;

/// Blocks that are kept: 1 MiB at the usual alignment of 256. A plan of a large model has a few hundred different ones.
const MOST_BLOCKS: usize = 4096;

/// Blocks that are carved until all are forgotten: what is kept then lies scattered over 4 MiB.
const MOST_CARVED: usize = 4 * MOST_BLOCKS;

/// A cache of parameter blocks of one GPU. Cloning shares it.
#[derive(Clone)]
pub struct ParamCache {
    inner: Arc<Inner>,
}

struct Inner {
    gpu: Gpu,
    blocks: Cache<Vec<u8>, ParamBlock>,
    arena: Mutex<Arena>,
    counter: CacheCounter,
}

/// What blocks are carved from.
#[derive(Default)]
struct Arena {
    /// The buffer, and how many bytes of it are taken.
    buffer: Option<(Buffer, u64)>,
    /// Blocks since all were forgotten.
    carved: usize,
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
            blocks: Cache::new(MOST_BLOCKS),
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
        let mut bytes = Cow::from(bytemuck::bytes_of(params));
        if !bytes.len().is_multiple_of(16) {
            let padded = bytes.len().next_multiple_of(16);
            bytes.to_mut().resize(padded, 0);
        }
        let inner = &self.inner;
        if let Some(found) = inner.blocks.get(&*bytes) {
            inner.counter.hit();
            return Ok(found);
        }
        self.forget_if_scattered();
        let mut made = false;
        // Of threads that want the same block one carves it, and the others wait.
        let block = inner.blocks.get_or_insert_with(&*bytes, || {
            made = true;
            self.carve(&bytes)
        })?;
        if made {
            inner.counter.miss();
        } else {
            inner.counter.hit();
        }
        Ok(block)
    }

    /// Requests so far.
    pub fn counts(&self) -> CacheCounts {
        self.inner.counter.counts()
    }

    /// Blocks held: 4096 at most.
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
        let (buffer, offset) = match arena.buffer.take() {
            Some((buffer, used)) if used + size <= buffer.size() => (buffer, used),
            _ => (
                gpu.buffer(BufferKind::Uniform, "parameters", ARENA_BYTES.max(size))?,
                0,
            ),
        };
        gpu.write(&buffer, offset, bytes)?;
        arena.buffer = Some((buffer.clone(), offset + step));
        arena.carved += 1;
        Ok(ParamBlock {
            buffer,
            offset,
            size,
        })
    }

    fn forget_if_scattered(&self) {
        let mut arena = self.inner.arena.lock();
        if arena.carved < MOST_CARVED {
            return;
        }
        *arena = Arena::default();
        drop(arena);
        self.inner.blocks.clear();
    }
}
