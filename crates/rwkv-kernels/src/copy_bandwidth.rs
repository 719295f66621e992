//! How fast an adapter copies its own memory: the yardstick for kernels that are bound by memory.

use crate::{Error, Kernels, Result, kernels::u32_of};
use bytemuck::NoUninit;
use rwkv_gpu::{Binding, BufferKind, Timer, Timing};
use std::time::{Duration, Instant};

/// Copies a submission, so that submitting costs little of the time.
const COPIES: u32 = 8;
const ROUNDS: usize = 9;

/// A GPU that was idle needs this long to reach its clocks.
const WARM_UP: Duration = Duration::from_millis(200);

/// Bytes and threads of a workgroup, as in the WGSL.
const UNIT: u64 = 16;
const THREADS: usize = 256;

/// A measured copy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CopyBandwidth {
    /// Bytes a second, those read and those written together; the median of several rounds.
    pub bytes_per_second: f64,
    /// Bytes of the buffer that was copied.
    pub buffer_bytes: u64,
    /// Timed by the GPU's clock; else by the host's, submission and all.
    pub timestamps: bool,
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct Params {
    count: u32,
}

impl Kernels {
    /// Measures how fast a kernel copies a buffer of about `bytes` to another. (The driver's own copy is slower on some
    /// adapters: on an H200 a fifth of this.)
    ///
    /// # Errors
    /// [`Error::Gpu`] when two such buffers do not fit or the kernel does not compile.
    pub fn copy_bandwidth(&self, bytes: u64) -> Result<CopyBandwidth> {
        let gpu = self.gpu();
        // Zeros may be faster than numbers: write some.
        let numbers: Vec<u32> = (0..1 << 18)
            .map(|i: u32| i.wrapping_mul(2_654_435_769))
            .collect();
        let numbers: &[u8] = bytemuck::cast_slice(&numbers);
        let piece = numbers.len() as u64;
        let bytes = bytes.max(1).next_multiple_of(piece);
        let from = gpu.buffer(BufferKind::Storage, "source", bytes)?;
        let to = gpu.buffer(BufferKind::Storage, "target", bytes)?;
        for offset in (0..bytes / piece).map(|i| i * piece) {
            gpu.write(&from, offset, numbers)?;
        }
        let count = usize::try_from(bytes / UNIT).unwrap_or(usize::MAX);
        let params = Params {
            count: u32_of("elements", count)?,
        };
        let pipeline = self.pipeline("copy", &[])?;
        let bindings = [Binding::from(&from), Binding::from(&to)];
        let copy = self.dispatch(pipeline, &params, &bindings, count.div_ceil(THREADS))?;
        let copies = vec![copy; COPIES as usize];
        let mut timer = Timer::new(gpu, Timing::Passes)?;
        let mut timestamps = timer.is_some();
        let mut seconds = Vec::new();
        let begun = Instant::now();
        let mut warm = false;
        while seconds.len() < ROUNDS {
            let start = Instant::now();
            let mut recorder = gpu.recorder("copy");
            match &mut timer {
                Some(timer) => timer.dispatch(&mut recorder, "copy", &copies)?,
                None => recorder.dispatch(&copies),
            }
            let submission = recorder.submit()?;
            if let Some(timer) = &mut timer {
                timer.submitted()?;
            }
            gpu.wait(&submission)?;
            let host = start.elapsed().as_secs_f64();
            let spans = timer.as_mut().and_then(Timer::take).unwrap_or_default();
            let device: f64 = spans.iter().map(rwkv_gpu::TimedSpan::seconds).sum();
            // A clock that stood still has measured nothing.
            timestamps &= device > 0.0;
            if warm {
                seconds.push(if timestamps { device } else { host } / f64::from(COPIES));
            }
            warm |= begun.elapsed() >= WARM_UP;
        }
        seconds.sort_by(f64::total_cmp);
        let median = seconds.get(ROUNDS / 2).copied().unwrap_or(f64::NAN);
        if median.is_nan() {
            return Err(Error::shape("copy", "no round was measured"));
        }
        Ok(CopyBandwidth {
            bytes_per_second: 2.0 * bytes as f64 / median,
            buffer_bytes: bytes,
            timestamps,
        })
    }
}
