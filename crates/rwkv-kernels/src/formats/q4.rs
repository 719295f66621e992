//! ggml's `Q4_0` and `Q4_1`: blocks of 32 codes of 4 bits, `x = scale · (q − 8)` and `x = scale · q + minimum`. An f16
//! scale, for `Q4_1` an f16 minimum, then 16 bytes: element i in the low half of byte i, element 16 + i in the high.

use super::{
    WeightFormat, each_block,
    grid::Integers,
    half_at,
    scales::{with_scales, with_scales_and_offsets},
    search::{codes, half_bytes},
    tail,
};

pub(super) struct Q4_0;
pub(super) struct Q4_1;

/// Where the search puts the largest of 32 elements in a grid of 16 numbers.
pub(super) const SHARES: [f32; 7] = [0.86, 0.92, 0.97, 1.0, 1.04, 1.1, 1.18];

/// Expands 16 bytes of codes, the low halves first, with `value` of each.
pub(super) fn expand(codes: &[u8; 16], values: &mut [f32; 32], value: impl Fn(u8) -> f32) {
    let (first, last) = values.split_at_mut(16);
    for ((code, first), last) in codes.iter().zip(first).zip(last) {
        (*first, *last) = (value(code & 0xf), value(code >> 4));
    }
}

/// Packs the low 4 bits of codes as [`expand`] reads them.
pub(super) fn pack(codes: &[u8; 32], bytes: &mut [u8]) {
    for (i, byte) in bytes.iter_mut().enumerate().take(16) {
        *byte = codes[i] & 0xf | codes[16 + i] << 4;
    }
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
            expand(tail(block), values, |q| scale * (f32::from(q) - 8.0));
        });
    }

    fn quantize(&self, values: &[f32], blocks: &mut [u8]) {
        let grid = Integers(-8.0, 7.0);
        let search = (&grid, SHARES.as_slice());
        with_scales::<32>(values, blocks, 18, search, |values, scale, block| {
            let mut q = [0; 32];
            codes(values, grid, scale, 0.0, &mut q);
            block[..2].copy_from_slice(&half_bytes(scale));
            pack(&q.map(|q| q.wrapping_add(8)), &mut block[2..]);
        });
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
            expand(tail(block), values, |q| scale * f32::from(q) + minimum);
        });
    }

    fn quantize(&self, values: &[f32], blocks: &mut [u8]) {
        with_scales_and_offsets(
            values,
            blocks,
            15.0,
            |codes, scale, minimum, block: &mut [u8; 20]| {
                block[..2].copy_from_slice(&half_bytes(scale));
                block[2..4].copy_from_slice(&half_bytes(minimum));
                pack(codes, &mut block[4..]);
            },
        );
    }
}
