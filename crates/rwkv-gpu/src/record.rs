//! Recording dispatches and copies, and submitting them.

use crate::{BindGroup, Buffer, Error, Gpu, Pipeline, Readback, Result};
use std::sync::Arc;

/// One kernel launch, resolved: recording it takes no lookup.
#[derive(Clone, Debug)]
pub struct Dispatch {
    /// The kernel, compiled before this is recorded.
    pub pipeline: Arc<Pipeline>,
    /// Its bind groups, by group number.
    pub groups: Vec<BindGroup>,
    /// Workgroups in x, y and z.
    pub grid: [u32; 3],
}

/// Records work for one submission.
pub struct Recorder {
    gpu: Gpu,
    pub(crate) encoder: wgpu::CommandEncoder,
    /// Why what was recorded is not to be submitted.
    failed: Option<Error>,
}

/// Work that was recorded: it can be submitted once, now or later. What it reads and writes stays as long as it does.
#[derive(Debug)]
pub struct Recording {
    raw: wgpu::CommandBuffer,
}

/// A submission: what it is to wait for.
#[derive(Clone, Debug)]
pub struct Submission {
    pub(crate) index: wgpu::SubmissionIndex,
}

impl Dispatch {
    /// Whether it launches nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.grid.contains(&0)
    }

    /// Fails when the pipeline is not compiled, or a buffer is only [planned](Gpu::planning).
    pub(crate) fn record(&self, pass: &mut wgpu::ComputePass<'_>) -> Result<()> {
        let rejected = |message: &str| Error::Rejected {
            what: format!("kernel {}", self.pipeline.shader().name),
            message: message.to_owned(),
        };
        let compiled = self.pipeline.raw();
        pass.set_pipeline(
            compiled.ok_or_else(|| rejected("it is launched before it is compiled"))?,
        );
        for (index, group) in (0u32..).zip(&self.groups) {
            let bound = group.raw();
            let bound = bound
                .ok_or_else(|| rejected("it is launched with buffers that are only planned"))?;
            pass.set_bind_group(index, bound, &[]);
        }
        let [x, y, z] = self.grid;
        pass.dispatch_workgroups(x, y, z);
        Ok(())
    }
}

impl Gpu {
    /// A recorder for one submission.
    pub fn recorder(&self, label: &str) -> Recorder {
        let encoder = self
            .device()
            .create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some(label) });
        Recorder {
            gpu: self.clone(),
            encoder,
            failed: None,
        }
    }

    /// Submits what was recorded, one after the other.
    ///
    /// # Errors
    /// [`Error::Rejected`] for work that does not validate, [`Error::Lost`] when the device is gone.
    pub fn submit(&self, recordings: impl IntoIterator<Item = Recording>) -> Result<Submission> {
        let recordings = recordings.into_iter().map(|recording| recording.raw);
        let index = self.scoped(&|| "a submission".to_owned(), |_| {
            self.queue().submit(recordings)
        })?;
        Ok(Submission { index })
    }

    /// Blocks until everything that was submitted or written is done. Until then the driver keeps the memory of buffers
    /// that were dropped meanwhile.
    ///
    /// # Errors
    /// [`Error::Lost`] when the device is gone.
    pub fn finish(&self) -> Result<()> {
        let submission = self.recorder("finish").submit()?;
        self.wait(&submission)
    }

    /// Blocks until `submission` is done.
    ///
    /// # Errors
    /// [`Error::Lost`] when the device is gone.
    pub fn wait(&self, submission: &Submission) -> Result<()> {
        let poll = wgpu::PollType::Wait {
            submission_index: Some(submission.index.clone()),
            timeout: None,
        };
        match self.device().poll(poll) {
            Ok(_) => self.check(),
            Err(e) => {
                self.check()?;
                Err(Error::Lost {
                    reason: e.to_string(),
                })
            }
        }
    }
}

impl Recorder {
    /// Records `dispatches` in one pass, in order; empty grids are left out. A kernel that is not compiled fails the
    /// submission.
    pub fn dispatch<'a>(&mut self, dispatches: impl IntoIterator<Item = &'a Dispatch>) {
        let mut pass = self
            .encoder
            .begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        for dispatch in dispatches.into_iter().filter(|d| !d.is_empty()) {
            if let Err(error) = dispatch.record(&mut pass) {
                self.failed.get_or_insert(error);
            }
        }
    }

    /// Records a copy of `bytes` from one buffer to another (offsets and size multiples of 4).
    pub fn copy(&mut self, from: (&Buffer, u64), to: (&Buffer, u64), bytes: u64) {
        match from.0.raw().and_then(|from| Ok((from, to.0.raw()?))) {
            Ok((source, target)) => {
                let encoder = &mut self.encoder;
                encoder.copy_buffer_to_buffer(source, from.1, target, to.1, bytes);
            }
            Err(error) => _ = self.failed.get_or_insert(error),
        }
    }

    /// Records filling a range of a buffer with zeros.
    pub fn clear(&mut self, buffer: &Buffer, offset: u64, bytes: u64) {
        match buffer.raw() {
            Ok(raw) => self.encoder.clear_buffer(raw, offset, Some(bytes)),
            Err(error) => _ = self.failed.get_or_insert(error),
        }
    }

    /// Records copying `bytes` of `buffer` from `offset` to the start of `readback`.
    pub fn read(&mut self, buffer: &Buffer, offset: u64, bytes: u64, readback: &Readback) {
        self.read_to(buffer, offset, bytes, readback, 0);
    }

    /// Records copying `bytes` of `buffer` from `offset` to byte `at` of `readback`.
    pub fn read_to(
        &mut self,
        buffer: &Buffer,
        offset: u64,
        bytes: u64,
        readback: &Readback,
        at: u64,
    ) {
        self.copy((buffer, offset), (readback.buffer(), at), bytes);
    }

    /// What was recorded, to be submitted later.
    ///
    /// # Errors
    /// [`Error::Rejected`] for work that does not validate, a kernel that is not compiled or a buffer that is only planned,
    /// [`Error::Lost`] when the device is gone.
    pub fn finish(self) -> Result<Recording> {
        let Self {
            gpu,
            encoder,
            failed,
        } = self;
        if let Some(error) = failed {
            return Err(error);
        }
        let raw = gpu.scoped(&|| "a submission".to_owned(), |_| encoder.finish())?;
        Ok(Recording { raw })
    }

    /// Submits what was recorded.
    ///
    /// # Errors
    /// Those of [`finish`](Self::finish).
    pub fn submit(self) -> Result<Submission> {
        let gpu = self.gpu.clone();
        let recording = self.finish()?;
        gpu.submit([recording])
    }
}
