//! Codes and scales of the K formats. The layouts are those of `formats/`, one implementation a format there.

use super::instructions::{Head, Integers, SUMS, first_half};
use crate::{
    formats::tables,
    simd::{
        kernel::ROWS,
        packed::{bytes, group_scales},
    },
};

/// A format of blocks of 256 codes: `d · scale · (code − CENTRE) − dmin · minimum`, the scale and the minimum its
/// group's.
pub(super) trait Coded<V: Integers>: 'static {
    /// Bytes of a block.
    const BYTES: usize;

    /// What codes are counted from.
    const CENTRE: u8 = 0;

    /// Groups of a block that have minima.
    const MINIMA: usize = 0;

    /// What a block's steps share.
    type Shared: Copy;

    /// d and dmin of a block, which has [`BYTES`](Self::BYTES).
    fn factors(v: V, block: &[u8]) -> [f32; 2];

    /// The groups' minima, and zeros.
    fn minima(_: &[u8]) -> [u8; SUMS] {
        [0; SUMS]
    }

    fn shared(v: V, block: &[u8]) -> Self::Shared;

    /// The heads of one block of each of four rows, which meet an x in steps of `x_scale`.
    #[inline(always)]
    fn heads(v: V, blocks: [&[u8]; ROWS], x_scale: f32) -> [Head<V, Self::Shared>; ROWS] {
        [
            Self::head(v, blocks[0], x_scale),
            Self::head(v, blocks[1], x_scale),
            Self::head(v, blocks[2], x_scale),
            Self::head(v, blocks[3], x_scale),
        ]
    }

    /// The head of a block.
    #[inline(always)]
    fn head(v: V, block: &[u8], x_scale: f32) -> Head<V, Self::Shared> {
        let [d, dmin] = Self::factors(v, block);
        Head {
            shared: Self::shared(v, block),
            scale: v.splat(d * x_scale),
            minima: if Self::MINIMA == 0 {
                v.zeros()
            } else {
                v.lanes(&v.minima(&Self::minima(block), -dmin))
            },
        }
    }

    /// The codes of a step, of at most 6 bits, and each pair's scale.
    fn step(v: V, block: &[u8], shared: &Self::Shared, step: usize) -> [V::Codes; 2];
}

pub(super) struct Q2K;
pub(super) struct Q3K;
pub(super) struct Q4K;
pub(super) struct Q5K;
pub(super) struct Q6K;

/// Both halves of 16 bytes.
#[inline(always)]
fn eights(sixteen: [u8; 16]) -> [[u8; 8]; 2] {
    [*bytes(&sixteen, 0), *bytes(&sixteen, 8)]
}

impl<V: Integers> Coded<V> for Q4K {
    const BYTES: usize = 144;
    const MINIMA: usize = 8;
    type Shared = V::Scales;

    #[inline(always)]
    fn factors(v: V, block: &[u8]) -> [f32; 2] {
        [v.half(*bytes(block, 0)), v.half(*bytes(block, 2))]
    }

    #[inline(always)]
    fn minima(block: &[u8]) -> [u8; SUMS] {
        first_half(group_scales(bytes(block, 4)).1)
    }

    #[inline(always)]
    fn shared(v: V, block: &[u8]) -> V::Scales {
        v.scales(group_scales(bytes(block, 4)).0)
    }

    #[inline(always)]
    fn heads(v: V, blocks: [&[u8]; ROWS], x_scale: f32) -> [Head<V, V::Scales>; ROWS] {
        let head = |row: usize| bytes(blocks[row], 0);
        v.heads([head(0), head(1), head(2), head(3)], x_scale)
    }

    #[inline(always)]
    fn step(v: V, block: &[u8], scales: &V::Scales, step: usize) -> [V::Codes; 2] {
        let low = v.twice(bytes(block, 16 + 32 * step));
        let codes = v.and(v.shift(low, [0, -4]), 0xf);
        [codes, v.of_32(*scales, step)]
    }
}

impl<V: Integers> Coded<V> for Q5K {
    const BYTES: usize = 176;
    const MINIMA: usize = 8;
    type Shared = V::Scales;

    #[inline(always)]
    fn factors(v: V, block: &[u8]) -> [f32; 2] {
        <Q4K as Coded<V>>::factors(v, block)
    }

    #[inline(always)]
    fn minima(block: &[u8]) -> [u8; SUMS] {
        <Q4K as Coded<V>>::minima(block)
    }

    #[inline(always)]
    fn shared(v: V, block: &[u8]) -> V::Scales {
        <Q4K as Coded<V>>::shared(v, block)
    }

    #[inline(always)]
    fn heads(v: V, blocks: [&[u8]; ROWS], x_scale: f32) -> [Head<V, V::Scales>; ROWS] {
        <Q4K as Coded<V>>::heads(v, blocks, x_scale)
    }

