//! Searches for ggml's blocks of 256, whose groups have scales (and minima) that are small integers times an f16.
//!
//! First each group's own best fit; then the integers nearest to it, and for given integers and codes the best f16
//! factors, in turns. A group tries the integers beside its own too, as the codes move with them.
//!
//! Lanes are the groups of one block or of two; what belongs to a block is the same in all of its lanes.

#![allow(
    clippy::inline_always,
    reason = "searches are compiled for several sets of instructions, with all that is in them"
)]

use super::{
    grid::{Integers, byte, round, within},
    lanes::{LANES, Lanes, below, holding, keep, lanes, lay_side_by_side},
    scales::{CUT, CUTS, Shares},
    search::{Groups, Sums, clean, codes, half, inverse},
};
use crate::simd::{Lookup, Search, Simd, search};

/// Values a block.
pub(super) const BLOCK: usize = 256;

/// Blocks that are searched together, at most; groups have 16 elements or more.
const BLOCKS: usize = 2;

/// How often integers and factors are refitted to each other.
const ROUNDS: usize = 3;

/// The factors start so that the largest integer is the largest possible, or this much less.
const STARTS: [f32; 2] = [0.0, 1.0];

/// A block of `G` groups. With it `x = d · scale · q − dmin · minimum`, or without minima `x = d · scale · q`.
pub(super) struct Nested<const G: usize> {
    /// An f16.
    pub(super) d: f32,
    /// An f16; zero without minima.
    pub(super) dmin: f32,
    /// In two's complement where scales are signed.
    pub(super) scales: [u8; G],
    pub(super) minima: [u8; G],
    /// In two's complement where codes are signed.
    pub(super) codes: [u8; BLOCK],
}

/// What a search finds for the groups in its lanes.
struct Found {
    /// What values are multiplied by before anything else.
    sign: Lanes,
    d: Lanes,
    dmin: Lanes,
    scales: Lanes,
    minima: Lanes,
}

/// The sums of factors' normal equations, in which a group's integers are constants.
struct Factors {
    error: Lanes,
    ss: Lanes,
    sm: Lanes,
    mm: Lanes,
    rs: Lanes,
    rm: Lanes,
}

impl Factors {
    /// Of blocks of `G` groups.
    #[inline(always)]
    fn new<const G: usize>(sums: &Sums, scale: &Lanes, minimum: &Lanes) -> Self {
        let (sm, rm) = (
            lanes(|i| scale[i] * minimum[i] * sums.q[i]),
            lanes(|i| minimum[i] * sums.r[i]),
        );
        let (ss, mm) = (
            lanes(|i| scale[i] * scale[i] * sums.qq[i]),
            lanes(|i| minimum[i] * minimum[i] * sums.weight[i]),
        );
        let rs = lanes(|i| scale[i] * sums.rq[i]);
        Self {
            error: of_blocks::<G>(&sums.rr, |sum, x| sum + x),
            ss: of_blocks::<G>(&ss, |sum, x| sum + x),
            sm: of_blocks::<G>(&sm, |sum, x| sum - x),
            mm: of_blocks::<G>(&mm, |sum, x| sum + x),
            rs: of_blocks::<G>(&rs, |sum, x| sum + x),
            rm: of_blocks::<G>(&rm, |sum, x| sum - x),
        }
    }

    /// How much to add to `d` and `dmin`.
    #[inline(always)]
    fn steps(&self) -> (Lanes, Lanes) {
        let Self {
            ss, sm, mm, rs, rm, ..
        } = self;
        let determinant = lanes(|i| ss[i] * mm[i] - sm[i] * sm[i]);
        let alone = holding(|i| determinant[i] <= 1e-6 * ss[i] * mm[i]);
        let mut d = lanes(|i| (mm[i] * rs[i] - sm[i] * rm[i]) / determinant[i]);
        let mut dmin = lanes(|i| (ss[i] * rm[i] - sm[i] * rs[i]) / determinant[i]);
        keep(&mut d, &lanes(|i| rs[i] * inverse(ss[i])), &alone);
        keep(&mut dmin, &[0.0; LANES], &alone);
        (d, dmin)
    }
}

