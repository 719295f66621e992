//! Creating buffers within the adapter's limits.

use crate::{Error, Gpu, Result, memory::Share};
use std::{
    hash::{Hash, Hasher},
    sync::Arc,
};

/// A buffer on the GPU. Cloning shares it; its bytes count as in use ([`Gpu::memory`]) until the last clone and the last
/// bind group with it are gone.
///
/// One that a [planning](Gpu::planning) GPU has made is a size and nothing else: it can be bound, and what would write,
/// copy or launch with it is refused.
#[derive(Clone, Debug)]
pub struct Buffer {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    size: u64,
    memory: Option<Memory>,
}

#[derive(Debug)]
struct Memory {
    raw: wgpu::Buffer,
    /// After the buffer itself, so that nobody is given bytes that are still taken.
    _share: Share,
}

impl Buffer {
    /// Its bytes.
    pub fn size(&self) -> u64 {
        self.inner.size
    }

    /// What wgpu has of it, for crates that record on their own. A clone of that keeps the memory, uncounted.
    ///
    /// # Errors
    /// [`Error::Rejected`] for a buffer that is only planned.
    pub fn raw(&self) -> Result<&wgpu::Buffer> {
        let memory = self.inner.memory.as_ref();
        memory
            .map(|memory| &memory.raw)
            .ok_or_else(|| Error::Rejected {
                what: format!("a buffer of {} bytes", self.size()),
                message: "it is only planned, and has no memory".to_owned(),
            })
    }

    pub(crate) fn is_planned(&self) -> bool {
        self.inner.memory.is_none()
    }

    /// Fails unless `bytes` bytes from `offset` on, both multiples of 4, lie in it.
    ///
    /// # Errors
    /// [`Error::Rejected`].
    pub fn check_range(&self, offset: u64, bytes: u64) -> Result<()> {
        let end = offset.checked_add(bytes);
        let fits = end.is_some_and(|end| end <= self.size());
        if fits && offset.is_multiple_of(4) && bytes.is_multiple_of(4) {
            return Ok(());
        }
        Err(Error::Rejected {
            what: "a buffer write".to_owned(),
            message: format!(
                "{bytes} bytes at {offset} do not fit a buffer of {}",
                self.size()
            ),
        })
    }
}

/// Two are equal when they share their memory.
impl PartialEq for Buffer {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }
}

impl Eq for Buffer {}

impl Hash for Buffer {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.inner).hash(state);
    }
}

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
    /// A zeroed buffer of `bytes` (rounded up to 4, at least 4); `label` names it in errors and debuggers. A
    /// [planning](Self::planning) GPU gives it no memory.
    ///
    /// # Errors
    /// [`Error::OverLimit`], or [`Error::OutOfMemory`] where the driver or the
    /// [limit](crate::OpenOptions::memory_limit) leaves no room; nothing is left behind.
    pub fn buffer(&self, kind: BufferKind, label: &str, bytes: u64) -> Result<Buffer> {
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
        if self.is_planning() {
            return Ok(Buffer {
                inner: Arc::new(Inner { size, memory: None }),
            });
        }
        let what = || format!("buffer `{label}`");
        let exhausted = |in_use: u64, limit: Option<u64>| Error::OutOfMemory {
            what: what(),
            bytes: Some(size),
            in_use,
            limit,
        };
        let ledger = self.ledger();
        let share = ledger
            .take(size)
            .map_err(|in_use| exhausted(in_use, ledger.limit()))?;
        let made = self.scoped(&what, |device| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size,
                usage: kind.usages(),
                mapped_at_creation: false,
            })
        });
        let raw = match made {
            Err(Error::OutOfMemory { in_use, .. }) => {
                // The buffer that was not made is none of those in use.
                return Err(exhausted(in_use.saturating_sub(size), None));
            }
            other => other?,
        };
        share.made();
        self.counters().buffer_made();
        let memory = Some(Memory { raw, _share: share });
        Ok(Buffer {
            inner: Arc::new(Inner { size, memory }),
        })
    }

    /// Writes `bytes` at `offset` (both multiples of 4) before anything submitted later runs.
    ///
    /// # Errors
    /// [`Error::Rejected`] when the range does not lie in the buffer, or the buffer is only planned.
    pub fn write(&self, buffer: &Buffer, offset: u64, bytes: &[u8]) -> Result<()> {
        buffer.check_range(offset, bytes.len() as u64)?;
        self.queue().write_buffer(buffer.raw()?, offset, bytes);
        Ok(())
    }
}