    #[inline(always)]
    fn step(v: V, block: &[u8], scales: &V::Scales, step: usize) -> [V::Codes; 2] {
        let low = v.twice(bytes(block, 48 + 32 * step));
        let low = v.and(v.shift(low, [0, -4]), 0xf);
        let bit = 2 * signed(step);
        let high = v.shift(v.twice(bytes(block, 16)), [4 - bit, 3 - bit]);
        let codes = v.or(low, v.and(high, 0x10));
        [codes, v.of_32(*scales, step)]
    }
}

impl<V: Integers> Coded<V> for Q6K {
    const BYTES: usize = 210;
    const CENTRE: u8 = 32;
    type Shared = [V::Scales; 2];

    #[inline(always)]
    fn factors(v: V, block: &[u8]) -> [f32; 2] {
        [v.half(*bytes(block, 208)), 0.0]
    }

    #[inline(always)]
    fn shared(v: V, block: &[u8]) -> [V::Scales; 2] {
        let [first, last] = eights(*bytes(block, 192));
        [v.signed_scales(first), v.signed_scales(last)]
    }

    #[inline(always)]
    fn step(v: V, block: &[u8], scales: &[V::Scales; 2], step: usize) -> [V::Codes; 2] {
        let (half, upper) = (step / 2, 4 * signed(step % 2));
        let low = v.wide(bytes(block, 64 * half));
        let low = v.and(v.shift(low, [-upper; 2]), 0xf);
        let high = v.twice(bytes(block, 128 + 32 * half));
        let high = v.and(v.shift(high, [4 - upper, 2 - upper]), 0x30);
        [v.or(low, high), v.of_16(scales[half], step % 2)]
    }
}

impl<V: Integers> Coded<V> for Q2K {
    const BYTES: usize = 84;
    const MINIMA: usize = 16;
    type Shared = [V::Scales; 2];

    #[inline(always)]
    fn factors(v: V, block: &[u8]) -> [f32; 2] {
        [v.half(*bytes(block, 80)), v.half(*bytes(block, 82))]
    }

    #[inline(always)]
    fn minima(block: &[u8]) -> [u8; SUMS] {
        nibbles(u128::from_le_bytes(*bytes(block, 0)) >> 4)
    }

    #[inline(always)]
    fn shared(v: V, block: &[u8]) -> [V::Scales; 2] {
        let [first, last] = eights(nibbles(u128::from_le_bytes(*bytes(block, 0))));
        [v.scales(first), v.scales(last)]
    }

    #[inline(always)]
    fn step(v: V, block: &[u8], scales: &[V::Scales; 2], step: usize) -> [V::Codes; 2] {
        let (half, bit) = (step / 2, 4 * signed(step % 2));
        let codes = v.twice(bytes(block, 16 + 32 * half));
        let codes = v.and(v.shift(codes, [-bit, -bit - 2]), 3);
        [codes, v.of_16(scales[half], step % 2)]
    }
}

impl<V: Integers> Coded<V> for Q3K {
    const BYTES: usize = 110;
    const CENTRE: u8 = 4;
    type Shared = [V::Scales; 2];

    #[inline(always)]
    fn factors(v: V, block: &[u8]) -> [f32; 2] {
        [v.half(*bytes(block, 108)), 0.0]
    }

    #[inline(always)]
    fn shared(v: V, block: &[u8]) -> [V::Scales; 2] {
        let scales = tables::q3_k_scales(bytes::<12>(block, 96));
        let [first, last] = eights(scales.map(|scale| scale.wrapping_sub(32)));
        [v.signed_scales(first), v.signed_scales(last)]
    }

    #[inline(always)]
    fn step(v: V, block: &[u8], scales: &[V::Scales; 2], step: usize) -> [V::Codes; 2] {
        let (half, bit) = (step / 2, 4 * signed(step % 2));
        let low = v.twice(bytes(block, 32 + 32 * half));
        let low = v.and(v.shift(low, [-bit, -bit - 2]), 3);
        let bit = 2 * signed(step);
        let high = v.shift(v.twice(bytes(block, 0)), [2 - bit, 1 - bit]);
        let codes = v.or(low, v.and(high, 4));
        [codes, v.of_16(scales[half], step % 2)]
    }
}

/// The low halves of 16 bytes.
#[inline(always)]
fn nibbles(sixteen: u128) -> [u8; 16] {
    (sixteen & 0x0f0f_0f0f_0f0f_0f0f_0f0f_0f0f_0f0f_0f0f).to_le_bytes()
}

#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "below 4"
)]
fn signed(step: usize) -> i32 {
    step as i32
}
