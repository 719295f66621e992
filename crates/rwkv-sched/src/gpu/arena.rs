//! The buffers that an executor's plans share: one plan runs at a time, and nothing in them is needed after its step.

use crate::{BatchShape, Result};
use parking_lot::Mutex;
use rwkv_gpu::{Buffer, BufferKind, Gpu};
use rwkv_kernels::Scratch;
use rwkv_mem::{Pool, Pooled};
use std::{
    cmp::Reverse,
    sync::{Arc, Weak},
};

/// Buffers by who holds them: each goes back to the pool with the last plan that has taken it. Cloning shares it.
#[derive(Clone, Default)]
pub(super) struct Arena {
    buffers: Arc<Mutex<Vec<Weak<Pooled>>>>,
}

/// What one plan takes: of the arena's buffers each once, as if all were free, and new ones where none is large enough.
/// Cloning shares it.
#[derive(Clone)]
pub(super) struct Lease(Arc<Mutex<Taking>>);

struct Taking {
    arena: Arena,
    pool: Pool,
    free: Vec<Arc<Pooled>>,
    room: Room,
    leased: Leased,
}

/// Tokens that new buffers have room for, and those of the plan that they are made for.
#[derive(Clone, Copy)]
pub(super) struct Room {
    tokens: u64,
    of: u64,
}

/// What a plan has taken.
#[derive(Clone, Default)]
pub(super) struct Leased {
    buffers: Vec<Arc<Pooled>>,
    /// Bytes that each would have if it were made for the plan.
    needed: Vec<u64>,
}

impl Arena {
    /// For a plan that is being made; new buffers come from `pool`.
    pub(super) fn lease(&self, pool: &Pool, room: Room) -> Lease {
        Lease(Arc::new(Mutex::new(Taking {
            arena: self.clone(),
            pool: pool.clone(),
            free: self.held(),
            room,
            leased: Leased::default(),
        })))
    }

    /// Bytes of all its buffers.
    pub(super) fn bytes(&self) -> u64 {
        self.held().iter().map(|buffer| buffer.size()).sum()
    }

    /// Overwrites all of them, by numbers that are none.
    ///
    /// # Errors
    /// A device that is lost.
    pub(super) fn poison(&self, gpu: &Gpu) -> Result<()> {
        for buffer in self.held() {
            let bytes = usize::try_from(buffer.size()).unwrap_or(usize::MAX);
            gpu.write(&buffer, 0, &vec![0xff; bytes])?;
        }
        Ok(())
    }

    /// The buffers that plans hold.
    fn held(&self) -> Vec<Arc<Pooled>> {
        let mut buffers = self.buffers.lock();
        buffers.retain(|buffer| buffer.strong_count() > 0);
        buffers.iter().filter_map(Weak::upgrade).collect()
    }
}

impl Room {
    /// For batches of `shape`, where prompts have chunks of `chunk` tokens. Up to a chunk it doubles, so that prompts of many
    /// lengths do not each make buffers of their own; of single tokens there are no more than sequences.
    pub(super) fn of(shape: BatchShape, chunk: usize) -> Self {
        let doubled = shape.tokens.checked_next_power_of_two();
        let doubled = doubled.filter(|_| !shape.is_single());
        let tokens = doubled.map_or(shape.tokens, |doubled| doubled.min(chunk));
        Self {
            tokens: tokens.max(shape.tokens) as u64,
            of: shape.tokens.max(1) as u64,
        }
    }

    /// What has `bytes` of the plan's tokens, with room, in a buffer of `most` bytes.
    fn bytes(self, bytes: u64, most: u64) -> u64 {
        let roomy = u128::from(bytes) * u128::from(self.tokens.max(1));
        let roomy = u64::try_from(roomy.div_ceil(u128::from(self.of)));
        roomy.map_or(bytes, |roomy| roomy.min(most).max(bytes))
    }
}

