//! Activations rounded to f16, as products with cooperative matrices take them: each row times a power of two, so that
//! no number passes f16's range.

use crate::{
    Error, Kernels, Result, View,
    kernels::u32_of,
    ops::{Function, SlicedSum},
};
use bytemuck::NoUninit;
use half::f16;
use rwkv_gpu::{Binding, Buffer, BufferKind, Dispatch, Gpu};

/// The exponent of the power of two that a row's elements are divided by: its largest finite number then is 2^14 or more
/// and below 2^15.
fn exponent_of(row: &[f32]) -> i32 {
    let finite = row.iter().map(|x| x.abs()).filter(|x| x.is_finite());
    let largest = finite.fold(0.0f32, f32::max);
    if largest == 0.0 {
        return 0;
    }
    let exponent = i32::try_from(largest.to_bits() >> 23).unwrap_or(0) - 127;
    // f32 holds no power of two for less.
    (exponent - 14).max(-100)
}

/// The twin: `row` in f16, and what its elements were divided by. Infinite numbers stay infinite, and what is no number
/// stays none. A finite element `x` of a row whose largest is `m` is off by at most `max(|x| 2^-11, m 2^-38)`.
pub fn half_row(row: &[f32]) -> (Vec<f16>, f32) {
    let power = |exponent: i32| f32::from_bits((exponent + 127).cast_unsigned() << 23);
    let exponent = exponent_of(row);
    let scale = power(-exponent);
    let halves = row.iter().map(|x| f16::from_f32(x * scale)).collect();
    (halves, power(exponent))
}

/// Rows of activations in f16 on the GPU, each with the exponent of its power of two: what [`Kernels::half_rows`]
/// writes.
#[derive(Clone, Debug)]
pub struct HalfRows {
    buffer: Buffer,
    offset: u64,
    rows: usize,
    width: usize,
}

impl HalfRows {
    /// Tokens of the largest tile, and columns of the deepest: products read whole tiles.
    const WHOLE_ROWS: usize = 128;
    const WHOLE_COLUMNS: usize = 128;

    /// Memory for `rows` rows of `width` elements; `name` names it in errors.
    ///
    /// # Errors
    /// [`Error::Gpu`] when it does not fit.
    pub fn new(gpu: &Gpu, name: &str, rows: usize, width: usize) -> Result<Self> {
        let buffer = gpu.buffer(BufferKind::Storage, name, Self::bytes(rows, width))?;
        Ok(Self::placed(buffer, 0, rows, width))
    }

    /// As [`new`](Self::new), in `buffer` from byte `offset` on, where there must be [`bytes`](Self::bytes); the offset is
    /// a multiple of the adapter's alignment.
    pub fn placed(buffer: Buffer, offset: u64, rows: usize, width: usize) -> Self {
        Self {
            buffer,
            offset,
            rows,
            width,
        }
    }

    /// As [`new`](Self::new) in a buffer of at least [`bytes`](Self::bytes).
    pub(crate) fn within(buffer: Buffer, rows: usize, width: usize) -> Self {
        Self::placed(buffer, 0, rows, width)
    }

    /// Elements from one row to the next: the width in whole steps, and 128 bytes that end with the exponent, so that rows
    /// begin where cache lines do, and not all of them in the same channel of memory.
    pub fn stride(width: usize) -> usize {
        width.next_multiple_of(Self::WHOLE_COLUMNS) + 64
    }

    /// Bytes of `rows` rows, in whole tiles.
    pub fn bytes(rows: usize, width: usize) -> u64 {
        let whole = rows.checked_next_multiple_of(Self::WHOLE_ROWS);
        let elements =
            (whole.unwrap_or(usize::MAX) as u64).saturating_mul(Self::stride(width) as u64);
        elements.saturating_mul(2)
    }

    /// Rows that are written.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The first byte in the buffer.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The buffer in which they lie.
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    pub(crate) fn binding(&self) -> Binding<'_> {
        self.blocks_binding(1)
    }

    /// Several of this shape, [`bytes`](Self::bytes) apart.
    pub(crate) fn blocks_binding(&self, count: usize) -> Binding<'_> {
        Binding {
            buffer: &self.buffer,
            offset: self.offset,
            size: Some(Self::bytes(self.rows, self.width) * count as u64),
        }
    }

    /// What stands for x in a product that reads these rows and no f32 ([`Kernels::coop_linear`]).
    pub fn stand_in(&self) -> View<'_> {
        View {
            buffer: &self.buffer,
            offset: self.offset,
            rows: self.rows,
            width: self.width,
        }
    }
}

/// Threads of `wgsl/half_rows.wgsl`, and units of four that each keeps at most.
const THREADS: usize = 256;
/// Threads for few rows.
const WIDE: usize = 1024;
const FEW_ROWS: usize = 256;
const MOST_KEPT: usize = 16;

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct Params {
    rows: u32,
    cols: u32,
    x_stride: u32,
    stride: u32,
    slices: u32,
    slice: u32,
    product_stride: u32,
}

