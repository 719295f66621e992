//! ggml's `Q2_K`: blocks of 256 codes of 2 bits in 16 groups of 16, `x = d · scale · q − dmin · minimum`. 16 bytes, the
//! scale of a group in the low half of its byte and the minimum in the high; 64 bytes of codes; d and dmin as f16.
//! Codes: each 32 bytes hold 128 elements, element `32 s + i` in bits 2 s of byte i.

use super::{WeightFormat, each_block, half_at, nested, search::half_bytes};

pub(super) struct Q2K;

/// The low 2 bits of codes, as `dequantize` reads them.
pub(super) fn pack(codes: &[u8; 256]) -> [u8; 64] {
    std::array::from_fn(|at| {
        let first = at / 32 * 128 + at % 32;
        (0..4).fold(0, |byte, s| byte | (codes[first + 32 * s] & 3) << (2 * s))
    })
}

impl WeightFormat for Q2K {
    fn name(&self) -> &'static str {
        "q2_k"
    }

    fn block(&self) -> usize {
        256
    }

    fn block_bytes(&self) -> usize {
        84
    }

    fn dequantize(&self, blocks: &[u8], out: &mut [f32]) {
        each_block(blocks, out, |block: &[u8; 84], values: &mut [f32; 256]| {
            let (d, dmin) = (half_at(block, 80), half_at(block, 82));
            let groups = values.as_chunks_mut::<16>().0;
            for ((group, values), scales) in groups.iter_mut().enumerate().zip(&block[..16]) {
                let (scale, minimum) = (d * f32::from(scales & 0xf), dmin * f32::from(scales >> 4));
                let shift = group / 2 % 4 * 2;
                let codes = &block[16 + group / 8 * 32 + group % 2 * 16..];
                for (q, x) in codes.iter().zip(values) {
                    *x = scale * f32::from(q >> shift & 3) - minimum;
                }
            }
        });
    }

    fn quantize(&self, values: &[f32], blocks: &mut [u8]) {
        nested::with_minima(
            values,
            blocks,
            [3.0, 15.0],
            |found: &nested::Nested<16>, block: &mut [u8; 84]| {
                for (byte, (scale, minimum)) in
                    block.iter_mut().zip(found.scales.iter().zip(found.minima))
                {
                    *byte = scale | minimum << 4;
                }
                block[16..80].copy_from_slice(&pack(&found.codes));
                block[80..82].copy_from_slice(&half_bytes(found.d));
                block[82..].copy_from_slice(&half_bytes(found.dmin));
            },
        );
    }
}
