//! The states of all slots in GPU memory: a layer's recurrences in one buffer `[slot, head, value, key]` (version 4:
//! `[slot, 3, C]`) and its shift vectors in another `[slot, 2, C]`, cut into pages of slots where they pass the binding
//! limit. What a sequence begins with lies beside them once, and is copied from there.

use crate::{Error, Result, SlotId, State, StateLayout};
use rwkv_gpu::{Buffer, BufferKind, Gpu, Readback, Recorder};
use rwkv_kernels::Page;
use rwkv_mem::Upload;

/// The states of all slots.
pub(super) struct States {
    layout: StateLayout,
    slots: usize,
    pages: Vec<StatePage>,
    /// What a sequence begins with, block after block, where it is not zeros.
    initial: Option<Buffer>,
}

/// The slots that fit one binding.
pub(super) struct StatePage {
    page: Page,
    /// A layer each.
    wkv: Vec<Buffer>,
    shift: Vec<Buffer>,
}

impl StatePage {
    pub(super) fn page(&self) -> Page {
        self.page
    }

    pub(super) fn wkv(&self, layer: usize) -> &Buffer {
        &self.wkv[layer]
    }

    pub(super) fn shift(&self, layer: usize) -> &Buffer {
        &self.shift[layer]
    }
}

impl States {
    /// `slots` zeroed states.
    pub(super) fn new(gpu: &Gpu, layout: StateLayout, slots: usize) -> Result<Self> {
        let limits = &gpu.capabilities().limits;
        let largest = limits.binding_bytes.min(limits.buffer_bytes);
        let slot_bytes = (layout.wkv.max(layout.shift) * 4) as u64;
        let fit = usize::try_from(largest / slot_bytes.max(1))
            .unwrap_or(usize::MAX)
            .max(1);
        Self::paged(gpu, layout, slots, fit)
    }

    /// `slots` zeroed states in pages of `fit`.
    fn paged(gpu: &Gpu, layout: StateLayout, slots: usize, fit: usize) -> Result<Self> {
        let index = |n: usize| {
            u32::try_from(n).map_err(|_| Error::Config {
                problem: format!("{slots} slots, more than 2^32"),
            })
        };
        let mut pages = Vec::new();
        for first in (0..slots).step_by(fit) {
            let count = fit.min(slots - first);
            let buffers = |what: &str, elements: usize| {
                (0..layout.layers)
                    .map(|layer| {
                        let label = format!("{what} state of layer {layer}");
                        gpu.buffer(BufferKind::Storage, &label, (count * elements * 4) as u64)
                    })
                    .collect::<rwkv_gpu::Result<Vec<_>>>()
            };
            let page = Page {
                first_slot: index(first)?,
                slots: index(count)?,
                padding: [0; 2],
            };
            pages.push(StatePage {
                page,
                wkv: buffers("wkv", layout.wkv)?,
                shift: buffers("shift", layout.shift)?,
            });
        }
        Ok(Self {
            layout,
            slots,
            pages,
            initial: None,
        })
    }

    pub(super) fn slots(&self) -> usize {
        self.slots
    }

    pub(super) fn bytes(&self) -> u64 {
        self.pages
            .iter()
            .flat_map(|p| p.wkv.iter().chain(&p.shift))
            .chain(&self.initial)
            .map(Buffer::size)
            .sum()
    }

    pub(super) fn pages(&self) -> &[StatePage] {
        &self.pages
    }

    /// The page of `slot`, and the slot's place in it.
    fn find(&self, slot: SlotId) -> Result<(&StatePage, u64)> {
        self.pages
            .iter()
            .find_map(|p| {
                let place = slot
                    .0
                    .checked_sub(p.page.first_slot)
                    .filter(|place| *place < p.page.slots)?;
                Some((p, u64::from(place)))
            })
            .ok_or(Error::SlotRange {
                slot,
                slots: self.slots,
            })
    }

    /// How many slots from `slot` on, up to `most`, lie one after the other.
    pub(super) fn together(&self, slot: SlotId, most: u32) -> Result<u32> {
        let (page, place) = self.find(slot)?;
        let left = u64::from(page.page.slots).saturating_sub(place);
        Ok(most.min(u32::try_from(left).unwrap_or(most)))
    }

    /// Bytes of a slot's state.
    pub(super) fn slot_bytes(&self) -> u64 {
        self.layout.bytes()
    }

    /// Every block of a slot's state: buffer, first byte, bytes; a layer's recurrence and then its shift vectors.
    fn blocks(&self, slot: SlotId) -> Result<Vec<(&Buffer, u64, u64)>> {
        self.blocks_of(slot, 1)
    }

