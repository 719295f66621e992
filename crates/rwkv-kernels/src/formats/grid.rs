//! Grids of numbers that codes stand for, and the nearest of them, many at a time.

#![allow(
    clippy::inline_always,
    reason = "searches are compiled for several sets of instructions, with all that is in them"
)]

use super::lanes::{Lanes, lanes};
use crate::simd::Lookup;

/// The numbers that codes stand for, before scale and offset.
pub(super) trait Grid {
    /// The nearest for each of `y`, or all but the nearest.
    fn nearest(&self, v: impl Lookup, y: &Lanes) -> Lanes;

    /// The lowest and the highest.
    fn ends(&self) -> [f32; 2];
}

/// The integers from the first to the second; both are below 2²².
#[derive(Clone, Copy)]
pub(super) struct Integers(pub(super) f32, pub(super) f32);

impl Grid for Integers {
    #[inline(always)]
    fn nearest(&self, _: impl Lookup, y: &Lanes) -> Lanes {
        lanes(|i| round(within(y[i], self.0, self.1)))
    }

    fn ends(&self) -> [f32; 2] {
        [self.0, self.1]
    }
}

/// 16 rising numbers.
pub(crate) struct Table {
    values: [f32; 16],
    /// Half-way from each to the next.
    halves: [f32; 16],
    /// What lies between the first and the last number is cut into 255 cells, so narrow that no two halves are in one:
    /// the code at each one's lower end, and the number nearest to its middle.
    cells: [u8; 256],
    nearest: [f32; 256],
    cells_per_one: f32,
    /// For each number but the first, the largest y for which [`by_cells`](Self::by_cells) finds a lower one.
    steps: [f32; 16],
    /// The same as a search tree: the node at i has those at 2 i and 2 i + 1 below it, and the root is at 1.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        allow(dead_code, reason = "others have cells alone")
    )]
    tree: [f32; 16],
}

impl Table {
    pub(super) const fn new(values: &[f32; 16]) -> Self {
        let mut halves = [f32::INFINITY; 16];
        let mut i = 0;
        while i < 15 {
            halves[i] = f32::midpoint(values[i], values[i + 1]);
            i += 1;
        }
        let (first, last) = (values[0], values[15]);
        let cell = (last - first) / 255.0;
        let (mut cells, mut nearest) = ([0; 256], [0.0; 256]);
        let (mut i, mut low, mut middle) = (0, 0, 0);
        while i < 256 {
            // A hair more than half, as the index below is rounded.
            while first + (i as f32 - 0.501) * cell > halves[low] {
                low += 1;
            }
            while first + i as f32 * cell > halves[middle] {
                middle += 1;
            }
            #[allow(clippy::cast_possible_truncation, reason = "below 16")]
            {
                cells[i] = low as u8;
            }
            nearest[i] = values[middle];
            i += 1;
        }
        let mut table = Self {
            values: *values,
            halves,
            cells,
            nearest,
            cells_per_one: 1.0 / cell,
            steps: [f32::NEG_INFINITY; 16],
            tree: [0.0; 16],
        };
        let mut i = 1;
        while i < 16 {
            table.steps[i] = table.last_below(values[i], values[i - 1]);
            i += 1;
        }
        let mut node = 1usize;
        while node < 16 {
            // The lowest level has the odd steps, the one above it 2, 6, 10 and 14.
            let level = node.ilog2();
            let step = (2 * (node - (1 << level)) + 1) << (3 - level);
            table.tree[node] = table.steps[step];
            node += 1;
        }
        table
    }

    /// The largest y whose number is below `number`; that of `low` is.
    const fn last_below(&self, number: f32, low: f32) -> f32 {
        let (mut low, mut high) = (rank(low), rank(number));
        while low + 1 < high {
            let middle = i32::midpoint(low, high);
            if self.by_cells(of_rank(middle)) < number {
                low = middle;
            } else {
                high = middle;
            }
        }
        of_rank(low)
    }

    /// The cell that `y` is in, or the first or last.
    #[inline(always)]
    const fn cell(&self, y: f32) -> u8 {
        byte(within(
            (y - self.values[0]) * self.cells_per_one,
            0.0,
            255.0,
        ))
    }

    /// The number nearest to the middle of the cell that `y` is in.
    #[inline(always)]
    pub(crate) const fn by_cells(&self, y: f32) -> f32 {
        self.nearest[self.cell(y) as usize]
    }