/// What `fold` makes of zero and the `G` lanes of each block in turn.
#[inline(always)]
fn of_blocks<const G: usize>(each: &Lanes, fold: impl Fn(f32, f32) -> f32) -> Lanes {
    let mut all = [0.0; LANES];
    let blocks = all.as_chunks_mut::<G>().0;
    for (each, all) in each.as_chunks::<G>().0.iter().zip(blocks) {
        *all = [each.iter().fold(0.0, |sum, x| fold(sum, *x)); G];
    }
    all
}

/// Packs blocks with codes from 0 to `top`, scales and minima from 0 to `most`.
pub(super) fn with_minima<const G: usize, const BYTES: usize>(
    values: &[f32],
    blocks: &mut [u8],
    [top, most]: [f32; 2],
    pack: impl Fn(&Nested<G>, &mut [u8; BYTES]),
) {
    let grid = Integers(0.0, top);
    // As far as minima reach, which codes reach on the other side too.
    let reach = most * 65504.0;
    let read = |x| within(clean(x), -reach, reach);
    let find = |rows: &mut [Lanes], found: &mut Found| {
        let work = WithMinima::<G> {
            rows,
            grid,
            most,
            found,
        };
        search(Simd::detect(), work);
    };
    each_block(values, blocks, grid, read, find, pack);
}

/// Packs blocks with codes from −`top` to `top` − 1, scales from −`most` to `most` − 1.
pub(super) fn symmetric<const G: usize, const BYTES: usize>(
    values: &[f32],
    blocks: &mut [u8],
    [top, most]: [f32; 2],
    shares: &Shares,
    pack: impl Fn(&Nested<G>, &mut [u8; BYTES]),
) {
    let grid = Integers(-top, top - 1.0);
    let find = |rows: &mut [Lanes], found: &mut Found| {
        let work = Symmetric::<G> {
            rows,
            grid,
            most,
            shares,
            found,
        };
        search(Simd::detect(), work);
    };
    each_block(values, blocks, grid, clean, find, pack);
}

/// Packs blocks of what `read` makes of values, with the integers and factors that `find` finds for groups side by side.
fn each_block<const G: usize, const BYTES: usize>(
    values: &[f32],
    blocks: &mut [u8],
    grid: Integers,
    read: impl Fn(f32) -> f32,
    find: impl Fn(&mut [Lanes], &mut Found),
    pack: impl Fn(&Nested<G>, &mut [u8; BYTES]),
) {
    let mut rows = [[0.0; LANES]; BLOCK / (LANES / BLOCKS)];
    let rows = &mut rows[..BLOCK / G];
    let batches = blocks.as_chunks_mut::<BYTES>().0.chunks_mut(LANES / G);
    let values = values.as_chunks::<BLOCK>().0.chunks(LANES / G);
    for (values, blocks) in values.zip(batches) {
        let mut cleaned = [[0.0; BLOCK]; BLOCKS];
        for (cleaned, values) in cleaned.iter_mut().zip(values) {
            *cleaned = values.map(&read);
        }
        lay_side_by_side(cleaned[..values.len()].as_flattened(), rows);
        let mut found = Found::NOTHING;
        find(rows, &mut found);
        for (index, (values, block)) in cleaned.iter().zip(blocks).enumerate() {
            pack(&found.block(index, values, grid), block);
        }
    }
}

impl Found {
    const NOTHING: Self = Self {
        sign: [1.0; LANES],
        d: [0.0; LANES],
        dmin: [0.0; LANES],
        scales: [0.0; LANES],
        minima: [0.0; LANES],
    };

    /// The block at `index` with its codes.
    fn block<const G: usize>(
        &self,
        index: usize,
        values: &[f32; BLOCK],
        grid: Integers,
    ) -> Nested<G> {
        let of = |each: &Lanes| each.as_chunks::<G>().0[index];
        let (sign, d, dmin) = (of(&self.sign)[0], of(&self.d)[0], of(&self.dmin)[0]);
        let (scales, minima) = (of(&self.scales), of(&self.minima));
        let values = values.map(|x| x * sign);
        let mut found = [0; BLOCK];
        let groups = values
            .chunks_exact(BLOCK / G)
            .zip(found.chunks_exact_mut(BLOCK / G));
        for ((values, out), (scale, minimum)) in groups.zip(scales.iter().zip(minima)) {
            codes(values, grid, d * scale, -dmin * minimum, out);
        }
        Nested {
            d: sign * d,
            dmin: sign * dmin,
            scales: scales.map(byte),
            minima: minima.map(byte),
            codes: found,
        }
    }
}

