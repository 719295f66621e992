//! The weighted least squares that every encoder's search for scales stands on.
//!
//! A block of values x is stood for by `offset + scale · q`, with each q on a [`Grid`]. For one scale and offset the
//! best codes are the nearest; for given codes the best scale and offset solve a linear system. The searches alternate
//! the two from several starts and keep what has the smallest error, measured with scales as their f16 will be read.
//!
//! Blocks are searched many at a time, each in a lane of vectors: no lane reads another, so that a block's bits depend
//! neither on its neighbours nor on the width of the vectors.
//!
//! Values that no format holds have a defined reading, see [`clean`].

#![allow(
    clippy::inline_always,
    reason = "with the instructions of whoever calls; that is how the compiler sees vectors"
)]

use super::{
    grid::{Grid, Integers, byte, within},
    lanes::{LANES, Lanes, add, keep, lanes},
};
use crate::simd::{Lookup, Search};
use half::f16;

/// Larger values are cut to this: no format reaches it, and its fourth power fits an f32.
const LARGEST: f32 = (1 << 29) as f32;

/// Smaller values become zero: the smallest step of any format, an f16 of 2⁻²⁴ times 0.066, is far larger.
const SMALLEST: f32 = 1e-12;

/// How much the squared error of an element counts: the one place to try another measure, such as more for large
/// elements.
///
/// All alike: on a model of 9 million parameters that was best. Divergence from the f16 model in nats a token, with
/// 1, |x| + root mean square (ggml's for Q4_K and Q5_K), and x²: Q2_K 0.205, 0.206, 0.246; Q3_K 0.0580, 0.0583,
/// 0.0667; ggml's own blocks 0.255 and 0.0644.
#[inline(always)]
fn importance(x: f32) -> f32 {
    let _ = x;
    1.0
}

/// What an encoder makes of `x`: NaN counts as zero, and infinities and values beyond every format's range as the
/// largest that the format holds.
#[inline(always)]
pub(super) fn clean(x: f32) -> f32 {
    let size = x.abs();
    // A comparison with NaN is false.
    let kept = if size > SMALLEST { x } else { 0.0 };
    if size > LARGEST {
        LARGEST.copysign(x)
    } else {
        kept
    }
}

/// 1 / x, or zero for zero.
#[inline(always)]
pub(super) fn inverse(x: f32) -> f32 {
    if x == 0.0 { 0.0 } else { 1.0 / x }
}

/// The nearest value that a finite f16 holds, as an f32; a value that is not zero does not become it. (The conversions
/// of `half` are calls; this is in the innermost searches.)
#[inline(always)]
pub(super) fn half(x: f32) -> f32 {
    const TINY: f32 = 1.0 / (1 << 24) as f32;
    let size = x.abs();
    // Subnormal: multiples of 2⁻²⁴, which is the last bit of 0.75.
    let small = (size + 0.75) - 0.75;
    let small = if size > 0.0 && small < TINY {
        TINY
    } else {
        small
    };
    let bits = size.to_bits();
    let even = bits >> 13 & 1;
    let large = f32::from_bits(bits.wrapping_add(0xfff + even) & !0x1fff);
    let large = if large < 65504.0 { large } else { 65504.0 };
    let near = if size < 1.0 / 16384.0 { small } else { large };
    near.copysign(x)
}

/// The bytes of a scale that [`half()`] rounded.
pub(super) fn half_bytes(x: f32) -> [u8; 2] {
    f16::from_f32(x).to_le_bytes()
}

/// Values that share a scale, of [`LANES`] groups: a row has an element of each. A whole number of [`PARTS`] rows.
#[derive(Clone, Copy)]
pub(super) struct Groups<'a>(pub(super) &'a [Lanes]);

/// Sums are added up in so many parts.
const PARTS: usize = 8;

/// Sums over groups for one scale and offset of each, with r the residual x − offset − scale · q.
#[derive(Clone, Copy)]
pub(super) struct Sums {
    /// Of importance.
    pub(super) weight: Lanes,
    pub(super) q: Lanes,
    pub(super) qq: Lanes,
    pub(super) r: Lanes,
    pub(super) rq: Lanes,
    /// The squared error.
    pub(super) rr: Lanes,
}