impl Lease {
    /// A buffer of at least `bytes`: the smallest one that is free, or a new one.
    ///
    /// # Errors
    /// Memory that does not suffice.
    pub(super) fn take(&self, label: &str, bytes: u64) -> rwkv_gpu::Result<Arc<Pooled>> {
        self.0.lock().take(label, bytes)
    }

    /// A buffer for each of `sizes`. The largest comes first, so that none that it needs goes to a smaller one.
    ///
    /// # Errors
    /// Memory that does not suffice.
    pub(super) fn take_all(&self, label: &str, sizes: &[u64]) -> Result<Vec<Arc<Pooled>>> {
        let mut order: Vec<usize> = (0..sizes.len()).collect();
        order.sort_by_key(|at| Reverse(sizes[*at]));
        let taken = order
            .into_iter()
            .map(|at| Ok((at, self.take(label, sizes[at])?)));
        let mut taken = taken.collect::<Result<Vec<_>>>()?;
        taken.sort_by_key(|(at, _)| *at);
        Ok(taken.into_iter().map(|(_, buffer)| buffer).collect())
    }

    /// What the plan has to hold on to.
    pub(super) fn leased(&self) -> Leased {
        self.0.lock().leased.clone()
    }
}

impl Scratch for Lease {
    fn take(&self, label: &str, bytes: u64) -> rwkv_gpu::Result<Buffer> {
        Ok(Buffer::clone(&**self.0.lock().take(label, bytes)?))
    }
}

impl Taking {
    fn take(&mut self, label: &str, bytes: u64) -> rwkv_gpu::Result<Arc<Pooled>> {
        let fits = self.free.iter().enumerate();
        let fits = fits.filter(|(_, buffer)| buffer.size() >= bytes);
        let best = fits.min_by_key(|(_, buffer)| buffer.size());
        let largest = self.pool.gpu().capabilities().limits.buffer_bytes;
        let roomy = self.room.bytes(bytes, largest);
        let buffer = if let Some((index, _)) = best {
            self.free.swap_remove(index)
        } else {
            let made = Arc::new(self.pool.take(BufferKind::Storage, label, roomy)?);
            self.arena.buffers.lock().push(Arc::downgrade(&made));
            made
        };
        self.leased.needed.push(self.pool.bytes_for(roomy));
        self.leased.buffers.push(buffer.clone());
        Ok(buffer)
    }
}

impl Leased {
    /// Bytes that its plan needs, whatever the sizes of the buffers that it has found.
    pub(super) fn needed(&self) -> u64 {
        self.needed.iter().sum()
    }

    /// The same, buffer by buffer.
    pub(super) fn sizes(&self) -> &[u64] {
        &self.needed
    }

    /// Whether `other` has all of its buffers.
    pub(super) fn is_within(&self, other: &Leased) -> bool {
        let has = |buffer: &Arc<Pooled>| other.buffers.iter().any(|b| Arc::ptr_eq(b, buffer));
        self.buffers.iter().all(has)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// A plan has room for its own tokens, and for no more than twice as many or a chunk; lengths of prompts up to a chunk
        /// share few sizes.
        #[test]
        fn room_is_enough(tokens in 1usize..5000, spans in 1usize..5000, bits in 5u32..12, bytes in 1u64..1 << 33) {
            let (chunk, spans) = (1 << bits, spans.min(tokens));
            let room = Room::of(BatchShape { tokens, spans, outputs: 1 }, chunk);
            let (has, tokens) = (room.tokens, tokens as u64);
            prop_assert!(has >= tokens && has < 2 * tokens);
            prop_assert_eq!(has == tokens, spans as u64 == tokens || tokens > chunk as u64 || tokens.is_power_of_two());
            let roomy = room.bytes(bytes * tokens, u64::MAX);
            prop_assert_eq!(roomy, bytes * has);
            prop_assert_eq!(room.bytes(bytes, bytes - 1), bytes);
        }
    }
}
