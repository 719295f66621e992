//! Reading results on the host.

use crate::{Buffer, BufferKind, Error, Gpu, Result, Submission};
use std::{ops::Deref, sync::mpsc};

/// A host-visible buffer that results are copied to; used again and again.
#[derive(Debug)]
pub struct Readback {
    buffer: Buffer,
}

/// What was copied to a [`Readback`], where it lies. Until this is dropped nothing else can be copied there.
#[derive(Debug)]
pub struct Mapped {
    /// None for no bytes.
    view: Option<wgpu::BufferView>,
    bytes: usize,
    buffer: Buffer,
}

impl Readback {
    /// One that holds `bytes`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] or [`Error::OverLimit`].
    pub fn new(gpu: &Gpu, label: &str, bytes: u64) -> Result<Self> {
        Ok(Self {
            buffer: gpu.buffer(BufferKind::Readback, label, bytes)?,
        })
    }

    /// Bytes that fit.
    pub fn capacity(&self) -> u64 {
        self.buffer.size()
    }

    pub(crate) fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// Waits for `submission`, which copied here, and shows the first `bytes` to `view`. After an error the buffer can
    /// be used again.
    ///
    /// # Errors
    /// Those of [`map`](Self::map).
    pub fn view<T>(
        &self,
        gpu: &Gpu,
        submission: &Submission,
        bytes: u64,
        view: impl FnOnce(&[u8]) -> T,
    ) -> Result<T> {
        Ok(view(&self.map(gpu, submission, bytes)?))
    }

    /// Waits for `submission`, which copied here, and leaves the first `bytes` where they are. After an error the buffer can
    /// be used again.
    ///
    /// # Errors
    /// [`Error::Lost`] when the device is gone, [`Error::Rejected`] when `bytes` do not fit or the driver refuses.
    pub fn map(&self, gpu: &Gpu, submission: &Submission, bytes: u64) -> Result<Mapped> {
        if bytes > self.capacity() {
            return Err(rejected(format!(
                "{bytes} bytes are more than a readback buffer of {} holds",
                self.capacity()
            )));
        }
        let view = if bytes == 0 {
            gpu.wait(submission)?;
            None
        } else {
            Some(self.mapped(gpu, submission, bytes)?)
        };
        Ok(Mapped {
            view,
            bytes: usize::try_from(bytes).unwrap_or(usize::MAX),
            buffer: self.buffer.clone(),
        })
    }

    fn mapped(&self, gpu: &Gpu, submission: &Submission, bytes: u64) -> Result<wgpu::BufferView> {
        let mapped = self.try_map(gpu, submission, bytes);
        if mapped.is_err() {
            let raw = self.buffer.raw()?;
            // Mapped, about to be, or neither, which is an error of no interest here.
            let _ = gpu.scoped(&|| "reading results back".to_owned(), |_| raw.unmap());
        }
        mapped
    }

    fn try_map(&self, gpu: &Gpu, submission: &Submission, bytes: u64) -> Result<wgpu::BufferView> {
        // A multiple of 4, as the capacity is.
        let range = 0..bytes.next_multiple_of(4);
        let (done, mapped) = mpsc::channel();
        let raw = self.buffer.raw()?;
        raw.map_async(wgpu::MapMode::Read, range.clone(), move |result| {
            // The receiver lives until the end of this function.
            let _ = done.send(result);
        });
        gpu.wait(submission)?;
        mapped
            .recv()
            .map_err(|_| rejected("the driver dropped the request".to_owned()))?
            .map_err(|e| rejected(e.to_string()))?;
        let range = raw.get_mapped_range(range);
        range.map_err(|e| rejected(e.to_string()))
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let bytes = self.view.as_deref().unwrap_or_default();
        bytes.get(..self.bytes).unwrap_or(bytes)
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // The view goes first.
        if self.view.take().is_some()
            && let Ok(raw) = self.buffer.raw()
        {
            raw.unmap();
        }
    }
}

fn rejected(message: String) -> Error {
    Error::Rejected {
        what: "reading results back".to_owned(),
        message,
    }
}
