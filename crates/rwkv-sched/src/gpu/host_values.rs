//! What a step takes from the host and hands back to it: values that other parts of the model make and read, and logits.

use super::plan::Activations;
use crate::{
    Result, ValueId,
    part::{Carried, carried_value},
};
use rwkv_gpu::{Buffer, Gpu, Readback, Recorder};
use rwkv_kernels::View;

/// Values of a plan, with their places.
pub(super) struct HostValues(Vec<HostValue>);

/// Rows in a buffer.
struct HostValue {
    id: ValueId,
    buffer: Buffer,
    offset: u64,
    rows: usize,
    width: usize,
}

impl HostValue {
    fn bytes(&self) -> u64 {
        View::bytes(self.rows, self.width)
    }

    /// `rows` as they lie on the GPU.
    fn padded(&self, rows: &[f32]) -> Vec<f32> {
        let stride = View::stride(self.width);
        let mut padded = vec![0.0; self.rows * stride];
        let source = rows.chunks_exact(self.width);
        for (to, from) in padded.chunks_exact_mut(stride).zip(source) {
            to[..self.width].copy_from_slice(from);
        }
        padded
    }

    /// The rows without what pads them.
    fn unpadded(&self, padded: &[f32]) -> Vec<f32> {
        padded
            .chunks_exact(View::stride(self.width))
            .flat_map(|row| &row[..self.width])
            .copied()
            .collect()
    }
}

impl HostValues {
    /// Those of `ids` that have rows.
    pub(super) fn new(
        activations: &Activations,
        ids: impl IntoIterator<Item = ValueId>,
        has_rows: impl Fn(ValueId) -> bool,
    ) -> Result<Self> {
        let ids = ids.into_iter().filter(|id| has_rows(*id));
        let place = |id| {
            let view = activations.view(id)?;
            Ok(HostValue {
                id,
                buffer: view.buffer.clone(),
                offset: view.offset,
                rows: view.rows,
                width: view.width,
            })
        };
        Ok(Self(ids.map(place).collect::<Result<_>>()?))
    }

    /// Writes them before what is submitted next.
    pub(super) fn write(&self, gpu: &Gpu, carried: &Carried) -> Result<()> {
        for value in &self.0 {
            let rows = carried_value(carried, value.id)?;
            if View::stride(value.width) == value.width {
                gpu.write(&value.buffer, value.offset, bytemuck::cast_slice(rows))?;
            } else {
                let padded = value.padded(rows);
                gpu.write(&value.buffer, value.offset, bytemuck::cast_slice(&padded))?;
            }
        }
        Ok(())
    }

    /// Bytes of a readback buffer that takes them.
    pub(super) fn bytes(&self) -> u64 {
        self.0.iter().map(HostValue::bytes).sum()
    }

    /// Records copying them to `readback`.
    pub(super) fn read(&self, recorder: &mut Recorder, readback: &Readback) {
        let mut at = 0;
        for value in &self.0 {
            recorder.read_to(&value.buffer, value.offset, value.bytes(), readback, at);
            at += value.bytes();
        }
    }

    /// Adds them to `carried` from what was copied.
    pub(super) fn take(&self, raw: &[u8], carried: &mut Carried) {
        let mut rest: &[f32] = bytemuck::cast_slice(raw);
        for value in &self.0 {
            let (own, after) = rest.split_at(value.rows * View::stride(value.width));
            carried.insert(value.id, value.unpadded(own));
            rest = after;
        }
    }

    /// Where the first one lies.
    pub(super) fn first(&self) -> Option<(&Buffer, u64)> {
        let value = self.0.first()?;
        Some((&value.buffer, value.offset))
    }
}
