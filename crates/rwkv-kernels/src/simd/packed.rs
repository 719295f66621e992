//! How packed columns expand in registers. The layouts are those of `formats/`, one implementation a format there.

#![allow(clippy::cast_possible_truncation, reason = "steps are fewer than 9")]

use super::{
    kernel::ROWS,
    vectors::{BLOCK, Vectors},
};
use crate::formats::tables;

/// A weight format whose rows expand in registers, a few blocks at a time.
pub(super) trait Packed<V: Vectors>: 'static {
    /// Bytes of a unit, the smallest run of whole [`BLOCK`]s that can be read on its own.
    const BYTES: usize;

    /// [`BLOCK`]s of a unit.
    const BLOCKS: usize;

    /// [`BLOCK`]s that [`values`](Self::values) expands at a time: 1 or 2.
    const STEP: usize;

    /// What a unit's blocks share.
    type Shared: Copy;

    /// What the blocks of `unit`, which has [`BYTES`](Self::BYTES), share.
    fn shared(v: V, unit: &[u8]) -> Self::Shared;

    /// As [`shared`](Self::shared), of one unit of each of four rows.
    #[inline(always)]
    fn shared4(v: V, units: [&[u8]; ROWS]) -> [Self::Shared; ROWS] {
        [
            Self::shared(v, units[0]),
            Self::shared(v, units[1]),
            Self::shared(v, units[2]),
            Self::shared(v, units[3]),
        ]
    }

    /// The given step's blocks; of a step of one, the second means nothing.
    fn values(v: V, unit: &[u8], shared: &Self::Shared, step: usize) -> [V::Values; 2];
}

/// The `N` bytes at `at`, which lie in the unit.
#[inline(always)]
pub(super) fn bytes<const N: usize>(unit: &[u8], at: usize) -> &[u8; N] {
    let found = unit.get(at..).and_then(|rest| rest.first_chunk());
    debug_assert!(found.is_some(), "a format reads past its unit");
    found.unwrap_or(&[0; N])
}

/// The scales at the start of four units.
#[inline(always)]
fn halves<V: Vectors>(v: V, units: [&[u8]; ROWS]) -> [f32; ROWS] {
    v.half4([
        *bytes(units[0], 0),
        *bytes(units[1], 0),
        *bytes(units[2], 0),
        *bytes(units[3], 0),
    ])
}

