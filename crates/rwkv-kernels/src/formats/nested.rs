//! Searches for ggml's blocks of 256, whose groups have scales (and minima) that are small integers times an f16.
//!
//! First each group's own best fit; then the integers nearest to it, and for given integers and codes the best f16
//! factors, in turns. A group tries the integers beside its own too, as the codes move with them.

use super::{
    grid::{Integers, byte, round, within},
    search::{CUT, CUTS, Group, Shares, Sums, clean, half, inverse},
};

/// Values a block.
pub(super) const BLOCK: usize = 256;

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

/// The sums of factors' normal equations, in which a group's integers are constants.
#[derive(Default)]
struct Factors {
    error: f32,
    ss: f32,
    sm: f32,
    mm: f32,
    rs: f32,
    rm: f32,
}

impl Factors {
    fn add(&mut self, sums: &Sums, scale: f32, minimum: f32) {
        self.error += sums.rr;
        self.ss += scale * scale * sums.qq;
        self.sm -= scale * minimum * sums.q;
        self.mm += minimum * minimum * sums.weight;
        self.rs += scale * sums.rq;
        self.rm -= minimum * sums.r;
    }

    /// How much to add to `d` and `dmin`.
    fn steps(&self) -> (f32, f32) {
        let determinant = self.ss * self.mm - self.sm * self.sm;
        if determinant <= 1e-6 * self.ss * self.mm {
            return (self.rs * inverse(self.ss), 0.0);
        }
        (
            (self.mm * self.rs - self.sm * self.rm) / determinant,
            (self.ss * self.rm - self.sm * self.rs) / determinant,
        )
    }
}

/// Codes from 0 to `top`, scales and minima from 0 to `most`.
pub(super) fn with_minima<const G: usize>(values: &[f32; BLOCK], top: f32, most: f32) -> Nested<G> {
    // As far as minima reach, which codes reach on the other side too.
    let reach = most * 65504.0;
    let mut values = values.map(|x| within(clean(x), -reach, reach));
    // Minima only reach down from zero: values that lie above it are encoded upside down, with both factors negative.
    let (above, below) = groups::<G>(&values)
        .map(|g| g.ends())
        .fold((0.0f32, 0.0f32), |(above, below), [low, high]| {
            (above + low.max(0.0), below + (-high).max(0.0))
        });
    let sign = if above > below { -1.0 } else { 1.0 };
    for x in &mut values {
        *x *= sign;
    }

    let grid = Integers(0.0, top);
    let mut own = [(0.0f32, 0.0f32); G];
    for (group, own) in groups::<G>(&values).zip(&mut own) {
        *own = fit_with_minimum(group, grid);
    }
    let widest = own.iter().fold(0.0f32, |m, (scale, _)| m.max(*scale));
    let lowest = own.iter().fold(0.0f32, |m, (_, offset)| m.min(*offset));
    let mut best = (f32::INFINITY, 0.0, 0.0, [0.0; G], [0.0; G]);
    for start in STARTS {
        let (mut d, mut dmin) = (
            half(widest / (most - start)),
            half(-lowest / (most - start)),
        );
        for _ in 0..ROUNDS {
            let mut factors = Factors::default();
            let (mut scales, mut minima) = ([0.0; G], [0.0; G]);
            for (i, group) in groups::<G>(&values).enumerate() {
                let wanted = own[i];
                let near = within(round(within(wanted.0 * inverse(d), 0.0, most)), 0.0, most);
                let mut chosen = (f32::INFINITY, Sums::default());
                for scale in [near - 1.0, near, near + 1.0] {
                    if scale < 0.0 || scale > most {
                        continue;
                    }
                    let step = d * scale;
                    let offset =
                        wanted.1 + group.sums(&grid, step, wanted.1).offset_step_beside(0.0);
                    let minimum = round(within(-offset * inverse(dmin), 0.0, most));
                    let sums = group.sums(&grid, step, -dmin * minimum);
                    if sums.rr < chosen.0 {
                        chosen = (sums.rr, sums);
                        (scales[i], minima[i]) = (scale, minimum);
                    }
                }
                factors.add(&chosen.1, scales[i], minima[i]);
            }
            if factors.error < best.0 {
                best = (factors.error, d, dmin, scales, minima);
            }
            let (step, step_min) = factors.steps();
            let next = (half((d + step).max(0.0)), half((dmin + step_min).max(0.0)));
            if next == (d, dmin) {
                break;
            }
            (d, dmin) = next;
        }
    }

    let (_, d, dmin, scales, minima) = best;
    let mut codes = [0; BLOCK];
    for (i, group) in groups::<G>(&values).enumerate() {
        let at = i * (BLOCK / G);
        let codes = &mut codes[at..at + BLOCK / G];
        group.codes(grid, d * scales[i], -dmin * minima[i], codes);
    }
    Nested {
        d: sign * d,
        dmin: sign * dmin,
        scales: scales.map(byte),
        minima: minima.map(byte),
        codes,
    }
}

