//! Inputs of products, rounded to f16 once for all products that read them.

use crate::{Result, ValueId};
use rwkv_gpu::{Buffer, BufferKind};
use rwkv_kernels::ops::HalfRows;
use rwkv_mem::{Pool, Pooled};
use std::collections::{HashMap, VecDeque};

/// The rounded values of a plan. A buffer is used again once its value was read for the last time; the one that has been
/// free for longest is taken, as for activations.
#[derive(Default)]
pub(super) struct Rounded {
    buffers: Vec<Pooled>,
    /// The buffers that are free, by size.
    free: HashMap<u64, VecDeque<usize>>,
    places: HashMap<ValueId, (usize, HalfRows)>,
}

impl Rounded {
    /// Where the rounded rows of `id` lie, if they do.
    pub(super) fn get(&self, id: ValueId) -> Option<HalfRows> {
        self.places.get(&id).map(|(_, halves)| halves.clone())
    }

    /// A place for the rounded rows of `id`.
    ///
    /// # Errors
    /// Memory that does not suffice.
    pub(super) fn place(
        &mut self,
        pool: &Pool,
        id: ValueId,
        rows: usize,
        width: usize,
    ) -> Result<HalfRows> {
        let bytes = HalfRows::bytes(rows, width);
        let free = self.free.entry(bytes).or_default().pop_front();
        let index = if let Some(index) = free {
            index
        } else {
            let made = pool.take(BufferKind::Storage, "inputs in f16", bytes)?;
            self.buffers.push(made);
            self.buffers.len() - 1
        };
        let buffer = Buffer::clone(&self.buffers[index]);
        let halves = HalfRows::placed(buffer, 0, rows, width);
        self.places.insert(id, (index, halves.clone()));
        Ok(halves)
    }

    /// Frees the places of the values that are `done`.
    pub(super) fn release(&mut self, done: impl Fn(ValueId) -> bool) {
        let free = &mut self.free;
        self.places.retain(|id, (index, halves)| {
            let keeps = !done(*id);
            if !keeps {
                let bytes = HalfRows::bytes(halves.rows(), halves.width());
                free.entry(bytes).or_default().push_back(*index);
            }
            keeps
        });
    }

    /// What the plan has to hold on to.
    pub(super) fn into_buffers(self) -> Vec<Pooled> {
        self.buffers
    }
}
