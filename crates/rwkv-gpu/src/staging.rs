//! Host memory that the GPU copies from.

use crate::{Buffer, Error, Gpu, Recorder, Result, Submission, error::one_line};
use std::{
    ops::Range,
    sync::{Arc, OnceLock},
};

/// A mapped buffer that threads write side by side, piece by piece, and the GPU then copies to other buffers; used again
/// and again. It is not counted as in use ([`Gpu::memory`]): whoever makes it bounds it.
#[derive(Debug)]
pub struct Staging {
    raw: wgpu::Buffer,
    /// What copies from it, and word that it is mapped again.
    copied: Option<(Submission, Mapped)>,
}

type Mapped = Arc<OnceLock<Result<(), wgpu::BufferAsyncError>>>;

/// A copy out of a [`Staging`]: offsets and size are multiples of 4.
#[derive(Clone, Copy, Debug)]
pub struct StagedCopy<'a> {
    /// Where the bytes are in the staging memory.
    pub from: u64,
    /// Where they go.
    pub to: &'a Buffer,
    /// At which byte of it.
    pub offset: u64,
    /// How many.
    pub bytes: u64,
}

/// Some bytes of a [`Staging`], written from the first to the last: the memory may be such that writes are gathered, and
/// it cannot be read.
pub struct StagingPiece<'a> {
    view: wgpu::BufferViewMut,
    written: usize,
    _staging: std::marker::PhantomData<&'a Staging>,
}

impl Staging {
    /// What the beginning of a piece must be a multiple of.
    pub const ALIGNMENT: u64 = wgpu::MAP_ALIGNMENT;

    /// One of `bytes`, a multiple of [`ALIGNMENT`](Self::ALIGNMENT).
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], or [`Error::Lost`] when the device is gone.
    pub fn new(gpu: &Gpu, bytes: u64) -> Result<Self> {
        let raw = gpu.scoped(&|| "staging memory".to_owned(), |device| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("staging"),
                size: bytes,
                usage: wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: true,
            })
        })?;
        gpu.counters().staging_made();
        Ok(Self { raw, copied: None })
    }

    /// Its bytes.
    pub fn size(&self) -> u64 {
        self.raw.size()
    }

    /// Waits until the copies of the last [`submit`](Self::submit) are done, so that there may be new pieces.
    ///
    /// # Errors
    /// [`Error::Lost`] when the device is gone, [`Error::Rejected`] when the driver refuses.
    pub fn ready(&mut self, gpu: &Gpu) -> Result<()> {
        let Some((submission, mapped)) = self.copied.take() else {
            return Ok(());
        };
        gpu.wait(&submission)?;
        // Another thread that waits may be the one that says so.
        match mapped.wait() {
            Ok(()) => Ok(()),
            Err(error) => Err(rejected(error.to_string())),
        }
    }

    /// The bytes `range`, which no other piece has; any thread may ask. The range begins at a multiple of
    /// [`ALIGNMENT`](Self::ALIGNMENT) and has a multiple of 4 bytes.
    ///
    /// # Errors
    /// [`Error::Rejected`] for any other range, and for memory that is not [`ready`](Self::ready).
    pub fn piece(&self, range: Range<u64>) -> Result<StagingPiece<'_>> {
        if range.start >= range.end || range.end > self.raw.size() {
            let (Range { start, end }, size) = (range, self.raw.size());
            let problem = format!("bytes {start} to {end} of {size} are no piece");
            return Err(rejected(problem));
        }
        let view = self.raw.get_mapped_range_mut(range);
        Ok(StagingPiece {
            view: view.map_err(|e| rejected(e.to_string()))?,
            written: 0,
            _staging: std::marker::PhantomData,
        })
    }

    /// Submits `copies` of what was written. They run before whatever is submitted later; [`ready`](Self::ready) waits for
    /// them.
    ///
    /// # Errors
    /// [`Error::Rejected`] for a range that does not lie in its buffer, [`Error::Lost`] when the device is gone.
    pub fn submit(&mut self, gpu: &Gpu, copies: &[StagedCopy<'_>]) -> Result<()> {
        let mut recorder = gpu.recorder("upload");
        self.record(&mut recorder, copies)?;
        self.submitted(&recorder.submit()?);
        Ok(())
    }

    /// Records `copies` of what was written. From here on nothing can be written, until [`submitted`](Self::submitted) is told
    /// of what they are part of.
    ///
    /// # Errors
    /// [`Error::Rejected`] for a range that does not lie in its buffer; nothing is recorded then.
    pub fn record(&mut self, recorder: &mut Recorder, copies: &[StagedCopy<'_>]) -> Result<()> {
        let target = |copy: &StagedCopy<'_>| {
            copy.to.check_range(copy.offset, copy.bytes)?;
            copy.to.raw().cloned()
        };
        let targets: Vec<_> = copies.iter().map(target).collect::<Result<_>>()?;
        self.raw.unmap();
        for (copy, to) in copies.iter().zip(&targets) {
            let encoder = &mut recorder.encoder;
            encoder.copy_buffer_to_buffer(&self.raw, copy.from, to, copy.offset, copy.bytes);
        }
        Ok(())
    }

    /// Says that what was [recorded](Self::record) is part of `submission`, for which [`ready`](Self::ready) waits.
    pub fn submitted(&mut self, submission: &Submission) {
        let mapped = Mapped::default();
        let done = mapped.clone();
        self.raw.map_async(wgpu::MapMode::Write, .., move |result| {
            // Called once.
            let _ = done.set(result);
        });
        self.copied = Some((submission.clone(), mapped));
    }
}

impl StagingPiece<'_> {
    /// Writes the next bytes.
    ///
    /// # Errors
    /// [`Error::Rejected`] for more than are left.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let end = self.written + bytes.len();
        if end > self.view.len() {
            let problem = format!("{end} bytes for a piece of {}", self.view.len());
            return Err(rejected(problem));
        }
        self.view.slice(self.written..end).copy_from_slice(bytes);
        self.written = end;
        Ok(())
    }
}

fn rejected(message: impl AsRef<str>) -> Error {
    Error::Rejected {
        what: "staging memory".to_owned(),
        message: one_line(message.as_ref()),
    }
}
