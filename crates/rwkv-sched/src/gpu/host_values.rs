//! What a step takes from the host and hands back to it: values that other parts of the model make and read, and logits.

use super::plan::Activations;
use crate::{
    BatchShape, Domain, Graph, Result, ValueId,
    part::{Carried, carried_value},
};
use rayon::prelude::*;
use rwkv_gpu::{Buffer, Gpu, Readback, Recorder};
use rwkv_kernels::View;

/// Values of a plan, with their places.
pub(super) struct HostValues(Vec<HostValue>);

/// Rows in a buffer: as many as a batch has, and more to which it is padded.
struct HostValue {
    shape: HostShape,
    buffer: Buffer,
    offset: u64,
}

/// A value's rows, one after the other.
#[derive(Clone, Copy)]
struct HostShape {
    id: ValueId,
    domain: Domain,
    width: usize,
}

/// How values of a batch of some shape that were read back lie: all that who waits for them needs of the plan.
pub(super) struct ReadValues(Vec<HostShape>, BatchShape);

impl HostShape {
    /// Elements of the rows of a batch of `shape`, with what pads each.
    fn elements(&self, shape: BatchShape) -> usize {
        shape.rows(self.domain) * View::stride(self.width)
    }

    fn bytes(&self, shape: BatchShape) -> u64 {
        (self.elements(shape) * 4) as u64
    }

    /// `rows` as they lie on the GPU.
    fn padded(&self, rows: &[f32]) -> Vec<f32> {
        let stride = View::stride(self.width);
        let mut padded = vec![0.0; rows.len() / self.width * stride];
        let source = rows.chunks_exact(self.width);
        for (to, from) in padded.chunks_exact_mut(stride).zip(source) {
            to[..self.width].copy_from_slice(from);
        }
        padded
    }

    /// The rows without what pads them.
    fn unpadded(&self, padded: &[f32]) -> Vec<f32> {
        let stride = View::stride(self.width);
        let mut rows = vec![0.0; padded.len() / stride * self.width];
        let copy = |(to, from): (&mut [f32], &[f32])| {
            for (to, from) in to
                .chunks_exact_mut(self.width)
                .zip(from.chunks_exact(stride))
            {
                to.copy_from_slice(&from[..self.width]);
            }
        };
        let (to, from) = (
            rows.par_chunks_mut(TOGETHER * self.width),
            padded.par_chunks(TOGETHER * stride),
        );
        to.zip(from).for_each(copy);
        rows
    }
}

/// Rows that one thread copies.
const TOGETHER: usize = 32;

impl ReadValues {
    /// Adds them to `carried` from what was copied.
    pub(super) fn take(&self, raw: &[u8], carried: &mut Carried) {
        let mut rest: &[f32] = bytemuck::cast_slice(raw);
        for value in &self.0 {
            let (own, after) = rest.split_at(value.elements(self.1));
            carried.insert(value.id, value.unpadded(own));
            rest = after;
        }
    }
}

impl HostValues {
    /// Those of `ids` that have rows in batches of `shape`.
    pub(super) fn new(
        activations: &Activations,
        graph: &Graph,
        ids: impl IntoIterator<Item = ValueId>,
        shape: BatchShape,
    ) -> Result<Self> {
        let all = ids.into_iter().map(|id| (id, graph.value(id).domain));
        let some = all.filter(|(_, domain)| shape.rows(*domain) > 0);
        let place = |(id, domain)| {
            let view = activations.view(id)?;
            Ok(HostValue {
                shape: HostShape {
                    id,
                    domain,
                    width: view.width,
                },
                buffer: view.buffer.clone(),
                offset: view.offset,
            })
        };
        Ok(Self(some.map(place).collect::<Result<_>>()?))
    }

    /// Writes them before what is submitted next, each from the first of `carried` that has it.
    pub(super) fn write(&self, gpu: &Gpu, carried: [&Carried; 2]) -> Result<()> {
        for value in &self.0 {
            let shape = value.shape;
            let [own, others] = carried;
            let own = own.get(&shape.id).map(Vec::as_slice);
            let rows = own.map_or_else(|| carried_value(others, shape.id), Ok)?;
            if View::stride(shape.width) == shape.width {
                gpu.write(&value.buffer, value.offset, bytemuck::cast_slice(rows))?;
            } else {
                let padded = shape.padded(rows);
                gpu.write(&value.buffer, value.offset, bytemuck::cast_slice(&padded))?;
            }
        }
        Ok(())
    }

    /// Bytes of a readback buffer that takes them after a batch of `shape`, which may be padded to the plan's.
    pub(super) fn bytes(&self, shape: BatchShape) -> u64 {
        self.0.iter().map(|value| value.shape.bytes(shape)).sum()
    }

    /// Records copying them to `readback`.
    pub(super) fn read(&self, recorder: &mut Recorder, shape: BatchShape, readback: &Readback) {
        let mut at = 0;
        for value in &self.0 {
            let bytes = value.shape.bytes(shape);
            recorder.read_to(&value.buffer, value.offset, bytes, readback, at);
            at += bytes;
        }
    }

    /// How they lie where they are copied to after a batch of `shape`.
    pub(super) fn layout(&self, shape: BatchShape) -> ReadValues {
        ReadValues(self.0.iter().map(|value| value.shape).collect(), shape)
    }

    /// Where the first one lies.
    pub(super) fn first(&self) -> Option<(&Buffer, u64)> {
        let value = self.0.first()?;
        Some((&value.buffer, value.offset))
    }
}
