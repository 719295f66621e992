//! Grids of numbers that codes stand for, and the nearest of them, many at a time.

#![allow(
    clippy::inline_always,
    reason = "searches are compiled for several sets of instructions, with all that is in them"
)]

/// What is worked on at a time: loops over arrays of this length become vector instructions.
pub(super) const LANES: usize = 8;

/// The numbers that codes stand for, before scale and offset.
pub(super) trait Grid {
    /// The nearest for each of `y`, or all but the nearest.
    fn nearest(&self, y: [f32; LANES]) -> [f32; LANES];

    /// The lowest and the highest.
    fn ends(&self) -> [f32; 2];
}

/// The integers from the first to the second; both are below 2²².
#[derive(Clone, Copy)]
pub(super) struct Integers(pub(super) f32, pub(super) f32);

impl Grid for Integers {
    #[inline(always)]
    fn nearest(&self, y: [f32; LANES]) -> [f32; LANES] {
        let mut q = [0.0; LANES];
        for i in 0..LANES {
            q[i] = round(within(y[i], self.0, self.1));
        }
        q
    }

    fn ends(&self) -> [f32; 2] {
        [self.0, self.1]
    }
}

/// 16 rising numbers.
pub(super) struct Table {
    first: f32,
    /// Half-way from each to the next.
    halves: [f32; 16],
    /// What lies between the first and the last number is cut into 255 cells, so narrow that no two halves are in one:
    /// the code at each one's lower end, and the number nearest to its middle.
    cells: [u8; 256],
    nearest: [f32; 256],
    cells_per_one: f32,
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
        Self {
            first,
            halves,
            cells,
            nearest,
            cells_per_one: 1.0 / cell,
        }
    }

    /// The cell that `y` is in, or the first or last.
    #[inline(always)]
    fn cell(&self, y: f32) -> f32 {
        within((y - self.first) * self.cells_per_one, 0.0, 255.0)
    }

    /// The code whose number is nearest to `y`.
    #[inline]
    pub(super) fn code(&self, y: f32) -> u8 {
        let low = self.cells[usize::from(byte(self.cell(y)))];
        low + u8::from(y > self.halves[usize::from(low & 15)])
    }
}

impl Grid for Table {
    #[inline(always)]
    fn nearest(&self, y: [f32; LANES]) -> [f32; LANES] {
        let mut cells = [0.0; LANES];
        for i in 0..LANES {
            cells[i] = self.cell(y[i]);
        }
        let mut nearest = [0.0; LANES];
        for i in 0..LANES {
            nearest[i] = self.nearest[usize::from(byte(cells[i]))];
        }
        nearest
    }

    fn ends(&self) -> [f32; 2] {
        [self.first, self.nearest[255]]
    }
}

/// Adding it to |x| < 2²² leaves no bits for a fraction, and the integer nearest to x (halves to even) in the lowest.
/// Unlike `round_ties_even`, that needs no instruction past SSE2, and no conversion for the code.
const SHIFT: f32 = 12_582_912.0;

/// The nearest integer of |x| < 2²².
#[inline(always)]
pub(super) fn round(x: f32) -> f32 {
    x + SHIFT - SHIFT
}

/// The nearest integer of −128 ≤ x ≤ 255 as a byte, in two's complement.
#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "the lowest byte is meant")]
pub(super) fn byte(x: f32) -> u8 {
    (x + SHIFT).to_bits() as u8
}

/// `x` cut to `low ..= high`; one instruction each, as NaN does not occur.
#[inline(always)]
pub(super) fn within(x: f32, low: f32, high: f32) -> f32 {
    let x = if x < high { x } else { high };
    if x > low { x } else { low }
}