    /// The numbers that [`by_cells`](Self::by_cells) finds.
    #[cfg(target_arch = "x86_64")]
    pub(crate) const fn values(&self) -> &[f32; 16] {
        &self.values
    }

    /// It finds the number at i or a later one for what is above the step at i; the first has none.
    #[cfg(target_arch = "x86_64")]
    pub(crate) const fn steps(&self) -> &[f32; 16] {
        &self.steps
    }

    /// The steps as a search tree: from the node at i, the root at 1, it is on to 2 i, or to 2 i + 1 for what is above its
    /// step, and after four of them at 16 + the number's place.
    #[cfg(target_arch = "x86_64")]
    pub(crate) const fn tree(&self) -> &[f32; 16] {
        &self.tree
    }

    /// The code whose number is nearest to `y`.
    #[inline]
    pub(super) fn code(&self, y: f32) -> u8 {
        let low = self.cells[usize::from(self.cell(y))];
        low + u8::from(y > self.halves[usize::from(low & 15)])
    }
}

/// Numbers without a fraction in the order of f32.
const fn rank(x: f32) -> i32 {
    let bits = x.to_bits().cast_signed();
    if bits < 0 { i32::MIN - bits } else { bits }
}

/// The inverse of [`rank`].
const fn of_rank(rank: i32) -> f32 {
    let bits = if rank < 0 { i32::MIN - rank } else { rank };
    f32::from_bits(bits.cast_unsigned())
}

impl Grid for Table {
    #[inline(always)]
    fn nearest(&self, v: impl Lookup, y: &Lanes) -> Lanes {
        v.nearest(self, y)
    }

    fn ends(&self) -> [f32; 2] {
        [self.values[0], self.nearest[255]]
    }
}

/// Adding it to |x| < 2²² leaves no bits for a fraction, and the integer nearest to x (halves to even) in the lowest.
/// Unlike `round_ties_even`, that needs no instruction past SSE2, and no conversion for the code.
const SHIFT: f32 = 12_582_912.0;

/// The nearest integer of |x| < 2²².
#[inline(always)]
pub(super) const fn round(x: f32) -> f32 {
    x + SHIFT - SHIFT
}

/// The nearest integer of −128 ≤ x ≤ 255 as a byte, in two's complement.
#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "the lowest byte is meant")]
pub(super) const fn byte(x: f32) -> u8 {
    (x + SHIFT).to_bits() as u8
}

/// `x` cut to `low ..= high`; one instruction each, as NaN does not occur.
#[inline(always)]
pub(super) const fn within(x: f32, low: f32, high: f32) -> f32 {
    let x = if x < high { x } else { high };
    if x > low { x } else { low }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        formats::{
            codebook::{NF4, SF4},
            iq4_nl,
        },
        simd::{Search, Simd, search},
    };

    struct Nearest<'a>(&'a Table, &'a Lanes, &'a mut Lanes);

    impl Search for Nearest<'_> {
        #[inline(always)]
        fn run(self, v: impl Lookup) {
            *self.2 = v.nearest(self.0, self.1);
        }
    }

    /// At the steps themselves too, where a search tree and cells could differ.
    #[test]
    fn every_level_finds_the_same() {
        for numbers in [NF4, SF4, iq4_nl::VALUES] {
            let table = Table::new(&numbers);
            let about = table.steps.iter().skip(1).flat_map(|x| {
                let rank = rank(*x);
                (rank - 3..=rank + 3).map(of_rank)
            });
            let far = [0.0, -0.0, 1e-30, -1e-30, 1e6, -1e6, 3e38, -3e38];
            let even = (-400..400i16).map(|i| f32::from(i) / 333.0 * numbers[15]);
            let mut y: Vec<f32> = about.chain(far).chain(even).collect();
            y.resize(y.len().next_multiple_of(16), 0.0);
            for level in Simd::ALL.into_iter().filter(|level| level.is_available()) {
                for y in y.as_chunks::<16>().0 {
                    let mut found = [f32::NAN; 16];
                    search(level, Nearest(&table, y, &mut found));
                    let found = found.map(f32::to_bits);
                    let want = y.map(|y| table.by_cells(y).to_bits());
                    assert_eq!(found, want, "{level}: {y:?}");
                }
            }
        }
    }
}
