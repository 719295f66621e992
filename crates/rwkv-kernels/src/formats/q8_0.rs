//! ggml's `Q8_0`: blocks of 32 elements, `x = scale · q`, an f16 scale and then 32 signed bytes. Our `Int8` with blocks
//! of 32 is the same under another name.

use super::{Block, WeightFormat, int8};

pub(super) struct Q8_0;

impl WeightFormat for Q8_0 {
    fn name(&self) -> &'static str {
        "q8_0"
    }

    fn block(&self) -> usize {
        32
    }

    fn block_bytes(&self) -> usize {
        34
    }

    fn dequantize(&self, blocks: &[u8], out: &mut [f32]) {
        int8::of(Block::B32).dequantize(blocks, out);
    }

    fn quantize(&self, values: &[f32], blocks: &mut [u8]) {
        int8::of(Block::B32).quantize(values, blocks);
    }
}