/// Codes from −`top` to `top` − 1, scales from −`most` to `most` − 1.
pub(super) fn symmetric<const G: usize>(
    values: &[f32; BLOCK],
    top: f32,
    most: f32,
    shares: &Shares,
) -> Nested<G> {
    let values = values.map(clean);
    let grid = Integers(-top, top - 1.0);
    let mut own = [0.0f32; G];
    for (group, own) in groups::<G>(&values).zip(&mut own) {
        *own = fit_around_zero(group, grid, shares);
    }
    let widest = own
        .iter()
        .fold(0.0f32, |m, x| if x.abs() > m.abs() { *x } else { m });
    let mut best = (f32::INFINITY, 0.0, [0.0; G]);
    for start in STARTS {
        let mut d = half(-widest / (most - start));
        for _ in 0..ROUNDS {
            let mut factors = Factors::default();
            let mut scales = [0.0; G];
            for (i, group) in groups::<G>(&values).enumerate() {
                let near = round(within(own[i] * inverse(d), -most, most - 1.0));
                let mut chosen = (f32::INFINITY, Sums::default());
                for scale in [near - 1.0, near, near + 1.0] {
                    if scale < -most || scale > most - 1.0 {
                        continue;
                    }
                    let sums = group.sums_around_zero(&grid, d * scale);
                    if sums.rr < chosen.0 {
                        chosen = (sums.rr, sums);
                        scales[i] = scale;
                    }
                }
                factors.add(&chosen.1, scales[i], 0.0);
            }
            if factors.error < best.0 {
                best = (factors.error, d, scales);
            }
            let next = half(d + factors.steps().0);
            if next.to_bits() == d.to_bits() {
                break;
            }
            d = next;
        }
    }

    let (_, d, scales) = best;
    let mut codes = [0; BLOCK];
    for (i, group) in groups::<G>(&values).enumerate() {
        let at = i * (BLOCK / G);
        group.codes(grid, d * scales[i], 0.0, &mut codes[at..at + BLOCK / G]);
    }
    Nested {
        d,
        dmin: 0.0,
        scales: scales.map(byte),
        minima: [0; G],
        codes,
    }
}

fn groups<const G: usize>(values: &[f32; BLOCK]) -> impl Iterator<Item = Group<'_>> {
    values.chunks_exact(BLOCK / G).map(Group::new)
}

/// The best scale and offset of a group on its own, the scale not below zero and the offset not above.
fn fit_with_minimum(group: Group, grid: Integers) -> (f32, f32) {
    let [low, high] = group.ends();
    let (low, high) = (low.min(0.0), high.max(low));
    let mut best = (f32::INFINITY, 0.0, 0.0);
    for [below, above] in CUTS {
        let cut = (high - low) * CUT;
        let mut offset = (low + below * cut).min(0.0);
        let mut scale = ((high - above * cut - offset) / grid.1).max(0.0);
        for _ in 0..3 {
            let sums = group.sums(&grid, scale, offset);
            if sums.rr < best.0 {
                best = (sums.rr, scale, offset);
            }
            let (mut ds, mut doff) = sums.steps();
            if offset + doff > 0.0 {
                doff = -offset;
                ds = sums.scale_step_beside(doff);
            }
            (scale, offset) = ((scale + ds).max(0.0), offset + doff);
        }
    }
    (best.1, best.2)
}

/// The best scale of a group on its own.
fn fit_around_zero(group: Group, grid: Integers, shares: &Shares) -> f32 {
    let [low, high] = group.ends();
    let extreme = if -low > high { low } else { high };
    if extreme == 0.0 {
        return 0.0;
    }
    let mut best = (f32::INFINITY, 0.0);
    for end in [grid.0, grid.1] {
        for share in shares {
            let mut scale = extreme / (end * share);
            for _ in 0..2 {
                let sums = group.sums_around_zero(&grid, scale);
                if sums.rr < best.0 {
                    best = (sums.rr, scale);
                }
                scale += sums.scale_step();
            }
        }
    }
    best.1
}
