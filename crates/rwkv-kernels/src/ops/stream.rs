//! How the kernels of a single token spread a product over the GPU (`wgsl/stream/`), which a tuner may choose.

use crate::{Error, GpuLayout, GpuMatrix, Kernels, Result, shaders};
use rwkv_gpu::{Access, Kind, Pipeline, Shader};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The shape of the work of a product of one token. What does not fit the adapter or the matrix is brought to what does.
///
/// Outcomes differ between shapes by the order of sums only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StreamShape {
    /// Threads of a workgroup: a power of two from 32 to 1024.
    pub threads: u32,
    /// Rows that a team of subgroups makes together: 1, 2 or 4.
    pub rows: u32,
    /// Units of each row that a thread loads at once: 1, 2 or 4, at most 4 of all rows.
    pub unroll: u32,
    /// Subgroups of a team: a power of two.
    pub split: u32,
    /// Workgroups at most, for each slice; 0: one for each block of rows.
    pub workgroups: u32,
    /// Slices that the columns are cut into, each for workgroups of its own.
    pub slices: u32,
}

/// Values of a kernel's constants.
pub(crate) type Constants = Vec<(&'static str, f64)>;

/// A shape that fits a product.
#[derive(Clone, Debug)]
pub(crate) struct Stream {
    pub(crate) threads: u32,
    /// Rows of a workgroup's block at least.
    block_rows: usize,
    workgroups: usize,
    pub(crate) slices: usize,
    /// Bytes of workgroup memory at most, of x and sums.
    pub(crate) bytes: usize,
    pub(crate) constants: Constants,
}

impl Stream {
    /// Workgroups for `rows` rows, of one slice.
    pub(crate) fn workgroups(&self, rows: usize) -> usize {
        rows.div_ceil(self.block_rows).clamp(1, self.workgroups)
    }

    /// Rows of a workgroup's block.
    pub(crate) fn block_rows(&self) -> usize {
        self.block_rows
    }

    /// No more than `count` workgroups a slice.
    pub(crate) fn at_most(&mut self, count: usize) {
        self.workgroups = self.workgroups.min(count);
    }

    /// Workgroups at most, of one slice.
    pub(crate) fn most_workgroups(&self) -> usize {
        self.workgroups
    }
}

/// Workgroups that keep the largest GPUs busy: one for each core, two, or four.
pub(super) const ONE_A_CORE: u32 = 132;
const TWO_A_CORE: u32 = 264;
const FOUR_A_CORE: u32 = 528;

/// Columns from which rows are long and very long.
pub(super) const LONG: usize = 4096;
const VERY_LONG: usize = 8192;

impl StreamShape {
    /// The shapes that are worth measuring.
    pub fn candidates() -> Vec<Self> {
        let mut all = Vec::new();
        for (threads, workgroups) in [
            (128, 0),
            (128, FOUR_A_CORE),
            (256, TWO_A_CORE),
            (256, FOUR_A_CORE),
            (512, ONE_A_CORE),
            (512, TWO_A_CORE),
        ] {
            for (rows, unroll) in [(1, 2), (1, 4), (2, 1), (2, 2), (4, 1)] {
                for (split, slices) in [(1, 1), (2, 1), (4, 1), (1, 4)] {
                    all.push(Self {
                        threads,
                        rows,
                        unroll,
                        split,
                        workgroups,
                        slices,
                    });
                }
            }
        }
        all
    }

    /// What is good where nothing was measured: as measured on an H200 (docs/performance.md), for products of `cols`
    /// columns, with a norm in front or not.
    fn usual(layout: &GpuLayout, cols: usize, norm: bool) -> Self {
        let (short, long) = (cols < LONG / 2, cols >= LONG);
        let integers = layout.codes_are_integers();
        let bytes = layout.unit() <= 16;
        let (rows, unroll, workgroups) = match (norm, integers) {
            (true, false) if short => (2, 1, TWO_A_CORE),
            (true, false) if long => (1, 4, ONE_A_CORE),
            (true, true) if short || (bytes && long) => (2, 2, TWO_A_CORE),
            (true, true) if bytes => (1, 4, TWO_A_CORE),
            (true, _) => (4, 1, TWO_A_CORE),
            (false, false) if long => (2, 2, TWO_A_CORE),
            (false, false) => (1, 4, 0),
            (false, true) if long || (bytes && !short) => (2, 2, TWO_A_CORE),
            (false, true) => (1, 2, TWO_A_CORE),
        };
        let threads = match workgroups {
            0 => 128,
            ONE_A_CORE => 512,
            _ => 256,
        };
        let usual = Self {
            threads,
            rows,
            unroll,
            split: 1,
            workgroups,
            slices: 1,
        };
        match (norm, integers) {
            // x of a very long row takes long to bring to every workgroup.
            (false, true) if cols >= 2 * VERY_LONG && bytes => Self {
                workgroups: FOUR_A_CORE / 8,
                slices: 8,
                ..usual
            },
            (false, true) if cols >= VERY_LONG => Self {
                workgroups: TWO_A_CORE / 4,
                slices: 4,
                ..usual
            },
            _ => usual,
        }
    }
}

impl Kernels {
    /// The shape for one token's product with a matrix like `weight`, with a norm and a shift in front or not.
    pub fn stream_shape(&self, weight: &GpuMatrix, norm: bool) -> StreamShape {
        if self.gpu().kind() == Kind::Software {
            // Nothing to hide latency from, and compiling larger loops takes longer than running them.
            return StreamShape {
                threads: 128,
                rows: 1,
                unroll: 1,
                split: 1,
                workgroups: 4,
                slices: 1,
            };
        }
        StreamShape::usual(weight.layout(), weight.shape().cols.0, norm)
    }

    /// What becomes of `shape` for a product with `weight`; `slots` more vec4s of workgroup memory are needed at least.
    /// None where the adapter has no subgroup operations, rows are no whole number of units, or x does not fit.
    pub(crate) fn stream(
        &self,
        weight: &GpuMatrix,
        shape: StreamShape,
        slots: usize,
    ) -> Option<Stream> {
        let lanes = self.gpu().capabilities().subgroups?;
        let limits = &self.gpu().capabilities().limits;
        let (layout, cols) = (weight.layout(), weight.shape().cols.0);
        let (unit, integers) = (layout.unit(), layout.codes_are_integers());
        let step = if integers { 32 } else { unit.max(8) };
        if lanes.min < 4 || cols == 0 || !cols.is_multiple_of(step) {
            return None;
        }
        let two = |n: u32, low: u32, high: u32| {
            let power = n.clamp(1, 1 << 16).next_power_of_two();
            power.clamp(low, high.max(low))
        };
        let threads = two(
            shape.threads,
            lanes.max.max(32),
            limits.workgroup_invocations.min(1024),
        );
        let split = two(shape.split, 1, threads / lanes.max);
        let rows = two(shape.rows, 1, 4);
        let partials = (rows * (threads / lanes.min)) as usize;
        let cut = |slices: usize| {
            let fits = cols.is_multiple_of(slices * step);
            let slice = cols / slices;
            let (vectors, blocks) = if integers {
                (slice / 8, slice / 32)
            } else {
                (slice / 4, 0)
            };
            let vectors = vectors.max(slots);
            // The moments of a norm and the like.
            let rest = threads as usize * 4 + 64;
            let bytes = vectors * 16 + blocks * 12 + partials * 4 + rest;
            (fits && bytes <= limits.workgroup_bytes as usize)
                .then_some((slices, slice, vectors, blocks, bytes))
        };
        // As few slices as were asked for, or as many more as make x fit.
        let asked = shape.slices.clamp(1, 16) as usize;
        let (slices, slice, vectors, blocks, bytes) =
            (asked..=16).chain((1..asked).rev()).find_map(cut)?;
        let mut constants: Constants = vec![
            ("WORKGROUP", f64::from(threads)),
            ("ROWS", f64::from(rows)),
            ("UNROLL", f64::from(two(shape.unroll, 1, 4 / rows))),
            ("SPLIT", f64::from(split)),
            ("UNITS", (cols / unit) as f64),
            ("SLICE", (slice / unit) as f64),
            ("X_VECTORS", vectors as f64),
            ("PARTIALS", partials as f64),
        ];
        if integers {
            constants.push(("X_BLOCKS", blocks as f64));
        }
        constants.extend(layout.constants());
        Some(Stream {
            threads,
            block_rows: (threads / lanes.max / split * rows) as usize,
            workgroups: match shape.workgroups {
                0 => limits.workgroups as usize,
                n => n as usize,
            },
            slices,
            bytes,
            constants,
        })
    }

    /// The pipeline of one of the kernels of a single token.
    pub(crate) fn stream_pipeline(
        &self,
        kernel: &str,
        weight: &GpuMatrix,
        last_axis: &str,
        constants: &Constants,
    ) -> Result<Arc<Pipeline>> {
        self.pipeline(&stream_kernel(kernel, weight, last_axis), constants)
    }

    /// Whether there is a variant of `kernel` for the format of `weight`, whose buffers the adapter can bind.
    pub(crate) fn has_stream_kernel(
        &self,
        kernel: &str,
        weight: &GpuMatrix,
        last_axis: &str,
    ) -> bool {
        let shader = shaders::find(&stream_kernel(kernel, weight, last_axis));
        shader.is_ok_and(|shader| self.binds(shader))
    }

    /// Whether the adapter binds as many storage buffers as `shader` has.
    pub(super) fn binds(&self, shader: &Shader) -> bool {
        let storage = shader.bindings.iter();
        let storage = storage.filter(|b| b.access != Access::Uniform).count();
        storage <= self.gpu().capabilities().limits.storage_buffers as usize
    }
}

/// The variant of `kernel` for the format of `weight`.
pub(super) fn stream_kernel(kernel: &str, weight: &GpuMatrix, last_axis: &str) -> String {
    let layout = weight.layout();
    let codes = if layout.codes_are_integers() {
        "integer"
    } else {
        "float"
    };
    format!("{kernel}/{}/{codes}/{last_axis}", layout.shader())
}

/// x as the kernels of a single token meet integer codes (`wgsl/stream/integer.wgsl`): each block of 32 elements rounded
/// to 16 bits, 32,639 steps of its largest element.
///
/// # Errors
/// [`Error::Shape`] when x is no whole number of blocks.
pub fn round_to_16_bits(x: &mut [f32]) -> Result<()> {
    const STEPS: f32 = 32_639.0;
    let (blocks, rest) = x.as_chunks_mut::<32>();
    if !rest.is_empty() {
        let elements = blocks.len() * 32 + rest.len();
        return Err(Error::shape(
            "rounding",
            format!("{elements} elements are no whole number of blocks of 32"),
        ));
    }
    for block in blocks {
        let largest = block.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        let inverse = if largest > 1e-30 {
            STEPS / largest
        } else {
            0.0
        };
        let scale = largest / STEPS;
        for x in block {
            *x = (*x * inverse).round_ties_even() * scale;
        }
    }
    Ok(())
}