impl Kernels {
    /// The dispatch that rounds `x` to f16 in `halves`: once for all products that share an input.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes do not fit, [`Error::Gpu`] when the adapter has no 16-bit floats or the kernel
    /// does not compile.
    pub fn half_rows(&self, x: &View<'_>, halves: &HalfRows) -> Result<Dispatch> {
        if (x.rows, x.width) != (halves.rows, halves.width) {
            let problem = format!(
                "{}×{} into {}×{}",
                x.rows, x.width, halves.rows, halves.width
            );
            return Err(Error::shape("rounding to f16", problem));
        }
        let rounded = Rounded {
            stride: View::stride(x.width),
            sum: None,
            constants: Vec::new(),
        };
        self.rounding(&rounded, &[x.binding(), halves.binding()], halves)
    }

    /// The dispatch that adds up a product's slices, applies `function`, and rounds that to f16 in `halves`: what the sum of
    /// the product and [`half_rows`](Self::half_rows) do one after the other.
    ///
    /// # Errors
    /// Those of [`half_rows`](Self::half_rows).
    pub fn half_rows_of_slices(
        &self,
        sum: &SlicedSum,
        function: Function,
        halves: &HalfRows,
    ) -> Result<Dispatch> {
        if sum.halves().rows() != halves.rows || sum.width() != halves.width {
            let problem = format!(
                "slices of {}×{} into {}×{}",
                sum.halves().rows(),
                sum.width(),
                halves.rows,
                halves.width
            );
            return Err(Error::shape("rounding to f16", problem));
        }
        let rounded = Rounded {
            stride: sum.pitch as usize * 4,
            sum: Some(sum),
            constants: vec![function.constant()],
        };
        let product = sum.halves().binding();
        self.rounding(
            &rounded,
            &[sum.binding(self)?, halves.binding(), product],
            halves,
        )
    }

    fn rounding(
        &self,
        of: &Rounded<'_>,
        bindings: &[Binding<'_>],
        halves: &HalfRows,
    ) -> Result<Dispatch> {
        let HalfRows { rows, width, .. } = *halves;
        let product_stride = of
            .sum
            .map_or(0, |sum| HalfRows::stride(sum.halves().width) / 4);
        let params = Params {
            rows: u32_of("rows", rows)?,
            cols: u32_of("columns", width)?,
            x_stride: u32_of("stride", of.stride / 4)?,
            stride: u32_of("stride", HalfRows::stride(width) / 4)?,
            slices: of.sum.map_or(0, |sum| sum.slices),
            slice: of.sum.map_or(0, |sum| sum.slice),
            product_stride: u32_of("stride", product_stride)?,
        };
        // A few rows leave most of a GPU idle: what counts is how often a thread waits.
        let most = self.gpu().capabilities().limits.workgroup_invocations as usize;
        let wide = rows <= FEW_ROWS && width >= 4 * WIDE && WIDE <= most;
        let threads = if wide { WIDE } else { THREADS };
        let kept = width.div_ceil(4 * threads).min(MOST_KEPT);
        let from = if of.sum.is_some() { "slices" } else { "row" };
        let mut constants = vec![("KEPT", kept as f64)];
        constants.extend(&of.constants);
        let pipeline = self.pipeline(&format!("half_rows/{threads}/{from}"), &constants)?;
        self.dispatch(pipeline, &params, bindings, rows)
    }
}

/// What is rounded: elements from one row to the next, a product in slices, and constants of its function.
struct Rounded<'a> {
    stride: usize,
    sum: Option<&'a SlicedSum>,
    constants: Vec<(&'static str, f64)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers() {
        #[track_caller]
        fn check(row: &[f32], halves: &[f32], scale: f32) {
            let (got, by) = half_row(row);
            let got: Vec<f32> = got.into_iter().map(f32::from).collect();
            assert_eq!(format!("{got:?}"), format!("{halves:?}"));
            assert_eq!(by.to_bits(), scale.to_bits());
        }
        let (no, infinite) = (f32::NAN, f32::INFINITY);
        check(&[], &[], 1.0);
        check(&[0.0, -0.0], &[0.0, -0.0], 1.0);
        check(&[1.0, -0.5], &[16384.0, -8192.0], 1.0 / 16384.0);
        check(&[1e6, 1.0], &[31248.0, 0.03125], 32.0);
        check(
            &[infinite, -infinite, no, 2.0],
            &[infinite, -infinite, no, 16384.0],
            1.0 / 8192.0,
        );
        check(&[f32::MAX], &[32768.0], 2f32.powi(113));
        check(&[2f32.powi(-90)], &[1024.0], 2f32.powi(-100));
        check(&[f32::from_bits(1)], &[0.0], 2f32.powi(-100));
    }
}
