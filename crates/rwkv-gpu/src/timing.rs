//! When the GPU began and ended its work, by its own clock.
//!
//! The queries, their buffers and their reuse are `wgpu-profiler`'s. A timestamp inside a pass is taken when everything
//! before it is done, so kernels that overlap each show the time that they add, and the times of a step's kernels add up
//! to the step's.

use crate::{Dispatch, Error, Gpu, Recorder, Result};
use wgpu_profiler::{GpuProfiler, GpuProfilerSettings};

/// What is timed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Timing {
    /// Nothing.
    #[default]
    Off,
    /// Each pass from begin to end. Costs a readback of 16 bytes a submission.
    Passes,
    /// Each kernel; slower, for looking rather than measuring. An adapter without timestamps inside passes runs each
    /// kernel in a pass of its own, which is slower still.
    Kernels,
}

/// A stretch of time on the GPU.
#[derive(Clone, Debug, PartialEq)]
pub struct TimedSpan {
    /// The pass's label, or the kernel's name.
    pub name: String,
    /// Seconds, from an origin that the driver chooses.
    pub begin: f64,
    /// Seconds, from the same origin.
    pub end: f64,
}

impl TimedSpan {
    /// Its length in seconds; 0 where the driver's clock went backwards.
    pub fn seconds(&self) -> f64 {
        (self.end - self.begin).max(0.0)
    }
}

/// Times what is dispatched through it.
pub struct Timer {
    gpu: Gpu,
    timing: Timing,
    profiler: GpuProfiler,
    /// Timestamps can be taken inside a pass.
    inside: bool,
    /// Something was recorded that [`submitted`](Self::submitted) has not been told of.
    open: bool,
}

/// Submissions that may be on their way before the newest are no longer timed.
const IN_FLIGHT: usize = 8;

impl Gpu {
    /// Whether this adapter can time anything.
    pub fn has_timestamps(&self) -> bool {
        self.capabilities().timestamps
    }

    /// Whether `feature` was there when the adapter was opened.
    pub(crate) fn has(&self, feature: wgpu::Features) -> bool {
        self.device().features().contains(feature)
    }
}

impl Timer {
    /// A timer, or none when there is nothing to time or the adapter has no timestamps.
    ///
    /// # Errors
    /// [`Error::Rejected`] with the profiler's words.
    pub fn new(gpu: &Gpu, timing: Timing) -> Result<Option<Self>> {
        if timing == Timing::Off || !gpu.has_timestamps() {
            return Ok(None);
        }
        Ok(Some(Self {
            gpu: gpu.clone(),
            timing,
            profiler: profiler(gpu)?,
            inside: gpu.has(wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES),
            open: false,
        }))
    }

    /// As [`Recorder::dispatch`], with timestamps. Each recorder may come here once, and is to be submitted next.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] or [`Error::Rejected`] when the queries cannot be made or a kernel is not compiled.
    pub fn dispatch<'a>(
        &mut self,
        recorder: &mut Recorder,
        label: &str,
        dispatches: impl IntoIterator<Item = &'a Dispatch>,
    ) -> Result<()> {
        if std::mem::replace(&mut self.open, true) {
            // What was recorded before was never submitted: its queries hold nothing.
            self.profiler = profiler(&self.gpu)?;
        }
        let dispatches = dispatches.into_iter().filter(|d| !d.is_empty());
        let (profiler, encoder) = (&mut self.profiler, &mut recorder.encoder);
        self.gpu.scoped(&|| "timestamps".to_owned(), |_| {
            if self.timing == Timing::Passes {
                timed_pass(profiler, encoder, label, dispatches)?;
            } else if self.inside {
                let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
                for dispatch in dispatches {
                    let query = profiler.begin_query(dispatch.pipeline.shader().name, &mut pass);
                    dispatch.record(&mut pass)?;
                    profiler.end_query(&mut pass, query);
                }
            } else {
                for dispatch in dispatches {
                    let name = dispatch.pipeline.shader().name;
                    timed_pass(profiler, encoder, name, [dispatch])?;
                }
            }
            profiler.resolve_queries(encoder);
            Ok(())
        })?
    }

    /// To be called when what was recorded has been submitted, before waiting for it.
    ///
    /// # Errors
    /// [`Error::Rejected`] with the profiler's words.
    pub fn submitted(&mut self) -> Result<()> {
        self.open = false;
        self.profiler.end_frame().map_err(rejected)
    }

    /// The spans of the oldest submission that is done and was not asked for yet, in the order of recording. One that was
    /// waited for is done.
    pub fn take(&mut self) -> Option<Vec<TimedSpan>> {
        let period = self.gpu.queue().get_timestamp_period();
        let results = self.profiler.process_finished_frame(period)?;
        let spans = results.into_iter().filter_map(|result| {
            let time = result.time?;
            Some(TimedSpan {
                name: result.label,
                begin: time.start,
                end: time.end,
            })
        });
        Some(spans.collect())
    }
}

