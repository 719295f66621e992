//! Creating buffers within the adapter's limits.

use crate::{Error, Gpu, Result};

/// What a buffer is for, which decides its usages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BufferKind {
    /// Read and written by kernels; a source and target of copies.
    Storage,
    /// Small parameters of kernels.
    Uniform,
    /// Read by the host.
    Readback,
}

impl BufferKind {
    fn usages(self) -> wgpu::BufferUsages {
        use wgpu::BufferUsages as U;
        match self {
            Self::Storage => U::STORAGE | U::COPY_DST | U::COPY_SRC,
            Self::Uniform => U::UNIFORM | U::COPY_DST,
            Self::Readback => U::MAP_READ | U::COPY_DST,
        }
    }
}

impl Gpu {
    /// A zeroed buffer of `bytes` (rounded up to 4, at least 4); `label` names it in errors and debuggers.
    ///
    /// # Errors
    /// [`Error::OverLimit`] or [`Error::OutOfMemory`]; nothing is left behind.
    pub fn buffer(&self, kind: BufferKind, label: &str, bytes: u64) -> Result<wgpu::Buffer> {
        let allowed = self.capabilities().limits.buffer_bytes;
        let size = bytes.max(4).checked_next_multiple_of(4);
        let Some(size) = size.filter(|size| *size <= allowed) else {
            return Err(Error::OverLimit {
                what: format!("buffer `{label}`"),
                bytes,
                limit: "largest buffer",
                allowed,
            });
        };
        let made = self.scoped(&|| format!("buffer `{label}` of {bytes} bytes"), |device| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size,
                usage: kind.usages(),
                mapped_at_creation: false,
            })
        })?;
        self.counters().buffer_made();
        Ok(made)
    }

    /// Writes `bytes` at `offset` (both multiples of 4) before anything submitted later runs.
    ///
    /// # Errors
    /// [`Error::Rejected`] when the range does not lie in the buffer.
    pub fn write(&self, buffer: &wgpu::Buffer, offset: u64, bytes: &[u8]) -> Result<()> {
        let end = offset.checked_add(bytes.len() as u64);
        if end.is_none_or(|end| end > buffer.size())
            || !offset.is_multiple_of(4)
            || !bytes.len().is_multiple_of(4)
        {
            return Err(Error::Rejected {
                what: "a buffer write".to_owned(),
                message: format!(
                    "{} bytes at {offset} do not fit a buffer of {}",
                    bytes.len(),
                    buffer.size()
                ),
            });
        }
        self.queue().write_buffer(buffer, offset, bytes);
        Ok(())
    }
}
