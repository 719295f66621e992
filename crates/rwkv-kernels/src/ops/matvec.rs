//! How the matrix-vector kernels spread a product over the GPU (`wgsl/rows.wgsl`), which a tuner may choose.

use crate::{GpuMatrix, Kernels};
use rwkv_gpu::Kind;

/// The shape of a matrix-vector kernel's work. Any values are accepted: what does not fit the adapter or the matrix is
/// brought to what does.
///
/// Outcomes differ between shapes by the order of sums only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MatvecShape {
    /// Threads of a workgroup: a power of two from 32 to 256.
    pub threads: u32,
    /// Subgroups that share a row: a power of two, at most those of a workgroup.
    pub split: u32,
    /// Rows that they make together, which share the loads of x: 1, 2 or 4.
    pub rows: u32,
    /// Units of each row that a thread loads before it needs the first: 1 to 4.
    pub unroll: u32,
    /// Whether x is brought to workgroup memory first, where the threads' distance does not matter: what codes of few
    /// bits need. Without it each thread reads x where it lies.
    pub staged: bool,
    /// At most this many workgroups, each with as many rows as that takes; 0: as many as there are blocks of rows.
    pub workgroups: u32,
}

/// The most tokens that a matrix-vector kernel takes.
pub(crate) const MATVEC_TOKENS: usize = 8;

/// Workgroup memory for x is kept below this, so that several workgroups fit a core at once.
const STAGED_BYTES: usize = 32 << 10;

/// Subgroups that keep the largest GPUs busy, of plain weights and of packed ones, which are slower to expand: as
/// measured on an H200.
const BUSY_SUBGROUPS: usize = 16_384;
const BUSY_PACKED: usize = 4096;

impl MatvecShape {
    /// The shapes that are worth measuring.
    pub fn candidates() -> Vec<Self> {
        let mut all = Vec::new();
        for (threads, staged) in [(128, false), (64, false), (128, true), (256, true)] {
            for split in [1, 2, 4] {
                for (rows, unroll) in [(1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (2, 4), (4, 1)] {
                    // Nothing is saved by staging for one row.
                    if !(staged && rows * threads <= 128) {
                        all.push(Self {
                            threads,
                            split,
                            rows,
                            unroll,
                            staged,
                            workgroups: 0,
                        });
                    }
                }
            }
        }
        all
    }
}

/// A shape that fits, and what the kernel and its dispatch get of it.
pub(crate) struct Resolved {
    /// The values of the kernel's constants, but for those of the format.
    pub(crate) constants: Vec<(&'static str, f64)>,
    /// Units of x that are staged at a time, or all of them.
    pub(crate) chunk: usize,
    /// Rows of a workgroup's block at least: where subgroups are smaller than they can be, it has more.
    pub(crate) block_rows: usize,
    workgroups: usize,
}

impl Resolved {
    /// The workgroups for `rows` rows.
    pub(crate) fn workgroups(&self, rows: usize) -> usize {
        let blocks = rows.div_ceil(self.block_rows);
        // As many blocks for each as for the others.
        let turns = blocks.div_ceil(self.workgroups).max(1);
        blocks.div_ceil(turns)
    }
}

impl Kernels {
    /// The sizes of subgroups, or of what stands for them.
    pub(crate) fn lane_counts(&self) -> (u32, u32) {
        let sizes = self.gpu().capabilities().subgroups;
        sizes.map_or((32, 32), |s| (s.min.max(4), s.max.max(4)))
    }

    /// The shape that [`linear`](Self::linear) uses for `tokens` tokens.
    pub fn matvec_shape(&self, weight: &GpuMatrix, tokens: usize) -> MatvecShape {
        self.shape_for(weight, weight.shape().rows.0, tokens)
    }

    /// The shape for `total` rows in one dispatch, which may be of several matrices like `weight`.
    pub(crate) fn shape_for(&self, weight: &GpuMatrix, total: usize, tokens: usize) -> MatvecShape {
        let (_, lanes) = self.lane_counts();
        let units = weight.units();
        if self.gpu().kind() == Kind::Software {
            // Nothing to hide latency from, and compiling larger loops takes longer than running them.
            return MatvecShape {
                threads: 128,
                split: 1,
                rows: 1,
                unroll: 1,
                staged: false,
                workgroups: 0,
            };
        }
        // As measured on an H200 (docs/performance.md): several rows share x, which costs more to read than codes of 8
        // bits and less do.
        let packed = weight.layout().unit() > 8;
        let rows: u32 = match tokens {
            0..=2 if !packed => 2,
            _ => 4,
        };
        let staged = tokens > 2;
        let threads = if staged { 256 } else { 128 };
        let busy = if packed { BUSY_PACKED } else { BUSY_SUBGROUPS };
        let mut split = 1;
        while split < threads / lanes.min(threads)
            && (total / rows as usize) * (split as usize) < busy
            && units > (lanes * split) as usize
        {
            split *= 2;
        }
        let turns = units.div_ceil((lanes * split) as usize);
        let most = if tokens > 2 || packed { 1 } else { 4 / rows };
        let unroll = u32::try_from(turns).unwrap_or(most).clamp(1, most);
        MatvecShape {
            threads,
            split,
            rows,
            unroll,
            staged,
            workgroups: 0,
        }
    }

    /// What becomes of `shape` for a matrix in `units` units a row of `unit` elements.
    pub(crate) fn resolve(
        &self,
        shape: MatvecShape,
        unit: usize,
        units: usize,
        tokens: usize,
    ) -> Resolved {
        let limits = &self.gpu().capabilities().limits;
        let (smallest, largest) = self.lane_counts();
        let two = |n: u32, low: u32, high: u32| {
            let power = n.clamp(1, 1 << 16).next_power_of_two();
            power.clamp(low, high.max(low))
        };
        let threads = two(
            shape.threads,
            largest.max(32),
            limits.workgroup_invocations.min(256),
        );
        let split = two(shape.split, 1, threads / largest);
        let rows = two(shape.rows, 1, 4);
        let token_slots = tokens.next_power_of_two();
        let partials = token_slots * (rows * (threads / smallest)) as usize;
        // The partial sums, and those of a kernel without subgroup operations.
        let taken = (partials + threads as usize) * 4;
        let left = (limits.workgroup_bytes as usize).saturating_sub(taken);
        let parts = unit / 4;
        let fit = left.min(STAGED_BYTES) / (16 * token_slots * parts);
        let (mut staged, mut chunk) = (shape.staged, units);
        if staged && units.next_multiple_of(8) > fit {
            chunk = fit / 8 * 8;
            // With less, some lanes would have nothing to do.
            if chunk < (largest * split) as usize {
                (staged, chunk) = (false, units);
            }
        }
        let pitch = if staged {
            (chunk * parts).next_multiple_of(8)
        } else {
            1
        };
        let number = |n: usize| n as f64;
        Resolved {
            constants: vec![
                ("WORKGROUP", f64::from(threads)),
                ("TOKENS", number(token_slots)),
                ("ROWS", f64::from(rows)),
                ("UNROLL", f64::from(shape.unroll.clamp(1, 4))),
                ("SPLIT", f64::from(split)),
                ("STAGED", f64::from(u8::from(staged))),
                ("X_PITCH", number(pitch)),
                (
                    "X_PARTS",
                    number(if staged { pitch * token_slots } else { 1 }),
                ),
                ("PARTIALS", number(partials)),
            ],
            chunk,
            block_rows: (threads / largest / split * rows) as usize,
            workgroups: match shape.workgroups {
                0 => usize::MAX,
                n => n as usize,
            },
        }
    }
}