    /// The same for slots that lie one after the other.
    fn blocks_of(&self, first: SlotId, count: u32) -> Result<Vec<(&Buffer, u64, u64)>> {
        let (page, place) = self.find(first)?;
        let sizes = [(self.layout.wkv * 4) as u64, (self.layout.shift * 4) as u64];
        let count = u64::from(count);
        let blocks = |buffers| {
            let [wkv, shift]: [&Buffer; 2] = buffers;
            [
                (wkv, place * sizes[0], count * sizes[0]),
                (shift, place * sizes[1], count * sizes[1]),
            ]
        };
        Ok(page
            .wkv
            .iter()
            .zip(&page.shift)
            .flat_map(|(w, s)| blocks([w, s]))
            .collect())
    }

    /// Whether a sequence begins with anything but zeros.
    pub(super) fn has_initial(&self) -> bool {
        self.initial.is_some()
    }

    /// What sequences begin with from here on; `state` has this layout.
    pub(super) fn set_initial(
        &mut self,
        gpu: &Gpu,
        upload: &mut Upload,
        state: &State,
    ) -> Result<()> {
        if *state == State::zeros(self.layout) {
            self.initial = None;
            return Ok(());
        }
        let buffer = gpu.buffer(BufferKind::Storage, "initial state", self.layout.bytes())?;
        let mut at = 0;
        for values in state.wkv.iter().zip(&state.shift).flat_map(|(w, s)| [w, s]) {
            upload.write(&buffer, at, bytemuck::cast_slice(values))?;
            at += (values.len() * 4) as u64;
        }
        self.initial = Some(buffer);
        Ok(())
    }

    /// Makes `slot` what a sequence begins with.
    pub(super) fn reset(&self, gpu: &Gpu, slot: SlotId) -> Result<()> {
        let mut recorder = gpu.recorder("reset");
        let mut at = 0;
        for (buffer, offset, bytes) in self.blocks(slot)? {
            match &self.initial {
                Some(initial) => recorder.copy((initial, at), (buffer, offset), bytes),
                None => recorder.clear(buffer, offset, bytes),
            }
            at += bytes;
        }
        recorder.submit()?;
        Ok(())
    }

    /// Records copying the states of `count` slots that lie one after the other to the start of `to`.
    pub(super) fn copy_out(
        &self,
        recorder: &mut Recorder,
        (first, count): (SlotId, u32),
        to: &Buffer,
    ) -> Result<()> {
        let mut at = 0;
        for (buffer, offset, bytes) in self.blocks_of(first, count)? {
            recorder.copy((buffer, offset), (to, at), bytes);
            at += bytes;
        }
        Ok(())
    }

    /// Records copying them back.
    pub(super) fn copy_in(
        &self,
        recorder: &mut Recorder,
        (first, count): (SlotId, u32),
        from: &Buffer,
    ) -> Result<()> {
        let mut at = 0;
        for (buffer, offset, bytes) in self.blocks_of(first, count)? {
            recorder.copy((from, at), (buffer, offset), bytes);
            at += bytes;
        }
        Ok(())
    }

    pub(super) fn write(&self, upload: &mut Upload, slot: SlotId, state: &State) -> Result<()> {
        let layers = state.wkv.iter().zip(&state.shift).flat_map(|(w, s)| [w, s]);
        for ((buffer, offset, _), values) in self.blocks(slot)?.into_iter().zip(layers) {
            upload.write(buffer, offset, bytemuck::cast_slice(values))?;
        }
        Ok(())
    }

    pub(super) fn read(&self, gpu: &Gpu, slot: SlotId) -> Result<State> {
        let mut state = State::zeros(self.layout);
        let readback = Readback::new(gpu, "state", self.layout.bytes())?;
        let mut recorder = gpu.recorder("read state");
        let mut at = 0;
        for (buffer, offset, bytes) in self.blocks(slot)? {
            recorder.read_to(buffer, offset, bytes, &readback, at);
            at += bytes;
        }
        let submission = recorder.submit()?;
        readback.view(gpu, &submission, at, |raw| {
            let mut rest: &[f32] = bytemuck::cast_slice(raw);
            for values in state
                .wkv
                .iter_mut()
                .zip(&mut state.shift)
                .flat_map(|(w, s)| [w, s])
            {
                let (head, tail) = rest.split_at(values.len());
                values.copy_from_slice(head);
                rest = tail;
            }
        })?;
        Ok(state)
    }
}
