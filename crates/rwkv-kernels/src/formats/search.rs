//! Searches for the scales of a block: the weighted least squares that every encoder stands on.
//!
//! A block of values x is stood for by `offset + scale · q`, with each q on a [`Grid`]. For one scale and offset the
//! best codes are the nearest; for given codes the best scale and offset solve a linear system. The searches alternate
//! the two from several starts and keep what has the smallest error, measured with scales as their f16 will be read.
//!
//! Values that no format holds have a defined reading, see [`clean`].

use super::grid::{Grid, Integers, LANES, byte, within};
use half::f16;

/// Larger values are cut to this: no format reaches it, and its fourth power fits an f32.
const LARGEST: f32 = (1 << 29) as f32;

/// Smaller values become zero: the smallest step of any format, an f16 of 2⁻²⁴ times 0.066, is far larger.
const SMALLEST: f32 = 1e-12;

/// How much the squared error of an element counts: the one place to try another measure, such as more for large
/// elements. `mean_square` is that of the group which the element shares a scale with.
///
/// All alike: on a model of 9 million parameters that was best. Divergence from the f16 model in nats a token, with
/// 1, |x| + root mean square (ggml's for Q4_K and Q5_K), and x²: Q2_K 0.205, 0.206, 0.246; Q3_K 0.0580, 0.0583,
/// 0.0667; ggml's own blocks 0.255 and 0.0644.
#[inline]
fn importance(x: f32, mean_square: f32) -> f32 {
    let _ = (x, mean_square);
    1.0
}

/// What an encoder makes of `x`: NaN counts as zero, and infinities and values beyond every format's range as the
/// largest that the format holds.
#[inline]
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
#[inline]
pub(super) fn inverse(x: f32) -> f32 {
    if x == 0.0 { 0.0 } else { 1.0 / x }
}

/// The nearest value that a finite f16 holds, as an f32; a value that is not zero does not become it. (The conversions
/// of `half` are calls; this is in the innermost searches.)
#[inline]
pub(super) fn half(x: f32) -> f32 {
    const TINY: f32 = 1.0 / (1 << 24) as f32;
    let size = x.abs();
    let near = if size < 1.0 / 16384.0 {
        // Subnormal: multiples of 2⁻²⁴, which is the last bit of 0.75.
        let near = (size + 0.75) - 0.75;
        if size > 0.0 && near < TINY {
            TINY
        } else {
            near
        }
    } else {
        let bits = size.to_bits();
        let even = bits >> 13 & 1;
        f32::from_bits((bits + 0xfff + even) & !0x1fff).min(65504.0)
    };
    near.copysign(x)
}

/// The bytes of a scale that [`half()`] rounded.
pub(super) fn half_bytes(x: f32) -> [u8; 2] {
    f16::from_f32(x).to_le_bytes()
}

/// Sums over a group for one scale and offset, with r the residual x − offset − scale · q.
#[derive(Clone, Copy, Default)]
pub(super) struct Sums {
    /// Of importance.
    pub(super) weight: f32,
    pub(super) q: f32,
    pub(super) qq: f32,
    pub(super) r: f32,
    pub(super) rq: f32,
    /// The squared error.
    pub(super) rr: f32,
}

/// Values that share a scale: a whole number of [`LANES`].
#[derive(Clone, Copy)]
pub(super) struct Group<'a> {
    pub(super) values: &'a [f32],
    mean_square: f32,
}

impl<'a> Group<'a> {
    /// `values` are [`clean`].
    pub(super) fn new(values: &'a [f32]) -> Self {
        let squares: f32 = values.iter().map(|x| x * x).sum();
        Self {
            values,
            mean_square: squares / values.len() as f32,
        }
    }

    /// The lowest and the highest value.
    pub(super) fn ends(&self) -> [f32; 2] {
        let mut low = [f32::INFINITY; LANES];
        let mut high = [f32::NEG_INFINITY; LANES];
        for x in self.values.as_chunks::<LANES>().0 {
            for i in 0..LANES {
                low[i] = if x[i] < low[i] { x[i] } else { low[i] };
                high[i] = if x[i] > high[i] { x[i] } else { high[i] };
            }
        }
        [
            low.into_iter().fold(f32::INFINITY, f32::min),
            high.into_iter().fold(f32::NEG_INFINITY, f32::max),
        ]
    }

