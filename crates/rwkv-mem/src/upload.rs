//! Filling GPU buffers from the host piece by piece.

use rwkv_gpu::{Buffer, Gpu, Result};

/// Bytes on their way before the host waits for the GPU: host memory stays flat however large a model is.
const IN_FLIGHT: u64 = 64 << 20;

/// Writes to buffers, bounding what is in flight.
pub struct Upload {
    gpu: Gpu,
    in_flight: u64,
    total: u64,
}

impl Upload {
    /// A new upload.
    pub fn new(gpu: &Gpu) -> Self {
        Self {
            gpu: gpu.clone(),
            in_flight: 0,
            total: 0,
        }
    }

    /// Writes `bytes` (a multiple of 4) at `offset` of `buffer`.
    ///
    /// # Errors
    /// [`rwkv_gpu::Error::Rejected`] when the range does not fit, [`rwkv_gpu::Error::Lost`] when the device is gone.
    pub fn write(&mut self, buffer: &Buffer, offset: u64, bytes: &[u8]) -> Result<()> {
        self.gpu.write(buffer, offset, bytes)?;
        self.in_flight += bytes.len() as u64;
        self.total += bytes.len() as u64;
        if self.in_flight >= IN_FLIGHT {
            self.flush()
        } else {
            Ok(())
        }
    }

    /// Waits until everything written so far has arrived.
    ///
    /// # Errors
    /// [`rwkv_gpu::Error::Lost`] when the device is gone.
    pub fn flush(&mut self) -> Result<()> {
        self.in_flight = 0;
        let submission = self.gpu.recorder("upload").submit()?;
        self.gpu.wait(&submission)
    }

    /// Bytes written so far.
    pub fn total(&self) -> u64 {
        self.total
    }
}
