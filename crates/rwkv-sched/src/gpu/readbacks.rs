//! Buffers that the results of steps come back in: one for each step on its way.

use super::blend::out_of_memory;
use crate::Result;
use parking_lot::{Condvar, Mutex};
use rwkv_gpu::{Gpu, Mapped, Readback, Submission};
use std::{ops::Deref, sync::Arc};

/// Those that are free, and word of those that come back.
#[derive(Clone, Default)]
pub(super) struct Readbacks {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    known: Mutex<Known>,
    returned: Condvar,
}

#[derive(Default)]
struct Known {
    free: Vec<Arc<Readback>>,
    lent: usize,
}

/// One that is in use until this is dropped, on any thread.
pub(super) struct Lent {
    readback: Arc<Readback>,
    of: Readbacks,
}

/// What a step has left in one, where it lies; the buffer is lent until this is dropped.
pub(super) struct Left {
    // Dropped first.
    mapped: Mapped,
    _lent: Lent,
}

impl Lent {
    /// Waits for `submission`, which has copied `bytes` here.
    ///
    /// # Errors
    /// A GPU's failure.
    pub(super) fn left(self, gpu: &Gpu, submission: &Submission, bytes: u64) -> Result<Left> {
        Ok(Left {
            mapped: self.readback.map(gpu, submission, bytes)?,
            _lent: self,
        })
    }
}

impl AsRef<[f32]> for Left {
    fn as_ref(&self) -> &[f32] {
        bytemuck::cast_slice(&self.mapped)
    }
}

impl Readbacks {
    /// One of at least `bytes`, or none for no bytes. Where there is no memory for another one, waits for one that is lent.
    ///
    /// # Errors
    /// Memory that does not suffice, or a GPU's failure.
    pub(super) fn take(&self, gpu: &Gpu, bytes: u64) -> Result<Option<Lent>> {
        if bytes == 0 {
            return Ok(None);
        }
        let mut known = self.shared.known.lock();
        let readback = loop {
            let fits = known.free.iter().position(|r| r.capacity() >= bytes);
            if let Some(fits) = fits {
                break known.free.swap_remove(fits);
            }
            // Too small.
            known.free.clear();
            match Readback::new(gpu, "results", bytes.next_power_of_two()) {
                Ok(readback) => break Arc::new(readback),
                Err(error) => {
                    let error = error.into();
                    if known.lent == 0 || !out_of_memory(&error) {
                        return Err(error);
                    }
                    self.shared.returned.wait(&mut known);
                }
            }
        };
        known.lent += 1;
        Ok(Some(Lent {
            readback,
            of: self.clone(),
        }))
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let shared = &self.of.shared;
        let mut known = shared.known.lock();
        known.lent -= 1;
        known.free.push(self.readback.clone());
        shared.returned.notify_one();
    }
}

impl Deref for Lent {
    type Target = Readback;

    fn deref(&self) -> &Readback {
        &self.readback
    }
}
