//! Inputs of products, rounded to f16 once for all products that read them.

use super::arena::Lease;
use crate::{Result, ValueId};
use rwkv_gpu::Buffer;
use rwkv_kernels::ops::HalfRows;
use std::collections::{HashMap, VecDeque};

/// The rounded values of a plan. A buffer is used again once its value was read for the last time; the one that has been
/// free for longest is taken, as for activations.
pub(super) struct Rounded {
    lease: Lease,
    /// The buffers that are free, by the size that was asked for.
    free: HashMap<u64, VecDeque<Buffer>>,
    places: HashMap<ValueId, HalfRows>,
}

impl Rounded {
    /// None yet; their buffers come from `lease`.
    pub(super) fn new(lease: Lease) -> Self {
        Self {
            lease,
            free: HashMap::new(),
            places: HashMap::new(),
        }
    }

    /// Where the rounded rows of `id` lie, if they do.
    pub(super) fn get(&self, id: ValueId) -> Option<HalfRows> {
        self.places.get(&id).cloned()
    }

    /// A place for the rounded rows of `id`.
    ///
    /// # Errors
    /// Memory that does not suffice.
    pub(super) fn place(&mut self, id: ValueId, rows: usize, width: usize) -> Result<HalfRows> {
        let bytes = HalfRows::bytes(rows, width);
        let free = self.free.entry(bytes).or_default().pop_front();
        let buffer = match free {
            Some(buffer) => buffer,
            None => Buffer::clone(&**self.lease.take("inputs in f16", bytes)?),
        };
        let halves = HalfRows::placed(buffer, 0, rows, width);
        self.places.insert(id, halves.clone());
        Ok(halves)
    }

    /// Frees the places of the values that are `done`.
    pub(super) fn release(&mut self, done: impl Fn(ValueId) -> bool) {
        let free = &mut self.free;
        self.places.retain(|id, halves| {
            let keeps = !done(*id);
            if !keeps {
                let bytes = HalfRows::bytes(halves.rows(), halves.width());
                free.entry(bytes)
                    .or_default()
                    .push_back(halves.buffer().clone());
            }
            keeps
        });
    }
}
