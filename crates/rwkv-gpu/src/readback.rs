//! Reading results on the host.

use crate::{Buffer, BufferKind, Error, Gpu, Result, Submission};
use std::sync::mpsc;

/// A host-visible buffer that results are copied to; used again and again.
#[derive(Debug)]
pub struct Readback {
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
    /// [`Error::Lost`] when the device is gone, [`Error::Rejected`] when `bytes` do not fit or the driver refuses.
    pub fn view<T>(
        &self,
        gpu: &Gpu,
        submission: &Submission,
        bytes: u64,
        view: impl FnOnce(&[u8]) -> T,
    ) -> Result<T> {
        if bytes == 0 {
            gpu.wait(submission)?;
            return Ok(view(&[]));
        }
        if bytes > self.capacity() {
            return Err(rejected(format!(
                "{bytes} bytes are more than a readback buffer of {} holds",
                self.capacity()
            )));
        }
        let shown = self.map(gpu, submission, bytes, view);
        let raw = self.buffer.raw()?;
        if shown.is_ok() {
            raw.unmap();
        } else {
            // Mapped, about to be, or neither, which is an error of no interest here.
            let _ = gpu.scoped(&|| "reading results back".to_owned(), |_| raw.unmap());
        }
        shown
    }

    fn map<T>(
        &self,
        gpu: &Gpu,
        submission: &Submission,
        bytes: u64,
        view: impl FnOnce(&[u8]) -> T,
    ) -> Result<T> {
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
        let range = range.map_err(|e| rejected(e.to_string()))?;
        range
            .get(..usize::try_from(bytes).unwrap_or(usize::MAX))
            .map(view)
            .ok_or_else(|| rejected("the driver mapped fewer bytes".to_owned()))
    }
}

fn rejected(message: String) -> Error {
    Error::Rejected {
        what: "reading results back".to_owned(),
        message,
    }
}