/// A block that is a step of its own.
#[inline(always)]
fn one<V: Copy>(values: V) -> [V; 2] {
    [values; 2]
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct Bf16;

impl<V: Vectors> Packed<V> for F32 {
    const BYTES: usize = 4 * BLOCK;
    const BLOCKS: usize = 1;
    const STEP: usize = 1;
    type Shared = ();

    #[inline(always)]
    fn shared(_: V, _: &[u8]) {}

    #[inline(always)]
    fn values(v: V, unit: &[u8], (): &(), _: usize) -> [V::Values; 2] {
        one(v.f32(bytes(unit, 0)))
    }
}

impl<V: Vectors> Packed<V> for F16 {
    const BYTES: usize = 2 * BLOCK;
    const BLOCKS: usize = 1;
    const STEP: usize = 1;
    type Shared = ();

    #[inline(always)]
    fn shared(_: V, _: &[u8]) {}

    #[inline(always)]
    fn values(v: V, unit: &[u8], (): &(), _: usize) -> [V::Values; 2] {
        one(v.f16(bytes(unit, 0)))
    }
}

impl<V: Vectors> Packed<V> for Bf16 {
    const BYTES: usize = 2 * BLOCK;
    const BLOCKS: usize = 1;
    const STEP: usize = 1;
    type Shared = ();

    #[inline(always)]
    fn shared(_: V, _: &[u8]) {}

    #[inline(always)]
    fn values(v: V, unit: &[u8], (): &(), _: usize) -> [V::Values; 2] {
        one(v.bf16(bytes(unit, 0)))
    }
}

pub(super) struct Q4_0;
pub(super) struct Q4_1;
pub(super) struct Q5_0;
pub(super) struct Q5_1;
pub(super) struct Iq4Nl;

impl<V: Vectors> Packed<V> for Q4_0 {
    const BYTES: usize = 18;
    const BLOCKS: usize = 1;
    const STEP: usize = 1;
    type Shared = f32;

    #[inline(always)]
    fn shared(v: V, unit: &[u8]) -> f32 {
        v.half(*bytes(unit, 0))
    }

    #[inline(always)]
    fn shared4(v: V, units: [&[u8]; ROWS]) -> [f32; ROWS] {
        halves(v, units)
    }

    #[inline(always)]
    fn values(v: V, unit: &[u8], scale: &f32, _: usize) -> [V::Values; 2] {
        one(v.halves_values(bytes(unit, 2), *scale, -8.0 * scale))
    }
}

impl<V: Vectors> Packed<V> for Q4_1 {
    const BYTES: usize = 20;
    const BLOCKS: usize = 1;
    const STEP: usize = 1;
    type Shared = (f32, f32);

    #[inline(always)]
    fn shared(v: V, unit: &[u8]) -> (f32, f32) {
        (v.half(*bytes(unit, 0)), v.half(*bytes(unit, 2)))
    }

    #[inline(always)]
    fn values(v: V, unit: &[u8], (scale, minimum): &(f32, f32), _: usize) -> [V::Values; 2] {
        one(v.halves_values(bytes(unit, 4), *scale, *minimum))
    }
}

impl<V: Vectors> Packed<V> for Q5_0 {
    const BYTES: usize = 22;
    const BLOCKS: usize = 1;
    const STEP: usize = 1;
    type Shared = f32;

    #[inline(always)]
    fn shared(v: V, unit: &[u8]) -> f32 {
        v.half(*bytes(unit, 0))
    }

    #[inline(always)]
    fn shared4(v: V, units: [&[u8]; ROWS]) -> [f32; ROWS] {
        halves(v, units)
    }

    #[inline(always)]
    fn values(v: V, unit: &[u8], scale: &f32, _: usize) -> [V::Values; 2] {
        let codes = v.or(v.halves(bytes(unit, 6)), v.fifth_bits(*bytes(unit, 2)));
        one(v.signed(v.minus(codes, 16), [*scale; 2]))
    }
}

impl<V: Vectors> Packed<V> for Q5_1 {
    const BYTES: usize = 24;
    const BLOCKS: usize = 1;
    const STEP: usize = 1;
    type Shared = (f32, f32);

    #[inline(always)]
    fn shared(v: V, unit: &[u8]) -> (f32, f32) {
        (v.half(*bytes(unit, 0)), v.half(*bytes(unit, 2)))
    }

    #[inline(always)]
    fn values(v: V, unit: &[u8], (scale, minimum): &(f32, f32), _: usize) -> [V::Values; 2] {
        let codes = v.or(v.halves(bytes(unit, 8)), v.fifth_bits(*bytes(unit, 4)));
        one(v.unsigned(codes, [*scale; 2], [*minimum; 2]))
    }
}

impl<V: Vectors> Packed<V> for Iq4Nl {
    const BYTES: usize = 18;
    const BLOCKS: usize = 1;
    const STEP: usize = 1;
    type Shared = f32;

    #[inline(always)]
    fn shared(v: V, unit: &[u8]) -> f32 {
        v.half(*bytes(unit, 0))
    }

    #[inline(always)]
    fn shared4(v: V, units: [&[u8]; ROWS]) -> [f32; ROWS] {
        halves(v, units)
    }

    #[inline(always)]
    fn values(v: V, unit: &[u8], scale: &f32, _: usize) -> [V::Values; 2] {
        one(v.lookup(v.halves(bytes(unit, 2)), &tables::IQ4_NL, *scale))
    }
}

/// `Int8` with `N` blocks of 32 a scale; with one it is `Q8_0`.
pub(super) struct Int8<const N: usize>;

impl<V: Vectors, const N: usize> Packed<V> for Int8<N> {
    const BYTES: usize = 2 + N * BLOCK;
    const BLOCKS: usize = N;
    const STEP: usize = 1;
    type Shared = f32;

    #[inline(always)]
    fn shared(v: V, unit: &[u8]) -> f32 {
        v.half(*bytes(unit, 0))
    }

    #[inline(always)]
    fn shared4(v: V, units: [&[u8]; ROWS]) -> [f32; ROWS] {
        halves(v, units)
    }

    #[inline(always)]
    fn values(v: V, unit: &[u8], scale: &f32, step: usize) -> [V::Values; 2] {
        one(v.signed(v.bytes(bytes(unit, 2 + step * BLOCK)), [*scale; 2]))
    }
}

/// `NF4` with `N` blocks of 32 a scale, or with `STUDENT` `SF4`.
pub(super) struct Codebook<const N: usize, const STUDENT: bool>;

impl<V: Vectors, const N: usize, const STUDENT: bool> Packed<V> for Codebook<N, STUDENT> {
    const BYTES: usize = 2 + N * BLOCK / 2;
    const BLOCKS: usize = N;
    const STEP: usize = 1;
    type Shared = f32;

    #[inline(always)]
    fn shared(v: V, unit: &[u8]) -> f32 {
        v.half(*bytes(unit, 0))
    }

    #[inline(always)]
    fn shared4(v: V, units: [&[u8]; ROWS]) -> [f32; ROWS] {
        halves(v, units)
    }

    #[inline(always)]
    fn values(v: V, unit: &[u8], scale: &f32, step: usize) -> [V::Values; 2] {
        let table = if STUDENT { &tables::SF4 } else { &tables::NF4 };
        let codes = v.pairs(bytes(unit, 2 + step * BLOCK / 2));
        one(v.lookup(codes, table, *scale))
    }
}

pub(super) struct Q2K;
pub(super) struct Q3K;
pub(super) struct Q4K;
pub(super) struct Q5K;
pub(super) struct Q6K;

/// The scales and the minima of 8 groups, as `formats/q4_k.rs` has them, four at a time.
#[inline(always)]
pub(super) fn group_scales(packed: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let a = u32::from_le_bytes(*bytes(packed, 0));
    let b = u32::from_le_bytes(*bytes(packed, 4));
    let c = u32::from_le_bytes(*bytes(packed, 8));
    let (six, four, two) = (0x3f3f_3f3f, 0x0f0f_0f0f, 0x0303_0303);
    let scales = c & four | (a >> 6 & two) << 4;
    let minima = c >> 4 & four | (b >> 6 & two) << 4;
    (eight(a & six, scales), eight(b & six, minima))
}

#[inline(always)]
fn eight(low: u32, high: u32) -> [u8; 8] {
    (u64::from(low) | u64::from(high) << 32).to_le_bytes()
}

/// The scales and what is added of 8 groups.
type Groups = ([f32; 8], [f32; 8]);

#[inline(always)]
fn groups<V: Vectors>(v: V, unit: &[u8]) -> Groups {
    let (scales, minima) = group_scales(bytes(unit, 4));
    (
        v.scales(scales, v.half(*bytes(unit, 0))),
        v.scales(minima, -v.half(*bytes(unit, 2))),
    )
}

impl<V: Vectors> Packed<V> for Q4K {
    const BYTES: usize = 144;
    const BLOCKS: usize = 8;
    const STEP: usize = 2;
    type Shared = Groups;

    #[inline(always)]
    fn shared(v: V, unit: &[u8]) -> Groups {
        groups(v, unit)
    }

    #[inline(always)]
    fn values(v: V, unit: &[u8], (scales, offsets): &Groups, step: usize) -> [V::Values; 2] {
        let group = 2 * step;
        v.nibbles(
            bytes(unit, 16 + 32 * step),
            [scales[group], scales[group + 1]],
            [offsets[group], offsets[group + 1]],
        )
    }
}

impl<V: Vectors> Packed<V> for Q5K {
    const BYTES: usize = 176;
    const BLOCKS: usize = 8;
    const STEP: usize = 2;
    type Shared = Groups;

    #[inline(always)]
    fn shared(v: V, unit: &[u8]) -> Groups {
        groups(v, unit)
    }

    #[inline(always)]
    fn values(v: V, unit: &[u8], (scales, offsets): &Groups, step: usize) -> [V::Values; 2] {
        let low = v.bytes(bytes(unit, 48 + 32 * step));
        // The step's two high bits, in bits 0 and 1.
        let high = v.field(v.bytes(bytes(unit, 16)), 2 * step as u32, 3);
        let first = v.or(v.field(low, 0, 0xf), v.up::<4>(v.field(high, 0, 1)));
        let last = v.or(v.field(low, 4, 0xf), v.up::<4>(v.field(high, 1, 1)));
        let group = 2 * step;
        [
            v.unsigned(first, [scales[group]; 2], [offsets[group]; 2]),
            v.unsigned(last, [scales[group + 1]; 2], [offsets[group + 1]; 2]),
        ]
    }
}

impl<V: Vectors> Packed<V> for Q6K {
    const BYTES: usize = 210;
    const BLOCKS: usize = 8;
    const STEP: usize = 2;
    /// The scales of 16 groups.
    type Shared = [[f32; 8]; 2];

    #[inline(always)]
    fn shared(v: V, unit: &[u8]) -> [[f32; 8]; 2] {
        let d = v.half(*bytes(unit, 208));
        [
            v.signed_scales(*bytes(unit, 192), d),
            v.signed_scales(*bytes(unit, 200), d),
        ]
    }

    /// Of the four blocks that lie in the same bytes, a step has two: those in the low halves, or in the high.
    #[inline(always)]
    fn values(v: V, unit: &[u8], scales: &[[f32; 8]; 2], step: usize) -> [V::Values; 2] {
        let (half, upper) = (step / 2, (step % 2) as u32);
        let high = v.field(v.bytes(bytes(unit, 128 + 32 * half)), 4 * upper, 0xf);
        let low = v.field(v.bytes(bytes(unit, 64 * half)), 4 * upper, 0xf);
        let next = v.field(v.bytes(bytes(unit, 64 * half + 32)), 4 * upper, 0xf);
        let first = v.or(low, v.up::<4>(v.field(high, 0, 3)));
        let last = v.or(next, v.up::<4>(v.field(high, 2, 3)));
        let scales = &scales[half];
        let at = 4 * (step % 2);
        [
            v.signed(v.minus(first, 32), [scales[at], scales[at + 1]]),
            v.signed(v.minus(last, 32), [scales[at + 2], scales[at + 3]]),
        ]
    }
}

impl<V: Vectors> Packed<V> for Q2K {
    const BYTES: usize = 84;
    const BLOCKS: usize = 8;
    const STEP: usize = 1;
    type Shared = (f32, f32);

    #[inline(always)]
    fn shared(v: V, unit: &[u8]) -> (f32, f32) {
        (v.half(*bytes(unit, 80)), v.half(*bytes(unit, 82)))
    }

    #[inline(always)]
    fn values(v: V, unit: &[u8], (d, dmin): &(f32, f32), step: usize) -> [V::Values; 2] {
        let low = v.bytes(bytes(unit, 16 + 32 * (step / 4)));
        let codes = v.field(low, 2 * (step % 4) as u32, 3);
        let [a, b]: [u8; 2] = *bytes(unit, 2 * step);
        let scale = [d * f32::from(a & 0xf), d * f32::from(b & 0xf)];
        let offset = [-dmin * f32::from(a >> 4), -dmin * f32::from(b >> 4)];
        one(v.unsigned(codes, scale, offset))
    }
}

impl<V: Vectors> Packed<V> for Q3K {
    const BYTES: usize = 110;
    const BLOCKS: usize = 8;
    const STEP: usize = 1;
    type Shared = (f32, [u8; 16]);

    #[inline(always)]
    fn shared(v: V, unit: &[u8]) -> (f32, [u8; 16]) {
        let scales = tables::q3_k_scales(bytes::<12>(unit, 96));
        (v.half(*bytes(unit, 108)), scales)
    }

    #[inline(always)]
    fn values(v: V, unit: &[u8], (d, scales): &(f32, [u8; 16]), step: usize) -> [V::Values; 2] {
        let low = v.bytes(bytes(unit, 32 + 32 * (step / 4)));
        let low = v.field(low, 2 * (step % 4) as u32, 3);
        let high = v.field(v.bytes(bytes(unit, 0)), step as u32, 1);
        let codes = v.or(low, v.up::<2>(high));
        let [a, b]: [u8; 2] = *bytes(scales, 2 * step);
        let scale = [d * (f32::from(a) - 32.0), d * (f32::from(b) - 32.0)];
        one(v.signed(v.minus(codes, 4), scale))
    }
}
