//! ggml's `Q8_0`: blocks of 32 elements, `x = scale · q`, an f16 scale and then 32 signed bytes.

use super::WeightFormat;
use half::f16;

const BLOCK: usize = 32;
const BLOCK_BYTES: usize = 34;

pub(super) struct Q8_0;

impl WeightFormat for Q8_0 {
    fn name(&self) -> &'static str {
        "q8_0"
    }

    fn block(&self) -> usize {
        BLOCK
    }

    fn block_bytes(&self) -> usize {
        BLOCK_BYTES
    }

    fn dequantize(&self, blocks: &[u8], out: &mut [f32]) {
        for (block, values) in blocks
            .as_chunks::<BLOCK_BYTES>()
            .0
            .iter()
            .zip(out.as_chunks_mut::<BLOCK>().0)
        {
            let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
            for (q, x) in block[2..].iter().zip(values) {
                *x = scale * f32::from(q.cast_signed());
            }
        }
    }

    fn quantize(&self, values: &[f32], blocks: &mut [u8]) {
        for (values, block) in values
            .as_chunks::<BLOCK>()
            .0
            .iter()
            .zip(blocks.as_chunks_mut::<BLOCK_BYTES>().0)
        {
            let largest = values.iter().fold(0.0f32, |m, x| m.max(x.abs()));
            let scale = largest / 127.0;
            let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
            block[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
            for (x, q) in values.iter().zip(&mut block[2..]) {
                // A float-to-integer cast saturates, and the quotient is within ±127 anyway.
                #[allow(clippy::cast_possible_truncation, reason = "rounded into -127..=127")]
                let rounded = (x * inverse).round() as i8;
                *q = rounded.cast_unsigned();
            }
        }
    }
}
