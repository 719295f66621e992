//! What products in integers ask of vector instructions.

use crate::simd::{
    kernel::ROWS,
    packed::{bytes, group_scales},
    vectors::Work,
};

/// Columns of a block: those that share a floating-point scale.
pub(super) const BLOCK: usize = 256;

/// Columns of a step, and steps of a block.
pub(super) const STEP: usize = 64;
pub(super) const STEPS: usize = BLOCK / STEP;

/// Sums side by side: four columns of a step each.
pub(super) const SUMS: usize = 16;

/// Pairs of columns of a step.
pub(super) const PAIRS: usize = STEP / 2;

/// Integer instructions of one level; as [`Vectors`](crate::simd::vectors::Vectors), a value is the proof that the
/// processor has them, and what is written with them is inlined into [`run`](Self::run).
pub(super) trait Integers: Copy + Send + Sync + 'static {
    /// A step's codes, a byte each, or [`PAIRS`] numbers of 16 bits.
    type Codes: Copy;
    /// [`SUMS`] integers of 32 bits.
    type Sums: Copy;
    /// [`SUMS`] f32.
    type Lanes: Copy;
    /// Scales of 8 groups.
    type Scales: Copy;

    /// Tokens whose sums with 4 rows fit the registers while integers are added: 1 to 6.
    const TOKENS: usize;

    /// Does `work` in a function that has the level's instructions.
    fn run<W: Work<Self>>(self, work: W);

    /// Asks for bytes that will be read soon.
    fn prefetch(self, bytes: &[u8]);

    /// A little-endian f16.
    fn half(self, bytes: [u8; 2]) -> f32;

    /// Bytes as they are.
    fn wide(self, bytes: &[u8; STEP]) -> Self::Codes;

    /// The same bytes for both halves of a step.
    fn twice(self, bytes: &[u8; STEP / 2]) -> Self::Codes;

    /// Bits moved up by as much as is said for each half of a step, or down where that is negative; those that leave
    /// their byte mean nothing.
    fn shift(self, codes: Self::Codes, up: [i32; 2]) -> Self::Codes;

    /// `a & mask` of each byte.
    fn and(self, a: Self::Codes, mask: u8) -> Self::Codes;

    /// `a | b`.
    fn or(self, a: Self::Codes, b: Self::Codes) -> Self::Codes;

    /// What four blocks begin with whose head is d, dmin and the packed scales and minima of 8 groups.
    #[inline(always)]
    fn heads(self, heads: [&[u8; 16]; ROWS], x_scale: f32) -> [Head<Self, Self::Scales>; ROWS] {
        [
            head(self, heads[0], x_scale),
            head(self, heads[1], x_scale),
            head(self, heads[2], x_scale),
            head(self, heads[3], x_scale),
        ]
    }

    /// Scales of 8 groups.
    fn scales(self, bytes: [u8; 8]) -> Self::Scales;

    /// Signed ones.
    fn signed_scales(self, bytes: [u8; 8]) -> Self::Scales;

    /// Each pair's scale, in groups of 32 columns: two groups a step, from `2 · step` on.
    fn of_32(self, scales: Self::Scales, step: usize) -> Self::Codes;

    /// Each pair's scale, in groups of 16 columns: four groups a step, from `4 · step` on, for steps 0 and 1.
    fn of_16(self, scales: Self::Scales, step: usize) -> Self::Codes;

    /// `a[2i] · x[2i] + a[2i + 1] · x[2i + 1]` in 16 bits, which hold it, for `a` of at most 7 bits.
    fn pairs(self, a: Self::Codes, x: &[i8; STEP]) -> Self::Codes;

    /// `a − b` in 16 bits.
    fn minus(self, a: Self::Codes, b: &[i16; PAIRS]) -> Self::Codes;

    /// The even bytes, and the odd ones, each less `centre` and times its pair's scale, in 16 bits.
    fn products(self, codes: Self::Codes, centre: u8, scales: Self::Codes) -> [[i16; PAIRS]; 2];

    /// 16-bit numbers.
    fn load(self, numbers: &[i16; PAIRS]) -> Self::Codes;

    /// Zeros.
    fn zero(self) -> Self::Sums;

    /// `sums[i] + a[2i] · b[2i] + a[2i + 1] · b[2i + 1]` of 16-bit numbers, of which the lower 32 bits.
    fn add_pairs(self, a: Self::Codes, b: Self::Codes, sums: Self::Sums) -> Self::Sums;

    /// `256 · high + low`, of which the lower 32 bits.
    fn join(self, high: Self::Sums, low: Self::Sums) -> Self::Sums;

    /// Zeros.
    fn zeros(self) -> Self::Lanes;

    /// The same number in every lane.
    fn splat(self, x: f32) -> Self::Lanes;

    /// Numbers in their order.
    fn lanes(self, numbers: &[f32; SUMS]) -> Self::Lanes;

    /// `sums · scale + lanes`, the sums rounded to f32 before.
    fn add_scaled(self, sums: Self::Sums, scale: Self::Lanes, lanes: Self::Lanes) -> Self::Lanes;

    /// `factor` times each byte.
    fn minima(self, bytes: &[u8; SUMS], factor: f32) -> [f32; SUMS];

    /// `a · b + lanes`.
    fn add_products(self, a: Self::Lanes, b: &[f32; SUMS], lanes: Self::Lanes) -> Self::Lanes;

    /// The sum of each one's lanes.
    fn sum4(self, lanes: [Self::Lanes; ROWS]) -> [f32; ROWS];
}

/// What a block of a row has besides its codes, as one token meets it.
#[derive(Clone, Copy)]
pub(super) struct Head<V: Integers, S> {
    /// What its steps share.
    pub(super) shared: S,
    /// d times the step of x, in every lane.
    pub(super) scale: V::Lanes,
    /// `−dmin · minimum` of each group.
    pub(super) minima: V::Lanes,
}

/// A block's head of d, dmin and the packed scales and minima of 8 groups.
#[inline(always)]
fn head<V: Integers>(v: V, head: &[u8; 16], x_scale: f32) -> Head<V, V::Scales> {
    let (scales, minima) = group_scales(bytes(head, 4));
    let (d, dmin) = (v.half(*bytes(head, 0)), v.half(*bytes(head, 2)));
    Head {
        shared: v.scales(scales),
        scale: v.splat(d * x_scale),
        minima: v.lanes(&v.minima(&first_half(minima), -dmin)),
    }
}

/// 8 bytes, and zeros.
#[inline(always)]
pub(super) fn first_half(eight: [u8; 8]) -> [u8; SUMS] {
    u128::from(u64::from_le_bytes(eight)).to_le_bytes()
}

/// For each pair of a step, which bytes of 8 numbers of 16 bits it takes, with `columns` columns a group.
pub(super) const fn pattern(columns: usize, step: usize) -> [u8; STEP] {
    let mut pattern = [0; STEP];
    let mut i = 0;
    while i < STEP {
        let group = (step * STEP + i) / columns;
        #[expect(clippy::cast_possible_truncation, reason = "below 16")]
        let byte = (2 * group + i % 2) as u8;
        pattern[i] = byte;
        i += 1;
    }
    pattern
}

/// [`pattern`] for groups of 32 columns, of which there are 8 in a block.
pub(super) const OF_32: [[u8; STEP]; 4] = [
    pattern(32, 0),
    pattern(32, 1),
    pattern(32, 2),
    pattern(32, 3),
];

/// [`pattern`] for groups of 16 columns, of which there are 8 in half a block.
pub(super) const OF_16: [[u8; STEP]; 2] = [pattern(16, 0), pattern(16, 1)];
