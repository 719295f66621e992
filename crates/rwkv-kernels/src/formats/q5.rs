//! ggml's `Q5_0` and `Q5_1`: as `Q4_0` and `Q4_1`, with a fifth bit: 4 bytes between the scales and the low bits, bit i
//! of them that of element i.

use super::{
    WeightFormat, each_block,
    grid::Integers,
    half_at, q4,
    scales::{with_scales, with_scales_and_offsets},
    search::{codes, half_bytes},
    tail,
};

pub(super) struct Q5_0;
pub(super) struct Q5_1;

/// Where the search puts the largest element.
const SHARES: [f32; 6] = [0.93, 0.97, 0.99, 1.01, 1.03, 1.06];

/// The bits of 4 bytes, each as bit 4 of a byte.
fn spread(bits: [u8; 4]) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (bits, bytes) in bits.into_iter().zip(bytes.as_chunks_mut::<8>().0) {
        // Bit i of each copy is kept in byte i; then every byte that is not zero carries into its own bit 7.
        let kept = (u64::from(bits) * 0x0101_0101_0101_0101) & 0x8040_2010_0804_0201;
        let carried = kept + 0x7f7f_7f7f_7f7f_7f7f;
        *bytes = (carried >> 3 & 0x1010_1010_1010_1010).to_le_bytes();
    }
    bytes
}

/// Expands 4 bytes of high bits and 16 bytes of low ones, with `value` of each code.
fn expand(codes: &[u8; 20], values: &mut [f32; 32], value: impl Fn(u8) -> f32) {
    let [a, b, c, d, low @ ..] = codes;
    let high = spread([*a, *b, *c, *d]);
    let (high_first, high_last) = high.split_at(16);
    let (first, last) = values.split_at_mut(16);
    for ((low, high), x) in low.iter().zip(high_first).zip(first) {
        *x = value(low & 0xf | high);
    }
    for ((low, high), x) in low.iter().zip(high_last).zip(last) {
        *x = value(low >> 4 | high);
    }
}

/// Packs codes as [`expand`] reads them.
fn pack(codes: &[u8; 32], bytes: &mut [u8]) {
    let high = codes
        .iter()
        .rev()
        .fold(0u32, |high, q| high << 1 | u32::from(q >> 4 & 1));
    bytes[..4].copy_from_slice(&high.to_le_bytes());
    q4::pack(codes, &mut bytes[4..]);
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
            expand(tail(block), values, |q| scale * (f32::from(q) - 16.0));
        });
    }

    fn quantize(&self, values: &[f32], blocks: &mut [u8]) {
        let grid = Integers(-16.0, 15.0);
        let search = (&grid, SHARES.as_slice());
        with_scales::<32>(values, blocks, 22, search, |values, scale, block| {
            let mut q = [0; 32];
            codes(values, grid, scale, 0.0, &mut q);
            block[..2].copy_from_slice(&half_bytes(scale));
            pack(&q.map(|q| q.wrapping_add(16)), &mut block[2..]);
        });
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
            expand(tail(block), values, |q| scale * f32::from(q) + minimum);
        });
    }

    fn quantize(&self, values: &[f32], blocks: &mut [u8]) {
        with_scales_and_offsets(
            values,
            blocks,
            31.0,
            |codes, scale, minimum, block: &mut [u8; 24]| {
                block[..2].copy_from_slice(&half_bytes(scale));
                block[2..4].copy_from_slice(&half_bytes(minimum));
                pack(codes, &mut block[4..]);
            },
        );
    }
}
