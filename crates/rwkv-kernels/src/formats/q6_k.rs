//! ggml's `Q6_K`: blocks of 256 codes of 6 bits in 16 groups of 16, `x = d · scale · (q − 32)`. 128 bytes of low bits, 64
//! bytes of high ones, 16 signed scales, d as f16. Each 64 bytes of low bits hold 128 elements: element `32 s + i` in
//! byte `i + 32 (s mod 2)`, in its low half for s < 2; each 32 bytes of high bits hold them in bits 2 s of byte i.

use super::{WeightFormat, each_block, half_at, nested, search::half_bytes};

pub(super) struct Q6K;

/// Where the search puts the largest of 16 elements.
const SHARES: [f32; 6] = [0.93, 0.96, 0.98, 1.0, 1.01, 1.02];

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
        nested::symmetric(
            values,
            blocks,
            [32.0, 128.0],
            &SHARES,
            |found: &nested::Nested<16>, block: &mut [u8; 210]| {
                let codes = found.codes.map(|q| q.wrapping_add(32));
                for (at, byte) in block[..128].iter_mut().enumerate() {
                    let first = at / 64 * 128 + at % 64;
                    *byte = codes[first] & 0xf | codes[first + 64] << 4;
                }
                for (at, byte) in block[128..192].iter_mut().enumerate() {
                    let first = at / 32 * 128 + at % 32;
                    *byte =
                        (0..4).fold(0, |byte, s| byte | (codes[first + 32 * s] >> 4) << (2 * s));
                }
                block[192..208].copy_from_slice(&found.scales);
                block[208..].copy_from_slice(&half_bytes(found.d));
            },
        );
    }
}
