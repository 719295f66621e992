//! ggml's `Q4_K` and `Q5_K`: blocks of 256 codes of 4 or 5 bits in 8 groups of 32, `x = d · scale · q − dmin · minimum`.
//! d and dmin as f16, 12 bytes of scales and minima of 6 bits, for `Q5_K` 32 bytes of high bits, 128 bytes of low bits.
//! Low bits: each 32 bytes hold two groups, one in the low halves and one in the high. The high bit of element i of
//! group g is bit g of byte i.

use super::{WeightFormat, each_block, half_at, nested, search::half_bytes};

pub(super) struct Q4K;
pub(super) struct Q5K;

/// The scales and the minima of 12 bytes: those of groups 0 to 3 in the low 6 bits of bytes 0 to 3 and 4 to 7; of groups
/// 4 to 7, the low halves in bytes 8 to 11 and the upper two bits above the others.
pub(super) fn scales(packed: &[u8]) -> [(u8, u8); 8] {
    std::array::from_fn(|i| {
        if i < 4 {
            (packed[i] & 63, packed[i + 4] & 63)
        } else {
            let low = packed[i + 4];
            (
                low & 0xf | packed[i - 4] >> 6 << 4,
                low >> 4 | packed[i] >> 6 << 4,
            )
        }
    })
}

/// The inverse of [`scales`].
fn pack_scales(scales: [u8; 8], minima: [u8; 8]) -> [u8; 12] {
    std::array::from_fn(|i| match i {
        0..4 => scales[i] | scales[i + 4] >> 4 << 6,
        4..8 => minima[i - 4] | minima[i] >> 4 << 6,
        _ => scales[i - 4] & 0xf | minima[i - 4] << 4,
    })
}

/// The low 4 bits of codes.
fn pack(codes: &[u8; 256]) -> [u8; 128] {
    std::array::from_fn(|at| {
        let first = at / 32 * 64 + at % 32;
        codes[first] & 0xf | codes[first + 32] << 4
    })
}

impl WeightFormat for Q4K {
    fn name(&self) -> &'static str {
        "q4_k"
    }

    fn block(&self) -> usize {
        256
    }

    fn block_bytes(&self) -> usize {
        144
    }

    fn dequantize(&self, blocks: &[u8], out: &mut [f32]) {
        each_block(blocks, out, |block: &[u8; 144], values: &mut [f32; 256]| {
            let (d, dmin) = (half_at(block, 0), half_at(block, 2));
            let groups = values.as_chunks_mut::<32>().0;
            for ((group, values), (scale, minimum)) in
                groups.iter_mut().enumerate().zip(scales(&block[4..16]))
            {
                let (scale, minimum) = (d * f32::from(scale), dmin * f32::from(minimum));
                let low = &block[16 + group / 2 * 32..];
                for (low, x) in low.iter().zip(values) {
                    *x = scale * f32::from(low >> (group % 2 * 4) & 0xf) - minimum;
                }
            }
        });
    }

    fn quantize(&self, values: &[f32], blocks: &mut [u8]) {
        nested::with_minima(
            values,
            blocks,
            [15.0, 63.0],
            |found: &nested::Nested<8>, block: &mut [u8; 144]| {
                block[..2].copy_from_slice(&half_bytes(found.d));
                block[2..4].copy_from_slice(&half_bytes(found.dmin));
                block[4..16].copy_from_slice(&pack_scales(found.scales, found.minima));
                block[16..].copy_from_slice(&pack(&found.codes));
            },
        );
    }
}

impl WeightFormat for Q5K {
    fn name(&self) -> &'static str {
        "q5_k"
    }

    fn block(&self) -> usize {
        256
    }

    fn block_bytes(&self) -> usize {
        176
    }

    fn dequantize(&self, blocks: &[u8], out: &mut [f32]) {
        each_block(blocks, out, |block: &[u8; 176], values: &mut [f32; 256]| {
            let (d, dmin) = (half_at(block, 0), half_at(block, 2));
            let groups = values.as_chunks_mut::<32>().0;
            for ((group, values), (scale, minimum)) in
                groups.iter_mut().enumerate().zip(scales(&block[4..16]))
            {
                let (scale, minimum) = (d * f32::from(scale), dmin * f32::from(minimum));
                let (high, low) = (&block[16..48], &block[48 + group / 2 * 32..]);
                for ((low, high), x) in low.iter().zip(high).zip(values) {
                    let q = low >> (group % 2 * 4) & 0xf | (high >> group & 1) << 4;
                    *x = scale * f32::from(q) - minimum;
                }
            }
        });
    }

    fn quantize(&self, values: &[f32], blocks: &mut [u8]) {
        nested::with_minima(
            values,
            blocks,
            [31.0, 63.0],
            |found: &nested::Nested<8>, block: &mut [u8; 176]| {
                block[..2].copy_from_slice(&half_bytes(found.d));
                block[2..4].copy_from_slice(&half_bytes(found.dmin));
                block[4..16].copy_from_slice(&pack_scales(found.scales, found.minima));
                for (i, byte) in block[16..48].iter_mut().enumerate() {
                    *byte = (0..8).fold(0, |byte, g| byte | (found.codes[32 * g + i] >> 4) << g);
                }
                block[48..].copy_from_slice(&pack(&found.codes));
            },
        );
    }
}
