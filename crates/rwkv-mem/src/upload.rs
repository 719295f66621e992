//! Filling GPU buffers from the host piece by piece.

use rayon::prelude::*;
use rwkv_gpu::{
    Buffer, Error, Gpu, Recorder, Result, StagedCopy, Staging, StagingPiece, Submission,
};
use std::{collections::VecDeque, ops::Range};

/// Bytes that are written, and then copied by the GPU, at a time: as long as a fork and join of all threads takes, they
/// should write many times.
const SLAB: usize = 16 << 20;

/// Slabs: one is written while the GPU copies the others, and host memory stays flat however large a model is.
const SLABS: usize = 4;

/// The least that a slab has. Small models have small ones.
const LEAST: u64 = 1 << 20;

/// What is not larger goes through the queue, which gathers it for the next submission.
const SMALL: u64 = 1 << 20;

/// Bytes that the queue may have before the host waits for the GPU.
const MOST_QUEUED: u64 = 64 << 20;

/// Bytes that one thread copies at a time.
const RUN: usize = 256 << 10;

/// Writes to buffers, bounding what is in flight. What was written is there for all that is submitted later.
pub struct Upload {
    gpu: Gpu,
    /// Bytes that the queue has.
    queued: u64,
    /// Those that the GPU copies from, the oldest first. Made as they are needed, as large as is needed.
    slabs: VecDeque<Staging>,
    total: u64,
}

/// Bytes of a buffer to be written; offset and size are multiples of 4.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// The buffer.
    pub buffer: &'a Buffer,
    /// At which byte.
    pub offset: u64,
    /// How many.
    pub bytes: u64,
}

/// Memory for the bytes of some [`Target`]s, which any threads write.
pub struct Slab<'a> {
    staging: &'a Staging,
    /// Of each target.
    copies: &'a [StagedCopy<'a>],
}

/// What was written and is copied with what else was recorded ([`Upload::record`]).
#[must_use = "its memory is used again once it was submitted"]
pub struct Staged(Staging);

impl Slab<'_> {
    /// The bytes `range` of target `index`, which no other piece has. It begins at a multiple of 16 and has a multiple of
    /// 4 bytes.
    ///
    /// # Errors
    /// [`Error::Rejected`] for any other range.
    pub fn piece(&self, index: usize, range: Range<usize>) -> Result<StagingPiece<'_>> {
        let (start, end) = (range.start as u64, range.end as u64);
        match self.copies.get(index) {
            Some(copy) if end <= copy.bytes => {
                self.staging.piece(copy.from + start..copy.from + end)
            }
            _ => Err(Error::Rejected {
                what: "an upload".to_owned(),
                message: format!("bytes {start} to {end} of target {index} are no piece"),
            }),
        }
    }
}

impl Upload {
    /// The most that the targets of one [`fill`](Self::fill) may have, each rounded up to 16 bytes.
    pub const MOST: usize = SLAB;

    /// A new upload.
    pub fn new(gpu: &Gpu) -> Self {
        Self {
            gpu: gpu.clone(),
            queued: 0,
            slabs: VecDeque::new(),
            total: 0,
        }
    }

    /// Writes `bytes` (a multiple of 4) at `offset` of `buffer`.
    ///
    /// # Errors
    /// [`Error::Rejected`] when the range does not fit, [`Error::OutOfMemory`] where there is none for the way,
    /// [`Error::Lost`] when the device is gone.
    pub fn write(&mut self, buffer: &Buffer, offset: u64, bytes: &[u8]) -> Result<()> {
        if bytes.len() as u64 <= SMALL {
            return self.queue(buffer, offset, bytes);
        }
        buffer.check_range(offset, bytes.len() as u64)?;
        for (slab, bytes) in (0u64..).zip(bytes.chunks(Self::MOST)) {
            let target = Target {
                buffer,
                offset: offset + slab * SLAB as u64,
                bytes: bytes.len() as u64,
            };
            self.fill(&[target], |slab| {
                let runs = bytes.par_chunks(RUN).enumerate();
                runs.try_for_each(|(run, bytes)| {
                    let start = run * RUN;
                    slab.piece(0, start..start + bytes.len())?.write(bytes)
                })
            })?;
        }
        Ok(())
    }

