//! x in 16 bits.

use super::instructions::{BLOCK, Integers, PAIRS, STEP, STEPS, SUMS};
use crate::simd::vectors::Work;
use bytemuck::Zeroable;

/// The largest magnitude of a rounded x: its halves are signed bytes then.
const LARGEST: f32 = 32_639.0;

/// From here on sums might leave f32.
const TOO_LARGE: f32 = 18_446_744_073_709_551_616.0;

/// The exponent, as f32 has it, of the smallest step.
const SMALLEST: u32 = 27;

/// The bits of the largest magnitude; those of what is no number are larger than any other's.
#[inline(always)]
fn largest(x: &[f32]) -> u32 {
    x.iter()
        .fold(0, |most, x| most.max(x.to_bits() & 0x7fff_ffff))
}

/// The power of two that x of a block is counted in; none where one is no number, or as large as [`TOO_LARGE`].
#[inline(always)]
fn step(x: &[f32; BLOCK]) -> Option<f32> {
    let bits = largest(x);
    if bits >= TOO_LARGE.to_bits() {
        return None;
    }
    // 2¹⁴ to 2¹⁵ of these are the largest x.
    let exponent = (bits >> 23).saturating_sub(14).clamp(SMALLEST, 252);
    let step = f32::from_bits(exponent << 23);
    let fits = f32::from_bits(bits) <= LARGEST * step;
    Some(if fits { step } else { 2.0 * step })
}

/// x in whole steps, to the nearest.
#[inline(always)]
fn count(x: f32, inverse: f32) -> i16 {
    /// Added to a number it rounds it to an integer, which the sum's last bits are then.
    const ROUND: f32 = 12_582_912.0;
    #[expect(clippy::cast_possible_truncation, reason = "the lower bits are meant")]
    let count = (x * inverse + ROUND).to_bits() as i16;
    count
}

/// The sums of each of `groups` groups, in steps of `step`, and zeros.
#[inline(always)]
fn sums(counts: &[i16; BLOCK], groups: usize, step: f32) -> [f32; SUMS] {
    let mut sums = [0.0; SUMS];
    let columns = BLOCK.checked_div(groups).unwrap_or(BLOCK);
    for (sum, counts) in sums[..groups].iter_mut().zip(counts.chunks_exact(columns)) {
        let total: i32 = counts.iter().map(|x| i32::from(*x)).sum();
        *sum = total as f32 * step;
    }
    sums
}

/// A block of x in halves, as one token meets codes.
#[derive(Clone, Copy, Zeroable)]
#[repr(C, align(64))]
pub(super) struct Halves {
    /// `256 · high + low` is x in steps.
    pub(super) high: [[i8; STEP]; STEPS],
    pub(super) low: [[i8; STEP]; STEPS],
    /// Sums of two columns, times what codes are counted from.
    pub(super) high_pairs: [[i16; PAIRS]; STEPS],
    pub(super) low_pairs: [[i16; PAIRS]; STEPS],
    /// Sums of x in each group that has a minimum.
    pub(super) sums: [f32; SUMS],
    /// A step.
    pub(super) scale: f32,
}

/// A block of x as many tokens meet codes times scales: of each step the even columns, then the odd ones.
#[derive(Clone, Copy, Zeroable)]
#[repr(C, align(64))]
pub(super) struct Wholes {
    pub(super) pairs: [[[i16; PAIRS]; 2]; STEPS],
    /// As those of [`Halves`].
    pub(super) sums: [f32; SUMS],
    pub(super) scale: f32,
}

/// What x becomes.
pub(super) trait Rounded: Copy + Send + Sync + Zeroable {
    /// A block in so many steps of `step`, for codes that are counted from `centre` in blocks of `groups` minima.
    fn new(counts: &[i16; BLOCK], step: f32, centre: i16, groups: usize) -> Self;
}

#[inline(always)]
fn counts(x: &[f32; BLOCK], step: f32) -> [i16; BLOCK] {
    let inverse = 1.0 / step;
    let mut counts = [0; BLOCK];
    for (count_, x) in counts.iter_mut().zip(x) {
        *count_ = count(*x, inverse);
    }
    counts
}

impl Rounded for Halves {
    #[inline(always)]
    fn new(counts: &[i16; BLOCK], step: f32, centre: i16, groups: usize) -> Self {
        let mut halves = Self::zeroed();
        halves.scale = step;
        halves.sums = sums(counts, groups, step);
        let high = halves.high.as_flattened_mut();
        let low = halves.low.as_flattened_mut();
        for ((high, low), x) in high.iter_mut().zip(low.iter_mut()).zip(counts) {
            #[expect(clippy::cast_possible_truncation, reason = "halves")]
            {
                *low = *x as i8;
                *high = ((x - i16::from(*low)) >> 8) as i8;
            }
        }
        if centre != 0 {
            let high_pairs = halves.high_pairs.as_flattened_mut();
            let low_pairs = halves.low_pairs.as_flattened_mut();
            for (pairs, half) in [(high_pairs, &*high), (low_pairs, &*low)] {
                for (sum, pair) in pairs.iter_mut().zip(half.as_chunks::<2>().0) {
                    *sum = centre * (i16::from(pair[0]) + i16::from(pair[1]));
                }
            }
        }
        halves
    }
}

impl Rounded for Wholes {
    #[inline(always)]
    fn new(counts: &[i16; BLOCK], step: f32, _: i16, groups: usize) -> Self {
        let mut wholes = Self::zeroed();
        wholes.scale = step;
        wholes.sums = sums(counts, groups, step);
        for (pairs, counts) in wholes.pairs.iter_mut().zip(counts.as_chunks::<STEP>().0) {
            for (i, pair) in counts.as_chunks::<2>().0.iter().enumerate() {
                pairs[0][i] = pair[0];
                pairs[1][i] = pair[1];
            }
        }
        wholes
    }
}

/// Rounds every block of `x` into its place; says in `rounded` whether every one can be.
pub(super) struct Round<'a, R> {
    pub(super) x: &'a [f32],
    pub(super) centre: u8,
    pub(super) groups: usize,
    pub(super) out: &'a mut [R],
    pub(super) rounded: &'a mut bool,
}

impl<V: Integers, R: Rounded> Work<V> for Round<'_, R> {
    #[inline(always)]
    fn run(self, _: V) {
        let blocks = self.x.as_chunks::<BLOCK>().0;
        for (x, out) in blocks.iter().zip(self.out) {
            let Some(step) = step(x) else {
                return;
            };
            *out = R::new(&counts(x, step), step, i16::from(self.centre), self.groups);
        }
        *self.rounded = true;
    }
}