impl Groups<'_> {
    /// The lowest and the highest value.
    #[inline(always)]
    pub(super) fn ends(self) -> [Lanes; 2] {
        let mut low = [f32::INFINITY; LANES];
        let mut high = [f32::NEG_INFINITY; LANES];
        for x in self.0 {
            low = lanes(|i| if x[i] < low[i] { x[i] } else { low[i] });
            high = lanes(|i| if x[i] > high[i] { x[i] } else { high[i] });
        }
        [low, high]
    }

    /// The value that is farthest from zero.
    #[inline(always)]
    pub(super) fn extreme(self) -> Lanes {
        let [low, high] = self.ends();
        lanes(|i| if -low[i] > high[i] { low[i] } else { high[i] })
    }

    /// The sums with the nearest codes.
    #[inline(always)]
    pub(super) fn sums(
        self,
        v: impl Lookup,
        grid: &impl Grid,
        scale: &Lanes,
        offset: &Lanes,
    ) -> Sums {
        self.sum::<true>(v, grid, scale, offset)
    }

    /// The sums that a scale needs, without an offset: the others are zero.
    #[inline(always)]
    pub(super) fn sums_around_zero(self, v: impl Lookup, grid: &impl Grid, scale: &Lanes) -> Sums {
        self.sum::<false>(v, grid, scale, &[0.0; LANES])
    }

    #[inline(always)]
    fn sum<const OFFSET: bool>(
        self,
        v: impl Lookup,
        grid: &impl Grid,
        scale: &Lanes,
        offset: &Lanes,
    ) -> Sums {
        let mut sums = Sums::ZERO;
        v.apart(Pass::<_, OFFSET> {
            rows: self.0,
            grid,
            scale,
            offset,
            sums: &mut sums,
        });
        sums
    }
}

/// A pass over all values of groups.
struct Pass<'a, G, const OFFSET: bool> {
    rows: &'a [Lanes],
    grid: &'a G,
    scale: &'a Lanes,
    offset: &'a Lanes,
    sums: &'a mut Sums,
}

impl<G: Grid, const OFFSET: bool> Search for Pass<'_, G, OFFSET> {
    /// Every eighth row makes a sum of its own, and those are added in pairs: that order is part of what bits come out.
    #[inline(always)]
    fn run(self, v: impl Lookup) {
        let inverse = lanes(|i| inverse(self.scale[i]));
        let mut all = Sums::ZERO;
        for first in [0, 1] {
            let mut quarter = Sums::ZERO;
            for second in [0, 2] {
                let mut pair = Sums::ZERO;
                for third in [0, 4] {
                    pair.add(&self.part(v, first + second + third, &inverse));
                }
                quarter.add(&pair);
            }
            all.add(&quarter);
        }
        *self.sums = all;
    }
}

impl<G: Grid, const OFFSET: bool> Pass<'_, G, OFFSET> {
    /// The sums of every eighth row from `first` on: all that encoders do is here, almost.
    #[inline(always)]
    fn part(&self, v: impl Lookup, first: usize, inverse: &Lanes) -> Sums {
        let (scale, offset) = (self.scale, self.offset);
        let mut sums = Sums::ZERO;
        for rows in self.rows.as_chunks::<PARTS>().0 {
            let x = &rows[first];
            let shifted = lanes(|i| if OFFSET { x[i] - offset[i] } else { x[i] });
            let code = self.grid.nearest(v, &lanes(|i| shifted[i] * inverse[i]));
            let residual = lanes(|i| shifted[i] - scale[i] * code[i]);
            let weight = lanes(|i| importance(x[i]));
            let weighted = lanes(|i| weight[i] * residual[i]);
            add(&mut sums.rr, &lanes(|i| weighted[i] * residual[i]));
            add(&mut sums.rq, &lanes(|i| weighted[i] * code[i]));
            let weighted_code = lanes(|i| weight[i] * code[i]);
            add(&mut sums.qq, &lanes(|i| weighted_code[i] * code[i]));
            if OFFSET {
                add(&mut sums.r, &weighted);
                add(&mut sums.q, &weighted_code);
                add(&mut sums.weight, &weight);
            }
        }
        sums
    }
}

