//! ggml's `Q6_K`: blocks of 256 codes of 6 bits in 16 groups of 16, `x = d · scale · (q − 32)`. 128 bytes of low bits, 64
//! bytes of high ones, 16 signed scales, d as f16. Each 64 bytes of low bits hold 128 elements: element `32 s + i` in
//! byte `i + 32 (s mod 2)`, in its low half for s < 2; each 32 bytes of high bits hold them in bits 2 s of byte i.

use super::{WeightFormat, each_block, half_at};

pub(super) struct Q6K;

impl WeightFormat for Q6K {
    fn name(&self) -> &'static str {
        "q6_k"
    }

    fn block(&self) -> usize {
        256
    }

    fn block_bytes(&self) -> usize {
        210
    }

    fn dequantize(&self, blocks: &[u8], out: &mut [f32]) {
        each_block(blocks, out, |block: &[u8; 210], values: &mut [f32; 256]| {
            let d = half_at(block, 208);
            let groups = values.as_chunks_mut::<16>().0;
            for ((group, values), scale) in groups.iter_mut().enumerate().zip(&block[192..208]) {
                let scale = d * f32::from(scale.cast_signed());
                let (half, s) = (group / 8, group / 2 % 4);
                let low = &block[half * 64 + s % 2 * 32 + group % 2 * 16..];
                let high = &block[128 + half * 32 + group % 2 * 16..];
                for ((low, high), x) in low.iter().zip(high).zip(values) {
                    let q = low >> (s / 2 * 4) & 0xf | (high >> (s * 2) & 3) << 4;
                    *x = scale * (f32::from(q) - 32.0);
                }
            }
        });
    }

    fn quantize(&self, values: &[f32], blocks: &mut [u8]) {
        let _ = (values, blocks);
        unimplemented!()
    }
}