    /// The sums with the nearest codes.
    pub(super) fn sums(&self, grid: &impl Grid, scale: f32, offset: f32) -> Sums {
        self.sum::<true>(grid, scale, offset)
    }

    /// The sums that a scale needs, without an offset: the others are zero.
    pub(super) fn sums_around_zero(&self, grid: &impl Grid, scale: f32) -> Sums {
        self.sum::<false>(grid, scale, 0.0)
    }

    /// All that encoders do is here, almost; so it has the vectors that the processor has. Each sum has the same order,
    /// and so the same bits, on all of them.
    fn sum<const OFFSET: bool>(&self, grid: &impl Grid, scale: f32, offset: f32) -> Sums {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2.
            return unsafe { self.sum_with_avx2::<OFFSET>(grid, scale, offset) };
        }
        self.sum_lanes::<OFFSET>(grid, scale, offset)
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn sum_with_avx2<const OFFSET: bool>(&self, grid: &impl Grid, scale: f32, offset: f32) -> Sums {
        self.sum_lanes::<OFFSET>(grid, scale, offset)
    }

    // One operation a loop: so each becomes a vector instruction, or two of half the width.
    #[inline(always)]
    #[allow(
        clippy::inline_always,
        clippy::needless_range_loop,
        reason = "with the instructions of whoever calls; that is how the compiler sees vectors"
    )]
    fn sum_lanes<const OFFSET: bool>(&self, grid: &impl Grid, scale: f32, offset: f32) -> Sums {
        let inverse = inverse(scale);
        let [mut weights, mut q, mut qq, mut r, mut rq, mut rr] = [[0.0f32; LANES]; 6];
        for x in self.values.as_chunks::<LANES>().0 {
            let [mut shifted, mut y, mut weight, mut residual, mut weighted] = [[0.0f32; LANES]; 5];
            for i in 0..LANES {
                shifted[i] = if OFFSET { x[i] - offset } else { x[i] };
            }
            for i in 0..LANES {
                y[i] = shifted[i] * inverse;
            }
            let code = grid.nearest(y);
            for i in 0..LANES {
                residual[i] = shifted[i] - scale * code[i];
            }
            for i in 0..LANES {
                weight[i] = importance(x[i], self.mean_square);
            }
            for i in 0..LANES {
                weighted[i] = weight[i] * residual[i];
            }
            for i in 0..LANES {
                rr[i] += weighted[i] * residual[i];
            }
            for i in 0..LANES {
                rq[i] += weighted[i] * code[i];
            }
            if OFFSET {
                for i in 0..LANES {
                    r[i] += weighted[i];
                }
            }
            for i in 0..LANES {
                weighted[i] = weight[i] * code[i];
            }
            for i in 0..LANES {
                qq[i] += weighted[i] * code[i];
            }
            if OFFSET {
                for i in 0..LANES {
                    q[i] += weighted[i];
                }
                for i in 0..LANES {
                    weights[i] += weight[i];
                }
            }
        }
        Sums::of(&[weights, q, qq, r, rq, rr])
    }

    /// The nearest codes, one to each of `out`.
    pub(super) fn codes(&self, grid: Integers, scale: f32, offset: f32, out: &mut [u8]) {
        let inverse = inverse(scale);
        for (x, out) in self.values.iter().zip(out) {
            let y = (x - offset) * inverse;
            *out = byte(within(y, grid.0, grid.1));
        }
    }
}

impl Sums {
    /// The totals of all lanes, in the order of the fields.
    // Inlined, it makes the compiler give up on vectors in the loop before it: a quarter of the speed.
    #[inline(never)]
    fn of(lanes: &[[f32; LANES]; 6]) -> Self {
        let [weight, q, qq, r, rq, rr] =
            lanes.map(|[a, b, c, d, e, f, g, h]| ((a + e) + (c + g)) + ((b + f) + (d + h)));
        Self {
            weight,
            q,
            qq,
            r,
            rq,
            rr,
        }
    }

