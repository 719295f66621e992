//! ggml's `Q3_K`: blocks of 256 codes of 3 bits in 16 groups of 16, `x = d · (scale − 32) · (q − 4)`. 32 bytes of high
//! bits, 64 bytes of low bits as in `Q2_K`, 12 bytes of scales of 6 bits, d as f16. The high bit of element `32 s + i`
//! is bit s of byte i.

use super::{WeightFormat, each_block, half_at, nested, q2_k, search::half_bytes};

pub(super) struct Q3K;

/// The 16 scales of 12 bytes: low halves of the first 8 bytes, then their high halves; two more bits each in the last 4.
pub(crate) fn scales(packed: &[u8]) -> [u8; 16] {
    std::array::from_fn(|i| {
        let low = packed[i % 8] >> (i / 8 * 4) & 0xf;
        let high = packed[8 + i % 4] >> (i / 4 * 2) & 3;
        low | high << 4
    })
}

/// The inverse of [`scales`].
fn pack_scales(scales: [u8; 16]) -> [u8; 12] {
    let mut packed = [0; 12];
    for (i, scale) in scales.into_iter().enumerate() {
        packed[i % 8] |= (scale & 0xf) << (i / 8 * 4);
        packed[8 + i % 4] |= (scale >> 4) << (i / 4 * 2);
    }
    packed
}

/// Where the search puts the largest of 16 elements.
const SHARES: [f32; 7] = [0.75, 0.85, 0.93, 1.0, 1.07, 1.15, 1.25];

impl WeightFormat for Q3K {
    fn name(&self) -> &'static str {
        "q3_k"
    }

    fn block(&self) -> usize {
        256
    }

    fn block_bytes(&self) -> usize {
        110
    }

    fn dequantize(&self, blocks: &[u8], out: &mut [f32]) {
        each_block(blocks, out, |block: &[u8; 110], values: &mut [f32; 256]| {
            let d = half_at(block, 108);
            let groups = values.as_chunks_mut::<16>().0;
            for ((group, values), scale) in groups.iter_mut().enumerate().zip(scales(&block[96..]))
            {
                let scale = d * (f32::from(scale) - 32.0);
                let high = &block[group % 2 * 16..];
                let low = &block[32 + group / 8 * 32 + group % 2 * 16..];
                for ((low, high), x) in low.iter().zip(high).zip(values) {
                    let q = (low >> (group / 2 % 4 * 2) & 3) | (high >> (group / 2) & 1) << 2;
                    *x = scale * (f32::from(q) - 4.0);
                }
            }
        });
    }

    fn quantize(&self, values: &[f32], blocks: &mut [u8]) {
        nested::symmetric(
            values,
            blocks,
            [4.0, 32.0],
            &SHARES,
            |found: &nested::Nested<16>, block: &mut [u8; 110]| {
                let codes = found.codes.map(|q| q.wrapping_add(4));
                for (i, byte) in block[..32].iter_mut().enumerate() {
                    *byte = (0..8).fold(0, |byte, s| byte | (codes[32 * s + i] >> 2) << s);
                }
                block[32..96].copy_from_slice(&q2_k::pack(&codes));
                let scales = found.scales.map(|scale| scale.wrapping_add(32));
                block[96..108].copy_from_slice(&pack_scales(scales));
                block[108..].copy_from_slice(&half_bytes(found.d));
            },
        );
    }
}
