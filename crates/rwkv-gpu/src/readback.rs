//! Reading results on the host.

use crate::{BufferKind, Error, Gpu, Result, Submission};
use std::sync::mpsc;

/// A host-visible buffer that results are copied to; used again and again.
#[derive(Debug)]
pub struct Readback {
    buffer: wgpu::Buffer,
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

    pub(crate) fn buffer(&self) -> &wgpu::Buffer {
        &self.buffer
    }

    /// Waits for `submission`, which copied here, and shows the first `bytes` to `view`.
    ///
    /// # Errors
    /// [`Error::Lost`] when the device is gone, [`Error::Rejected`] when the range cannot be mapped.
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
        let rejected = |message: String| Error::Rejected {
            what: "reading results back".to_owned(),
            message,
        };
        let (done, mapped) = mpsc::channel();
        self.buffer.map_async(
            wgpu::MapMode::Read,
            0..bytes.next_multiple_of(4),
            move |result| {
                // The receiver lives until the end of this function.
                let _ = done.send(result);
            },
        );
        gpu.wait(submission)?;
        mapped
            .recv()
            .map_err(|_| rejected("the driver dropped the request".to_owned()))?
            .map_err(|e| rejected(e.to_string()))?;
        let result = match self.buffer.get_mapped_range(0..bytes.next_multiple_of(4)) {
            Ok(range) => range
                .get(..usize::try_from(bytes).unwrap_or(usize::MAX))
                .map(view),
            Err(e) => return Err(rejected(e.to_string())),
        };
        self.buffer.unmap();
        result.ok_or_else(|| rejected(format!("{bytes} bytes do not fit the readback buffer")))
    }
}