/// The nearest codes of a group, one to each of `out`.
pub(super) fn codes(values: &[f32], grid: Integers, scale: f32, offset: f32, out: &mut [u8]) {
    let inverse = inverse(scale);
    for (x, out) in values.iter().zip(out) {
        let y = (x - offset) * inverse;
        *out = byte(within(y, grid.0, grid.1));
    }
}

impl Sums {
    /// Of nothing.
    pub(super) const ZERO: Self = Self {
        weight: [0.0; LANES],
        q: [0.0; LANES],
        qq: [0.0; LANES],
        r: [0.0; LANES],
        rq: [0.0; LANES],
        rr: [0.0; LANES],
    };

    #[inline(always)]
    fn add(&mut self, more: &Self) {
        add(&mut self.weight, &more.weight);
        add(&mut self.q, &more.q);
        add(&mut self.qq, &more.qq);
        add(&mut self.r, &more.r);
        add(&mut self.rq, &more.rq);
        add(&mut self.rr, &more.rr);
    }

    /// Takes `new` in the lanes where `condition` holds.
    #[inline(always)]
    pub(super) fn keep(&mut self, new: &Self, condition: &[bool; LANES]) {
        keep(&mut self.weight, &new.weight, condition);
        keep(&mut self.q, &new.q, condition);
        keep(&mut self.qq, &new.qq, condition);
        keep(&mut self.r, &new.r, condition);
        keep(&mut self.rq, &new.rq, condition);
        keep(&mut self.rr, &new.rr, condition);
    }

    /// How much to add to the scale for the smallest error with these codes.
    #[inline(always)]
    pub(super) fn scale_step(&self) -> Lanes {
        lanes(|i| self.rq[i] * inverse(self.qq[i]))
    }

    /// The same when the offset grows by `offset`.
    #[inline(always)]
    pub(super) fn scale_step_beside(&self, offset: &Lanes) -> Lanes {
        lanes(|i| (self.rq[i] - offset[i] * self.q[i]) * inverse(self.qq[i]))
    }

    /// How much to add to the offset when the scale grows by `scale`.
    #[inline(always)]
    pub(super) fn offset_step_beside(&self, scale: &Lanes) -> Lanes {
        lanes(|i| (self.r[i] - scale[i] * self.q[i]) * inverse(self.weight[i]))
    }

    /// How much to add to scale and offset for the smallest error with these codes.
    #[inline(always)]
    pub(super) fn steps(&self) -> (Lanes, Lanes) {
        let scale = lanes(|i| {
            let determinant = self.weight[i] * self.qq[i] - self.q[i] * self.q[i];
            let step = (self.weight[i] * self.rq[i] - self.q[i] * self.r[i]) / determinant;
            // All codes alike: the offset alone does it.
            let alike = determinant <= 1e-6 * self.weight[i] * self.qq[i];
            if alike { 0.0 } else { step }
        });
        (scale, self.offset_step_beside(&scale))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Simd, search};
    use proptest::prelude::*;

    struct Sum<'a>(Groups<'a>, Lanes, Lanes, &'a mut Sums);

    impl Search for Sum<'_> {
        #[inline(always)]
        fn run(self, v: impl Lookup) {
            *self.3 = self.0.sums(v, &Integers(-8.0, 7.0), &self.1, &self.2);
        }
    }

    proptest! {
        /// The bits of what encoders write follow from those of sums.
        #[test]
        fn every_level_sums_alike(
            rows in prop::collection::vec(prop::array::uniform16(-1.0f32..1.0), 32),
            scale in prop::array::uniform16(0.0f32..0.3),
            offset in prop::array::uniform16(-0.5f32..0.5),
        ) {
            let sums = |level| {
                let mut sums = Sums::ZERO;
                search(level, Sum(Groups(&rows), scale, offset, &mut sums));
                let Sums { weight, q, qq, r, rq, rr } = sums;
                [weight, q, qq, r, rq, rr].map(|sum| sum.map(f32::to_bits))
            };
            for level in Simd::ALL.into_iter().filter(|level| level.is_available()) {
                prop_assert_eq!(sums(level), sums(Simd::Twins), "{}", level);
            }
        }
    }
}
