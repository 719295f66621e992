//! How fast the device that ran the model copies memory, measured in the same run.

use rwkv_gpu::Kind;
use rwkv_kernels::Kernels;
use rwkv_sched::Device;
use serde::Serialize;
use std::time::Instant;

use super::spread::Spread;

/// Larger than any cache.
const BYTES: u64 = 256 << 20;
/// A software adapter is slow, and its caches are small.
const BYTES_IN_SOFTWARE: u64 = 64 << 20;
const ROUNDS: usize = 9;

/// A measured copy.
#[derive(Serialize)]
pub(super) struct Copy {
    /// Read and written together.
    pub(super) bytes_per_second: f64,
    pub(super) buffer_bytes: u64,
    /// `gpu` or `host`.
    pub(super) clock: &'static str,
}

/// The copy bandwidth of `device`; none, with a note, where there is no memory left for it.
pub(super) fn measure(device: &Device) -> Option<Copy> {
    match device {
        Device::Cpu => host(BYTES_IN_SOFTWARE),
        Device::Gpu(gpu) => {
            let bytes = match gpu.kind() {
                Kind::Software => BYTES_IN_SOFTWARE,
                _ => BYTES,
            };
            match Kernels::new(gpu).and_then(|kernels| kernels.copy_bandwidth(bytes)) {
                Ok(copied) => Some(Copy {
                    bytes_per_second: copied.bytes_per_second,
                    buffer_bytes: copied.buffer_bytes,
                    clock: if copied.timestamps { "gpu" } else { "host" },
                }),
                Err(error) => {
                    eprintln!("note: the copy bandwidth was not measured: {error}");
                    None
                }
            }
        }
    }
}

/// All threads copy a part each.
fn host(bytes: u64) -> Option<Copy> {
    let bytes = usize::try_from(bytes).ok()?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let part = bytes.div_ceil(threads);
    let from: Vec<u8> = (0u8..=250).cycle().take(bytes).collect();
    let mut to = vec![0; bytes];
    let mut copy = || {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for (from, to) in from.chunks(part).zip(to.chunks_mut(part)) {
                scope.spawn(|| to.copy_from_slice(from));
            }
        });
        start.elapsed().as_secs_f64()
    };
    // The first round touches the pages.
    copy();
    let seconds = Spread::of((0..ROUNDS).map(|_| copy()))?;
    std::hint::black_box(&to);
    Some(Copy {
        bytes_per_second: 2.0 * bytes as f64 / seconds.median,
        buffer_bytes: bytes as u64,
        clock: "host",
    })
}