struct WithMinima<'a, const G: usize> {
    rows: &'a mut [Lanes],
    grid: Integers,
    most: f32,
    found: &'a mut Found,
}

impl<const G: usize> Search for WithMinima<'_, G> {
    #[inline(always)]
    fn run(self, v: impl Lookup) {
        let Self {
            rows,
            grid,
            most,
            found,
        } = self;
        // Minima only reach down from zero: values that lie above it are encoded upside down, with both factors negative.
        let [low, high] = Groups(rows).ends();
        let above = of_blocks::<G>(&lanes(|i| low[i].max(0.0)), |sum, x| sum + x);
        let under = of_blocks::<G>(&lanes(|i| (-high[i]).max(0.0)), |sum, x| sum + x);
        let sign = lanes(|i| if above[i] > under[i] { -1.0 } else { 1.0 });
        for row in rows.iter_mut() {
            *row = lanes(|i| row[i] * sign[i]);
        }
        found.sign = sign;

        let groups = Groups(rows);
        let (own, own_offset) = fit_with_minimum(v, groups, grid);
        let widest = of_blocks::<G>(&own, f32::max);
        let lowest = of_blocks::<G>(&own_offset, f32::min);
        let mut least = [f32::INFINITY; LANES];
        for start in STARTS {
            let mut d = lanes(|i| half(widest[i] / (most - start)));
            let mut dmin = lanes(|i| half(-lowest[i] / (most - start)));
            for _ in 0..ROUNDS {
                let near = lanes(|i| {
                    let wanted = round(within(own[i] * inverse(d[i]), 0.0, most));
                    within(wanted, 0.0, most)
                });
                let mut chosen = Sums::ZERO;
                let mut error = [f32::INFINITY; LANES];
                let (mut scales, mut minima) = ([0.0; LANES], [0.0; LANES]);
                for beside in [-1.0, 0.0, 1.0] {
                    let scale = lanes(|i| near[i] + beside);
                    let step = lanes(|i| d[i] * scale[i]);
                    let sums = groups.sums(v, &grid, &step, &own_offset);
                    let shift = sums.offset_step_beside(&[0.0; LANES]);
                    let minimum = lanes(|i| {
                        let offset = own_offset[i] + shift[i];
                        round(within(-offset * inverse(dmin[i]), 0.0, most))
                    });
                    let sums = groups.sums(v, &grid, &step, &lanes(|i| -dmin[i] * minimum[i]));
                    let better =
                        holding(|i| sums.rr[i] < error[i] && scale[i] >= 0.0 && scale[i] <= most);
                    chosen.keep(&sums, &better);
                    keep(&mut error, &sums.rr, &better);
                    keep(&mut scales, &scale, &better);
                    keep(&mut minima, &minimum, &better);
                }
                let factors = Factors::new::<G>(&chosen, &scales, &minima);
                let better = below(&factors.error, &least);
                keep(&mut least, &factors.error, &better);
                keep(&mut found.d, &d, &better);
                keep(&mut found.dmin, &dmin, &better);
                keep(&mut found.scales, &scales, &better);
                keep(&mut found.minima, &minima, &better);
                let (step, step_min) = factors.steps();
                let next = lanes(|i| half((d[i] + step[i]).max(0.0)));
                let next_min = lanes(|i| half((dmin[i] + step_min[i]).max(0.0)));
                if (next, next_min) == (d, dmin) {
                    break;
                }
                (d, dmin) = (next, next_min);
            }
        }
    }
}

struct Symmetric<'a, const G: usize> {
    rows: &'a [Lanes],
    grid: Integers,
    most: f32,
    shares: &'a Shares,
    found: &'a mut Found,
}

