//! ggml's `Q4_0` and `Q4_1`: blocks of 32 codes of 4 bits, `x = scale · (q − 8)` and `x = scale · q + minimum`. An f16
//! scale, for `Q4_1` an f16 minimum, then 16 bytes: element i in the low half of byte i, element 16 + i in the high.

use super::{WeightFormat, each_block, half_at};

pub(super) struct Q4_0;
pub(super) struct Q4_1;

/// The codes of 16 bytes.
pub(super) fn nibbles(bytes: &[u8]) -> impl Iterator<Item = u8> {
    let low = bytes.iter().map(|b| b & 0xf);
    low.chain(bytes.iter().map(|b| b >> 4))
}

impl WeightFormat for Q4_0 {
    fn name(&self) -> &'static str {
        "q4_0"
    }

    fn block(&self) -> usize {
        32
    }

    fn block_bytes(&self) -> usize {
        18
    }

    fn dequantize(&self, blocks: &[u8], out: &mut [f32]) {
        each_block(blocks, out, |block: &[u8; 18], values: &mut [f32; 32]| {
            let scale = half_at(block, 0);
            for (q, x) in nibbles(&block[2..]).zip(values) {
                *x = scale * (f32::from(q) - 8.0);
            }
        });
    }

    fn quantize(&self, values: &[f32], blocks: &mut [u8]) {
        let _ = (values, blocks);
        unimplemented!()
    }
}

impl WeightFormat for Q4_1 {
    fn name(&self) -> &'static str {
        "q4_1"
    }

    fn block(&self) -> usize {
        32
    }

    fn block_bytes(&self) -> usize {
        20
    }

    fn dequantize(&self, blocks: &[u8], out: &mut [f32]) {
        each_block(blocks, out, |block: &[u8; 20], values: &mut [f32; 32]| {
            let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
            for (q, x) in nibbles(&block[4..]).zip(values) {
                *x = scale * f32::from(q) + minimum;
            }
        });
    }

    fn quantize(&self, values: &[f32], blocks: &mut [u8]) {
        let _ = (values, blocks);
        unimplemented!()
    }
}
