//! What a step takes from the host and hands back to it: values that other parts of the model make and read, and logits.

use super::{plan::Activations, readbacks::Left};
use crate::{
    BatchShape, Domain, Error, Graph, Result, ValueId,
    part::{Carried, Rows, carried_value},
};
use rayon::prelude::*;
use rwkv_gpu::{Buffer, Gpu, Readback, Recorder};
use rwkv_kernels::View;
use rwkv_mem::{Slab, Staged, Target, Upload};
use std::{ops::Deref, sync::Arc};

/// Values of a plan, with their places.
pub(super) struct HostValues(Vec<HostValue>);

/// Rows in a buffer: as many as a batch has, and more to which it is padded.
struct HostValue {
    shape: HostShape,
    rows: usize,
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

    /// Bytes of rows of so many elements in all, with what pads each.
    fn span(&self, elements: usize) -> usize {
        elements / self.width.max(1) * View::stride(self.width) * 4
    }

    /// Rows of a target in runs.
    fn runs(self, target: usize, rows: &[f32]) -> impl Iterator<Item = Run<'_>> {
        let most = (RUN / self.span(self.width).max(1)).max(1);
        let runs = rows.chunks(most * self.width.max(1)).enumerate();
        runs.map(move |(number, rows)| Run {
            target,
            shape: self,
            rows,
            at: number * most * self.span(self.width),
        })
    }

    fn is_padded(&self) -> bool {
        View::stride(self.width) != self.width
    }

    /// Shows `write` some rows as they lie on the GPU, one after the other.
    fn padded<E>(
        &self,
        rows: &[f32],
        mut write: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        if !self.is_padded() {
            return write(bytemuck::cast_slice(rows));
        }
        let zeros = [0f32; 8];
        let padding = View::stride(self.width) - self.width;
        let padding = zeros.get(..padding).unwrap_or_default();
        for row in rows.chunks_exact(self.width) {
            write(bytemuck::cast_slice(row))?;
            write(bytemuck::cast_slice(padding))?;
        }
        Ok(())
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

/// Bytes that the queue writes faster than threads are woken.
const SMALL: usize = 64 << 10;

/// Bytes that one thread writes at a time.
const RUN: usize = 128 << 10;

impl ReadValues {
    /// Adds them to `carried`, where they were left if they lie as they are carried. Logits are copied: a caller may keep
    /// those.
    pub(super) fn take(&self, left: Left, carried: &mut Carried) {
        let left = Arc::new(left);
        let mut at = 0;
        for value in &self.0 {
            let own = at..at + value.elements(self.1);
            at = own.end;
            let rows = if value.is_padded() || value.domain == Domain::Outputs {
                let padded = (*left).as_ref().get(own).unwrap_or_default();
                Rows::Own(value.unpadded(padded))
            } else {
                Rows::Left(left.clone(), own)
            };
            carried.insert(value.id, rows);
        }
    }
}

/// Rows of a value that one thread writes.
struct Run<'a> {
    /// Which of the targets that are written together.
    target: usize,
    shape: HostShape,
    rows: &'a [f32],
    /// The target's byte that they begin at.
    at: usize,
}

impl Run<'_> {
    fn write(&self, slab: &Slab<'_>) -> Result<()> {
        let end = self.at + self.shape.span(self.rows.len());
        let mut piece = slab.piece(self.target, self.at..end)?;
        Ok(self.shape.padded(self.rows, |bytes| piece.write(bytes))?)
    }
}