impl<const G: usize> Search for Symmetric<'_, G> {
    #[inline(always)]
    fn run(self, v: impl Lookup) {
        let Self {
            rows,
            grid,
            most,
            shares,
            found,
        } = self;
        let groups = Groups(rows);
        let own = fit_around_zero(v, groups, grid, shares);
        let widest = of_blocks::<G>(&own, |m, x| if x.abs() > m.abs() { x } else { m });
        let mut least = [f32::INFINITY; LANES];
        for start in STARTS {
            let mut d = lanes(|i| half(-widest[i] / (most - start)));
            for _ in 0..ROUNDS {
                let near = lanes(|i| round(within(own[i] * inverse(d[i]), -most, most - 1.0)));
                let mut chosen = Sums::ZERO;
                let mut error = [f32::INFINITY; LANES];
                let mut scales = [0.0; LANES];
                for beside in [-1.0, 0.0, 1.0] {
                    let scale = lanes(|i| near[i] + beside);
                    let sums = groups.sums_around_zero(v, &grid, &lanes(|i| d[i] * scale[i]));
                    let better = holding(|i| {
                        sums.rr[i] < error[i] && scale[i] >= -most && scale[i] <= most - 1.0
                    });
                    chosen.keep(&sums, &better);
                    keep(&mut error, &sums.rr, &better);
                    keep(&mut scales, &scale, &better);
                }
                let factors = Factors::new::<G>(&chosen, &scales, &[0.0; LANES]);
                let better = below(&factors.error, &least);
                keep(&mut least, &factors.error, &better);
                keep(&mut found.d, &d, &better);
                keep(&mut found.scales, &scales, &better);
                let (step, _) = factors.steps();
                let next = lanes(|i| half(d[i] + step[i]));
                if next.map(f32::to_bits) == d.map(f32::to_bits) {
                    break;
                }
                d = next;
            }
        }
    }
}

/// The best scale and offset of each group on its own, the scale not below zero and the offset not above.
#[inline(always)]
fn fit_with_minimum(v: impl Lookup, groups: Groups, grid: Integers) -> (Lanes, Lanes) {
    let [low, high] = groups.ends();
    let low = lanes(|i| low[i].min(0.0));
    let mut least = [f32::INFINITY; LANES];
    let mut best = ([0.0; LANES], [0.0; LANES]);
    for [lower, upper] in CUTS {
        let cut = lanes(|i| (high[i] - low[i]) * CUT);
        let mut offset = lanes(|i| (low[i] + lower * cut[i]).min(0.0));
        let mut scale = lanes(|i| ((high[i] - upper * cut[i] - offset[i]) / grid.1).max(0.0));
        for _ in 0..3 {
            let sums = groups.sums(v, &grid, &scale, &offset);
            let better = below(&sums.rr, &least);
            keep(&mut least, &sums.rr, &better);
            keep(&mut best.0, &scale, &better);
            keep(&mut best.1, &offset, &better);
            let (mut step, mut shift) = sums.steps();
            let past = holding(|i| offset[i] + shift[i] > 0.0);
            keep(&mut shift, &lanes(|i| -offset[i]), &past);
            keep(&mut step, &sums.scale_step_beside(&shift), &past);
            scale = lanes(|i| (scale[i] + step[i]).max(0.0));
            offset = lanes(|i| offset[i] + shift[i]);
        }
    }
    best
}

/// The best scale of each group on its own.
#[inline(always)]
fn fit_around_zero(v: impl Lookup, groups: Groups, grid: Integers, shares: &Shares) -> Lanes {
    let extreme = groups.extreme();
    let mut least = [f32::INFINITY; LANES];
    let mut best = [0.0; LANES];
    for end in [grid.0, grid.1] {
        for share in shares {
            let mut scale = lanes(|i| extreme[i] / (end * share));
            for _ in 0..2 {
                let sums = groups.sums_around_zero(v, &grid, &scale);
                let better = below(&sums.rr, &least);
                keep(&mut least, &sums.rr, &better);
                keep(&mut best, &scale, &better);
                let step = sums.scale_step();
                scale = lanes(|i| scale[i] + step[i]);
            }
        }
    }
    best
}
