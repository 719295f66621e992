//! ggml's `Q5_0` and `Q5_1`: as `Q4_0` and `Q4_1`, with a fifth bit: 4 bytes between the scales and the low bits, bit i
//! of them that of element i.

use super::{WeightFormat, each_block, half_at, q4::nibbles};

pub(super) struct Q5_0;
pub(super) struct Q5_1;

/// The codes of 4 bytes of high bits and 16 bytes of low ones.
fn codes(bytes: &[u8]) -> impl Iterator<Item = u8> {
    let (high, low) = bytes.split_at(4);
    nibbles(low)
        .enumerate()
        .map(|(i, q)| q | (high[i / 8] >> (i % 8) & 1) << 4)
}

impl WeightFormat for Q5_0 {
    fn name(&self) -> &'static str {
        "q5_0"
    }

    fn block(&self) -> usize {
        32
    }

    fn block_bytes(&self) -> usize {
        22
    }

    fn dequantize(&self, blocks: &[u8], out: &mut [f32]) {
        each_block(blocks, out, |block: &[u8; 22], values: &mut [f32; 32]| {
            let scale = half_at(block, 0);
            for (q, x) in codes(&block[2..]).zip(values) {
                *x = scale * (f32::from(q) - 16.0);
            }
        });
    }

    fn quantize(&self, values: &[f32], blocks: &mut [u8]) {
        let _ = (values, blocks);
        unimplemented!()
    }
}

impl WeightFormat for Q5_1 {
    fn name(&self) -> &'static str {
        "q5_1"
    }

    fn block(&self) -> usize {
        32
    }

    fn block_bytes(&self) -> usize {
        24
    }

    fn dequantize(&self, blocks: &[u8], out: &mut [f32]) {
        each_block(blocks, out, |block: &[u8; 24], values: &mut [f32; 32]| {
            let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
            for (q, x) in codes(&block[4..]).zip(values) {
                *x = scale * f32::from(q) + minimum;
            }
        });
    }

    fn quantize(&self, values: &[f32], blocks: &mut [u8]) {
        let _ = (values, blocks);
        unimplemented!()
    }
}