fn timed_pass<'a>(
    profiler: &GpuProfiler,
    encoder: &mut wgpu::CommandEncoder,
    label: &str,
    dispatches: impl IntoIterator<Item = &'a Dispatch>,
) -> Result<()> {
    let query = profiler.begin_pass_query(label, encoder);
    let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
        label: Some(label),
        timestamp_writes: query.compute_pass_timestamp_writes(),
    });
    let recorded = dispatches.into_iter().try_for_each(|d| d.record(&mut pass));
    drop(pass);
    profiler.end_query(encoder, query);
    recorded
}

pub(crate) fn profiler(gpu: &Gpu) -> Result<GpuProfiler> {
    let settings = GpuProfilerSettings {
        enable_timer_queries: true,
        enable_debug_groups: true,
        max_num_pending_frames: IN_FLIGHT,
    };
    GpuProfiler::new(gpu.device(), settings).map_err(rejected)
}

pub(crate) fn rejected(error: impl std::fmt::Display) -> Error {
    Error::Rejected {
        what: "timestamps".to_owned(),
        message: crate::error::one_line(&error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::{OpenOptions, Shader};

    const fn shader(name: &'static str) -> Shader {
        Shader {
            name,
            source: include_str!("timing_test.wgsl"),
            bindings: &[],
            workgroup_size: [64, 1, 1],
            workgroup_bytes: 4,
            overrides: &[],
            requires: &[],
        }
    }
    static A: Shader = shader("a");
    static B: Shader = shader("b");

    /// Each pass or each kernel has one span, in order, in either way of timing kernels; what was never submitted is
    /// forgotten; more submissions than may be on their way do no harm.
    #[test]
    fn spans() {
        let device = std::env::var("RWKV_DEVICE").unwrap_or_else(|_| "0".to_owned());
        let gpu = Gpu::open(&device.parse().unwrap(), &OpenOptions::default()).unwrap();
        assert!(gpu.has_timestamps(), "this test needs timestamps");
        assert!(Timer::new(&gpu, Timing::Off).unwrap().is_none());
        let dispatch = |shader, x| Dispatch {
            pipeline: gpu.pipeline(shader, &[]).unwrap(),
            groups: Vec::new(),
            grid: [x, 1, 1],
        };
        // The third launches nothing.
        let work = [
            dispatch(&A, 1),
            dispatch(&B, 40),
            dispatch(&A, 0),
            dispatch(&A, 3),
        ];
        for (timing, inside, names) in [
            (Timing::Passes, true, &["step"][..]),
            (Timing::Kernels, true, &["a", "b", "a"]),
            (Timing::Kernels, false, &["a", "b", "a"]),
        ] {
            let mut timer = Timer::new(&gpu, timing).unwrap().unwrap();
            timer.inside &= inside;
            for round in 0..20 {
                let mut recorder = gpu.recorder("test");
                timer.dispatch(&mut recorder, "step", &work).unwrap();
                if round % 5 == 1 {
                    continue;
                }
                let submission = recorder.submit().unwrap();
                timer.submitted().unwrap();
                if round >= 10 {
                    // The first ones pile up.
                    gpu.wait(&submission).unwrap();
                    let mut taken = 0;
                    while let Some(spans) = timer.take() {
                        let got: Vec<_> = spans.iter().map(|s| s.name.as_str()).collect();
                        assert_eq!(got, names);
                        assert!(spans.iter().all(|s| s.end >= s.begin && s.seconds() < 10.0));
                        assert!(spans.windows(2).all(|s| s[1].begin >= s[0].begin));
                        taken += 1;
                    }
                    assert!(taken > 0);
                }
            }
            gpu.check().unwrap();
        }
    }
}
