//! F32, F16 and BF16: one element a block, little endian.

use super::WeightFormat;
use half::{bf16, f16, slice::HalfFloatSliceExt};

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct Bf16;

impl WeightFormat for F32 {
    fn name(&self) -> &'static str {
        "f32"
    }

    fn block(&self) -> usize {
        1
    }

    fn block_bytes(&self) -> usize {
        4
    }

    fn dequantize(&self, blocks: &[u8], out: &mut [f32]) {
        for (bytes, x) in blocks.as_chunks::<4>().0.iter().zip(out) {
            *x = f32::from_le_bytes(*bytes);
        }
    }

    fn quantize(&self, values: &[f32], blocks: &mut [u8]) {
        for (x, bytes) in values.iter().zip(blocks.as_chunks_mut::<4>().0) {
            *bytes = x.to_le_bytes();
        }
    }
}

impl WeightFormat for F16 {
    fn name(&self) -> &'static str {
        "f16"
    }

    fn block(&self) -> usize {
        1
    }

    fn block_bytes(&self) -> usize {
        2
    }

    fn dequantize(&self, blocks: &[u8], out: &mut [f32]) {
        // Aligned little-endian memory converts with the processor's own instructions.
        if cfg!(target_endian = "little")
            && let Ok(halves) = bytemuck::try_cast_slice::<u8, f16>(blocks)
        {
            let n = halves.len().min(out.len());
            halves[..n].convert_to_f32_slice(&mut out[..n]);
            return;
        }
        for (bytes, x) in blocks.as_chunks::<2>().0.iter().zip(out) {
            *x = f16::from_le_bytes(*bytes).to_f32();
        }
    }

    fn quantize(&self, values: &[f32], blocks: &mut [u8]) {
        if cfg!(target_endian = "little")
            && let Ok(halves) = bytemuck::try_cast_slice_mut::<u8, f16>(blocks)
        {
            let n = halves.len().min(values.len());
            halves[..n].convert_from_f32_slice(&values[..n]);
            return;
        }
        for (x, bytes) in values.iter().zip(blocks.as_chunks_mut::<2>().0) {
            *bytes = f16::from_f32(*x).to_le_bytes();
        }
    }
}

impl WeightFormat for Bf16 {
    fn name(&self) -> &'static str {
        "bf16"
    }

    fn block(&self) -> usize {
        1
    }

    fn block_bytes(&self) -> usize {
        2
    }

    fn dequantize(&self, blocks: &[u8], out: &mut [f32]) {
        for (bytes, x) in blocks.as_chunks::<2>().0.iter().zip(out) {
            *x = bf16::from_le_bytes(*bytes).to_f32();
        }
    }

    fn quantize(&self, values: &[f32], blocks: &mut [u8]) {
        for (x, bytes) in values.iter().zip(blocks.as_chunks_mut::<2>().0) {
            *bytes = bf16::from_f32(*x).to_le_bytes();
        }
    }
}

/// The largest number of F16.
pub const F16_MAX: f32 = 65504.0;

/// The first number of `values` that F16 would make infinite.
pub fn outside_f16(values: &[f32]) -> Option<f32> {
    let outside = |x: &f32| x.is_finite() && x.abs() > F16_MAX;
    // Whether there is one is told without stopping, many at a time.
    let any = values.iter().fold(false, |any, x| any | outside(x));
    any.then(|| values.iter().copied().find(outside)).flatten()
}
