//! The buffers that an executor's plans share: one plan runs at a time, and nothing in them is needed after its step.

use crate::Result;
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
    leased: Leased,
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
    pub(super) fn lease(&self, pool: &Pool) -> Lease {
        Lease(Arc::new(Mutex::new(Taking {
            arena: self.clone(),
            pool: pool.clone(),
            free: self.held(),
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
        let buffer = if let Some((index, _)) = best {
            self.free.swap_remove(index)
        } else {
            let made = Arc::new(self.pool.take(BufferKind::Storage, label, bytes)?);
            self.arena.buffers.lock().push(Arc::downgrade(&made));
            made
        };
        self.leased.needed.push(self.pool.bytes_for(bytes));
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

    /// Whether `others` together have all of its buffers.
    pub(super) fn is_within(&self, others: &[&Leased]) -> bool {
        let held = others.iter().flat_map(|other| &other.buffers);
        let has = |buffer: &Arc<Pooled>| held.clone().any(|b| Arc::ptr_eq(b, buffer));
        self.buffers.iter().all(has)
    }
}