    /// How much to add to the scale for the smallest error with these codes.
    #[inline]
    pub(super) fn scale_step(&self) -> f32 {
        self.rq * inverse(self.qq)
    }

    /// The same when the offset grows by `offset`.
    #[inline]
    pub(super) fn scale_step_beside(&self, offset: f32) -> f32 {
        (self.rq - offset * self.q) * inverse(self.qq)
    }

    /// How much to add to the offset when the scale grows by `scale`.
    #[inline]
    pub(super) fn offset_step_beside(&self, scale: f32) -> f32 {
        (self.r - scale * self.q) * inverse(self.weight)
    }

    /// How much to add to scale and offset for the smallest error with these codes.
    #[inline]
    pub(super) fn steps(&self) -> (f32, f32) {
        let determinant = self.weight * self.qq - self.q * self.q;
        // All codes alike: the offset alone does it.
        if determinant <= 1e-6 * self.weight * self.qq {
            return (0.0, self.offset_step_beside(0.0));
        }
        let scale = (self.weight * self.rq - self.q * self.r) / determinant;
        (scale, self.offset_step_beside(scale))
    }
}

/// Which shares of the grid's reach the largest value is put at, to start from: below 1 the grid's end stays unused,
/// above 1 the largest value is cut.
pub(super) type Shares = [f32];

/// The f16 scale for values around zero, `x ≈ scale · q`.
pub(super) fn scale(group: Group, grid: &impl Grid, shares: &Shares) -> f32 {
    let [low, high] = group.ends();
    let extreme = if -low > high { low } else { high };
    let mut best = (group.sums_around_zero(grid, 0.0).rr, 0.0);
    if extreme == 0.0 {
        return 0.0;
    }
    for end in grid.ends() {
        for share in shares {
            let mut scale = half(extreme / (end * share));
            for _ in 0..3 {
                let sums = group.sums_around_zero(grid, scale);
                if sums.rr < best.0 {
                    best = (sums.rr, scale);
                }
                let next = half(scale + sums.scale_step());
                if next.to_bits() == scale.to_bits() {
                    break;
                }
                scale = next;
            }
        }
    }
    best.1
}

/// Scale and offset, both f16, for `x ≈ offset + scale · q` with q from 0 to `top`.
pub(super) fn scale_and_offset(group: Group, top: f32) -> (f32, f32) {
    let grid = Integers(0.0, top);
    let [low, high] = group.ends();
    // Constant values: what the offset's rounding leaves is a scale's worth.
    let flat = half(low);
    let mut best = (group.sums(&grid, 0.0, flat).rr, 0.0, flat);
    let mut keep = |scale: f32, offset: f32| {
        let sums = group.sums(&grid, scale, offset);
        if sums.rr < best.0 {
            best = (sums.rr, scale, offset);
        }
        sums
    };
    keep(half((low - flat) / top), flat);
    for [below, above] in CUTS {
        let cut = (high - low) * CUT;
        let mut offset = low + below * cut;
        let mut scale = (high - above * cut - offset) / top;
        for _ in 0..2 {
            let (ds, doff) = group.sums(&grid, scale, offset).steps();
            (scale, offset) = (scale + ds, offset + doff);
        }
        // One is rounded, and the other makes good for it.
        (scale, offset) = (half(scale), half(offset));
        for _ in 0..3 {
            let sums = keep(scale, offset);
            let (_, step) = sums.steps();
            let next_offset = half(offset + step);
            let next_scale = half(scale + sums.scale_step_beside(next_offset - offset));
            if (next_scale, next_offset) == (scale, offset) {
                break;
            }
            (scale, offset) = (next_scale, next_offset);
        }
    }
    (best.1, best.2)
}

/// Starts of [`scale_and_offset`] and of the nested search: how many [`CUT`]s of the range are left out below and above.
pub(super) const CUTS: [[f32; 2]; 9] = [
    [0.0, 0.0],
    [1.0, 1.0],
    [2.0, 2.0],
    [-1.0, -1.0],
    [0.0, 2.0],
    [2.0, 0.0],
    [-1.0, 1.0],
    [1.0, -1.0],
    [0.0, 4.0],
];

/// A share of the range.
pub(super) const CUT: f32 = 0.04;