impl HostValue {
    /// Its rows, from the first of `carried` that has it.
    fn rows<'a>(&self, [own, others]: [&'a Carried; 2]) -> Result<&'a [f32]> {
        let own = own.get(&self.shape.id).map(Deref::deref);
        own.map_or_else(|| carried_value(others, self.shape.id), Ok)
    }

    /// Where `rows` go that begin so many bytes after its first.
    fn target(&self, at: usize, rows: &[f32]) -> Target<'_> {
        Target {
            buffer: &self.buffer,
            offset: self.offset + at as u64,
            bytes: self.shape.span(rows.len()) as u64,
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
                rows: view.rows,
                buffer: view.buffer.clone(),
                offset: view.offset,
            })
        };
        Ok(Self(some.map(place).collect::<Result<_>>()?))
    }

    /// Writes them before what is submitted next, each from the first of `carried` that has it.
    pub(super) fn write(&self, gpu: &Gpu, carried: [&Carried; 2]) -> Result<()> {
        for value in &self.0 {
            let rows = value.rows(carried)?;
            if value.shape.is_padded() {
                let mut padded = Vec::new();
                value.shape.padded(rows, |bytes| {
                    padded.extend_from_slice(bytes);
                    Ok::<_, Error>(())
                })?;
                gpu.write(&value.buffer, value.offset, &padded)?;
            } else {
                gpu.write(&value.buffer, value.offset, bytemuck::cast_slice(rows))?;
            }
        }
        Ok(())
    }

    /// Takes the memory that [`stage`](Self::stage) needs, unless it is there.
    ///
    /// # Errors
    /// Memory that does not suffice.
    pub(super) fn reserve(&self, upload: &mut Upload) -> Result<()> {
        let values = self.0.iter();
        let bytes: usize = values.map(|v| v.shape.span(v.rows * v.shape.width)).sum();
        if bytes > SMALL {
            upload.reserve(bytes as u64)?;
        }
        Ok(())
    }

    /// As [`write`](Self::write), but many are written by all threads to memory that the GPU copies from: the copies are recorded
    /// where one slab has room for all of them, else submitted slab by slab.
    pub(super) fn stage(
        &self,
        gpu: &Gpu,
        upload: &mut Upload,
        recorder: &mut Recorder,
        carried: [&Carried; 2],
    ) -> Result<Option<Staged>> {
        let values = self.0.iter().map(|value| Ok((value, value.rows(carried)?)));
        let values: Vec<(&HostValue, &[f32])> = values.collect::<Result<_>>()?;
        let spans = values.iter().map(|(v, rows)| v.shape.span(rows.len()));
        let bytes: usize = spans.sum();
        if bytes <= SMALL {
            self.write(gpu, carried)?;
            return Ok(None);
        }
        let write = |slab: &Slab<'_>, runs: &[Run<'_>]| -> Result<()> {
            runs.par_iter().try_for_each(|run| run.write(slab))
        };
        if bytes <= Upload::MOST {
            let targets = values.iter().map(|(value, rows)| value.target(0, rows));
            let targets: Vec<Target<'_>> = targets.collect();
            let runs = values.iter().enumerate();
            let runs = runs.flat_map(|(n, (value, rows))| value.shape.runs(n, rows));
            let runs: Vec<Run<'_>> = runs.collect();
            return upload.record(recorder, &targets, |slab| write(slab, &runs));
        }
        for (value, rows) in values {
            let shape = value.shape;
            let most = (Upload::MOST / shape.span(shape.width).max(1)).max(1);
            let mut at = 0;
            for rows in rows.chunks(most * shape.width.max(1)) {
                let target = value.target(at, rows);
                let runs: Vec<Run<'_>> = shape.runs(0, rows).collect();
                upload.fill(&[target], |slab| write(slab, &runs))?;
                at += shape.span(rows.len());
            }
        }
        Ok(None)
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

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::cast_possible_truncation,
        reason = "tests"
    )]
    use super::*;
    use crate::gpu::readbacks::Readbacks;
    use proptest::prelude::*;
    use rwkv_gpu::{BufferKind, OpenOptions, Selector};
    use std::sync::OnceLock;

    fn gpu() -> &'static Gpu {
        static GPU: OnceLock<Gpu> = OnceLock::new();
        GPU.get_or_init(|| Gpu::open(&Selector::Index(0), &OpenOptions::default()).unwrap())
    }

    /// Values of these widths, for batches of up to `rows` rows.
    fn values(widths: &[usize], rows: usize) -> HostValues {
        let value = |(number, width): (usize, &usize)| HostValue {
            shape: HostShape {
                id: ValueId(number),
                domain: [Domain::Tokens, Domain::Outputs][number % 2],
                width: *width,
            },
            rows,
            buffer: gpu()
                .buffer(BufferKind::Storage, "value", 32 + View::bytes(rows, *width))
                .unwrap(),
            offset: 32,
        };
        HostValues(widths.iter().enumerate().map(value).collect())
    }

    /// Steps that hand their inputs back, of so many rows each: none is waited for before all are submitted.
    fn check(widths: &[usize], rows: &[usize]) {
        let values = values(widths, rows.iter().copied().max().unwrap_or(1));
        let (mut upload, readbacks) = (Upload::new(gpu()), Readbacks::default());
        values.reserve(&mut upload).unwrap();
        let mut begun = Vec::new();
        for (step, &rows) in rows.iter().enumerate() {
            let made = |(number, width): (usize, &usize)| {
                let one = |i| ((i * 31 + step * 7 + number) % 8191) as f32;
                (0..rows * width).map(one).collect::<Vec<f32>>()
            };
            let made: Vec<Vec<f32>> = widths.iter().enumerate().map(made).collect();
            let carried = made.iter().cloned().map(Rows::Own).enumerate();
            let carried: Carried = carried.map(|(n, rows)| (ValueId(n), rows)).collect();
            let shape = BatchShape::decode(rows);
            let mut recorder = gpu().recorder("step");
            let none = Carried::new();
            let staged = values
                .stage(gpu(), &mut upload, &mut recorder, [&none, &carried])
                .unwrap();
            let bytes = values.bytes(shape);
            let readback = readbacks.take(gpu(), bytes).unwrap().unwrap();
            values.read(&mut recorder, shape, &readback);
            let submission = recorder.submit().unwrap();
            if let Some(staged) = staged {
                upload.submitted(staged, &submission);
            }
            begun.push((readback, submission, bytes, values.layout(shape), made));
        }
        let mut all = Vec::new();
        for (readback, submission, bytes, layout, made) in begun {
            let mut carried = Carried::new();
            layout.take(
                readback.left(gpu(), &submission, bytes).unwrap(),
                &mut carried,
            );
            all.push((carried, made));
        }
        // What was left lies there until it is dropped.
        for (carried, made) in all {
            assert_eq!(carried.len(), widths.len());
            for (number, want) in made.iter().enumerate() {
                assert!(carried[&ValueId(number)][..] == want[..], "value {number}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 24, ..ProptestConfig::default() })]

        /// Few and many, padded and not, of batches that are padded to their plan's: they come back as they were.
        #[test]
        fn there_and_back(
            widths in prop::collection::vec(1..300usize, 1..4),
            rows in prop::collection::vec(1..400usize, 1..8),
        ) {
            check(&widths, &rows);
        }
    }

    /// More than one slab has room for, and more than all together have.
    #[test]
    fn more_than_a_slab() {
        check(&[1024, 1021], &[2500, 3, 2500]);
        check(&[4096], &[5000]);
    }
}
