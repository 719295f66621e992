//! Copies of states on the GPU, to go back to.

use super::states::States;
use crate::{Result, SlotId};
use rwkv_gpu::{BufferKind, Recorder};
use rwkv_mem::{Pool, Pooled};

/// Bytes of one buffer, at most, where it has several states.
const TOGETHER: u64 = 256 << 20;

/// Copies of the states of some slots; room for them until they are filled.
pub(crate) struct StateCopies {
    /// Slots that lie one after the other, a power of two of them so that the pool has few sizes: copying them together takes
    /// as many commands as copying one.
    runs: Vec<(SlotId, u32, Pooled)>,
}

impl StateCopies {
    /// Room for copies of the states of `slots`.
    ///
    /// # Errors
    /// [`crate::Error::SlotRange`], or memory that does not suffice.
    pub(super) fn new(pool: &Pool, states: &States, slots: &[SlotId]) -> Result<Self> {
        let mut slots = slots.to_vec();
        slots.sort_unstable();
        let fit = (TOGETHER / states.slot_bytes().max(1)).max(1);
        let mut runs = Vec::new();
        let mut rest = slots.as_slice();
        while let Some(&first) = rest.first() {
            let follow = (first.0..).zip(rest).take_while(|(n, slot)| *n == slot.0);
            let follow = u32::try_from(follow.count()).unwrap_or(u32::MAX);
            let most = follow.min(u32::try_from(fit).unwrap_or(u32::MAX));
            let count = 1 << states.together(first, most)?.max(1).ilog2();
            let bytes = states.slot_bytes() * u64::from(count);
            let copy = pool.take(BufferKind::Storage, "copies of states", bytes)?;
            runs.push((first, count, copy));
            rest = rest.get(count as usize..).unwrap_or_default();
        }
        Ok(Self { runs })
    }

    /// Records copying the states.
    pub(super) fn fill(&self, recorder: &mut Recorder, states: &States) -> Result<()> {
        let mut runs = self.runs.iter();
        runs.try_for_each(|(first, count, copy)| states.copy_out(recorder, (*first, *count), copy))
    }

    /// Records copying them back.
    pub(super) fn put_back(&self, recorder: &mut Recorder, states: &States) -> Result<()> {
        let mut runs = self.runs.iter();
        runs.try_for_each(|(first, count, copy)| states.copy_in(recorder, (*first, *count), copy))
    }
}