    /// Has `fill` write all bytes of `targets`, together no more than [`MOST`](Self::MOST), while the GPU copies what was
    /// written before. What `fill` leaves out is undefined; when it fails, nothing is written.
    ///
    /// # Errors
    /// Those of `fill` and of [`write`](Self::write).
    pub fn fill<E: From<Error>>(
        &mut self,
        targets: &[Target<'_>],
        fill: impl FnOnce(&Slab<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let Some((mut staging, copies)) = self.filled(targets, fill)? else {
            return Ok(());
        };
        staging.submit(&self.gpu, &copies)?;
        self.slabs.push_back(staging);
        Ok(())
    }

    /// As [`fill`](Self::fill), but the copies are recorded: they run with the rest of what `recorder` has.
    /// [`submitted`](Self::submitted) takes the memory back; where nothing is submitted, it is to be dropped.
    ///
    /// # Errors
    /// Those of `fill`; nothing is recorded then.
    pub fn record<E: From<Error>>(
        &mut self,
        recorder: &mut Recorder,
        targets: &[Target<'_>],
        fill: impl FnOnce(&Slab<'_>) -> Result<(), E>,
    ) -> Result<Option<Staged>, E> {
        let Some((mut staging, copies)) = self.filled(targets, fill)? else {
            return Ok(None);
        };
        staging.record(recorder, &copies)?;
        Ok(Some(Staged(staging)))
    }

    /// Says with what the copies were submitted.
    pub fn submitted(&mut self, staged: Staged, submission: &Submission) {
        let Staged(mut staging) = staged;
        staging.submitted(submission);
        self.slabs.push_back(staging);
    }

    /// Takes the memory that targets of `bytes` together need, up to [`MOST`](Self::MOST), unless it is there: no later call
    /// for as many fails for want of it.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Lost`] when the device is gone.
    pub fn reserve(&mut self, bytes: u64) -> Result<()> {
        let bytes = bytes.min(SLAB as u64);
        if !self.slabs.iter().any(|slab| slab.size() >= bytes) {
            let slab = self.next_slab(bytes)?;
            self.slabs.push_front(slab);
        }
        Ok(())
    }

    /// A slab with the bytes of `targets`, and their copies; none for no bytes.
    fn filled<'a, E: From<Error>>(
        &mut self,
        targets: &[Target<'a>],
        fill: impl FnOnce(&Slab<'_>) -> Result<(), E>,
    ) -> Result<Option<(Staging, Vec<StagedCopy<'a>>)>, E> {
        let mut end = 0u64;
        let mut copies = Vec::with_capacity(targets.len());
        for target in targets {
            target.buffer.check_range(target.offset, target.bytes)?;
            copies.push(StagedCopy {
                from: end,
                to: target.buffer,
                offset: target.offset,
                bytes: target.bytes,
            });
            end = end.saturating_add(target.bytes.saturating_add(15) / 16 * 16);
        }
        if end > SLAB as u64 {
            let message = format!("{end} bytes at a time, where {SLAB} fit");
            let what = "an upload".to_owned();
            return Err(Error::Rejected { what, message }.into());
        }
        if end == 0 {
            return Ok(None);
        }
        let staging = self.next_slab(end)?;
        let slab = Slab {
            staging: &staging,
            copies: &copies,
        };
        if let Err(error) = fill(&slab) {
            // As ready as it was.
            self.slabs.push_front(staging);
            return Err(error);
        }
        self.total += copies.iter().map(|copy| copy.bytes).sum::<u64>();
        Ok(Some((staging, copies)))
    }

    /// Waits until everything written so far has arrived, and gives back the memory that was for the way.
    ///
    /// # Errors
    /// [`Error::Lost`] when the device is gone.
    pub fn flush(&mut self) -> Result<()> {
        self.queued = 0;
        self.slabs.clear();
        self.gpu.finish()
    }

    /// Bytes written so far.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// `bytes` that can be written: another slab while there are few, else the oldest that is as large, once it is copied.
    fn next_slab(&mut self, bytes: u64) -> Result<Staging> {
        let size = bytes.next_power_of_two().max(LEAST);
        let fits = |slab: &Staging| slab.size() >= bytes;
        if self.slabs.len() >= SLABS && !self.slabs.iter().any(fits) {
            // Its memory is free once it is copied; nobody waits for that.
            self.slabs.pop_front();
        }
        if self.slabs.len() < SLABS {
            match Staging::new(&self.gpu, size) {
                Err(Error::OutOfMemory { .. }) if !self.slabs.is_empty() => {}
                made => return made,
            }
        }
        if let Some(mut slab) = self
            .slabs
            .iter()
            .position(fits)
            .and_then(|at| self.slabs.remove(at))
        {
            slab.ready(&self.gpu)?;
            return Ok(slab);
        }
        // Their place is free once they are copied.
        self.slabs.clear();
        self.gpu.finish()?;
        Staging::new(&self.gpu, size)
    }

    fn queue(&mut self, buffer: &Buffer, offset: u64, bytes: &[u8]) -> Result<()> {
        self.gpu.write(buffer, offset, bytes)?;
        self.queued += bytes.len() as u64;
        self.total += bytes.len() as u64;
        if self.queued < MOST_QUEUED {
            return Ok(());
        }
        self.queued = 0;
        self.gpu.finish()
    }
}
