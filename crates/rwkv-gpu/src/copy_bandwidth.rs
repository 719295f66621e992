//! How fast an adapter copies its own memory: the yardstick for kernels that are bound by memory.

use crate::{
    BufferKind, Gpu, Result,
    timing::{profiler, rejected},
};
use std::time::Instant;

/// Copies a submission, so that submitting costs little of the time.
const COPIES: u32 = 4;
const ROUNDS: usize = 9;

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

impl Gpu {
    /// Measures how fast a buffer of about `bytes` is copied to another.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`] or [`crate::Error::OverLimit`] when two such buffers do not fit.
    pub fn copy_bandwidth(&self, bytes: u64) -> Result<CopyBandwidth> {
        // Zeros may be faster than numbers: write some.
        let numbers: Vec<u32> = (0..1 << 18)
            .map(|i: u32| i.wrapping_mul(2_654_435_769))
            .collect();
        let numbers: &[u8] = bytemuck::cast_slice(&numbers);
        let piece = numbers.len() as u64;
        let bytes = bytes.max(1).next_multiple_of(piece);
        let from = self.buffer(BufferKind::Storage, "source", bytes)?;
        let to = self.buffer(BufferKind::Storage, "target", bytes)?;
        for offset in (0..bytes / piece).map(|i| i * piece) {
            self.write(&from, offset, numbers)?;
        }
        let timestamps = self.has(wgpu::Features::TIMESTAMP_QUERY_INSIDE_ENCODERS);
        let mut profiler = profiler(self)?;
        let mut seconds = Vec::new();
        // The first round warms up.
        for round in 0..=ROUNDS {
            let start = Instant::now();
            let mut recorder = self.recorder("copy");
            let query = profiler.begin_query("copy", &mut recorder.encoder);
            for _ in 0..COPIES {
                recorder.copy((&from, 0), (&to, 0), bytes);
            }
            profiler.end_query(&mut recorder.encoder, query);
            profiler.resolve_queries(&mut recorder.encoder);
            let submission = recorder.submit()?;
            profiler.end_frame().map_err(rejected)?;
            self.wait(&submission)?;
            let host = start.elapsed().as_secs_f64();
            let spans = profiler.process_finished_frame(self.queue().get_timestamp_period());
            let device = spans
                .and_then(|spans| spans.into_iter().next()?.time)
                .map(|time| time.end - time.start);
            // A clock that stood still has measured nothing.
            let taken = device.filter(|t| timestamps && *t > 0.0).unwrap_or(host);
            if round > 0 {
                seconds.push(taken / f64::from(COPIES));
            }
        }
        seconds.sort_by(f64::total_cmp);
        let median = seconds.get(ROUNDS / 2).copied().unwrap_or(f64::NAN);
        Ok(CopyBandwidth {
            bytes_per_second: 2.0 * bytes as f64 / median,
            buffer_bytes: bytes,
            timestamps,
        })
    }
}
