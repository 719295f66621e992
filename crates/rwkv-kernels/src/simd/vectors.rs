//! What the kernels ask of vector instructions.

use crate::formats::{Lanes, Table};

/// Columns that are expanded at a time.
pub(super) const BLOCK: usize = 32;

/// What is done with vector instructions. Its [`run`](Self::run) must be `#[inline(always)]`.
pub(super) trait Work<V> {
    /// Does it.
    fn run(self, v: V);
}

/// Vector instructions of one level.
///
/// A value is a token of the level: it is only made where the processor has the instructions, so that its methods are
/// safe. All of them, and what is written with them, must be inlined into a function that enables the level's features
/// ([`run`](Self::run)): else each would be a call.
pub(super) trait Vectors: Copy + Send + Sync + 'static {
    /// A register of f32.
    type Lanes: Copy;
    /// [`BLOCK`] f32.
    type Values: Copy;
    /// [`BLOCK`] bytes.
    type Bytes: Copy;

    /// Registers that make [`BLOCK`] f32.
    const REGISTERS: usize;

    /// Tokens whose sums with 4 rows fit the registers.
    const TOKENS: usize;

    /// Does `work` in a function that has the level's instructions.
    fn run<W: Work<Self>>(self, work: W);

    /// Asks for bytes that will be read soon; may do nothing.
    fn prefetch(self, bytes: &[u8]);

    /// Zeros.
    fn zero(self) -> Self::Lanes;

    /// The given number of a block's registers.
    fn lanes(self, block: &[f32; BLOCK], register: usize) -> Self::Lanes;

    /// The inverse of [`lanes`](Self::lanes).
    fn store_lanes(self, lanes: Self::Lanes, block: &mut [f32; BLOCK], register: usize);

    /// The same number in every lane.
    fn splat(self, x: f32) -> Self::Lanes;

    /// `a · b`.
    fn multiply(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;

    /// `a · b + c`, rounded once.
    fn multiply_add(self, a: Self::Lanes, b: Self::Lanes, c: Self::Lanes) -> Self::Lanes;

    /// The sum of each register's lanes.
    fn sum4(self, lanes: [Self::Lanes; 4]) -> [f32; 4];

    /// Adds the products of a block to `sums`, register by register in order.
    fn add_products(self, w: Self::Values, x: &[f32; BLOCK], sums: Self::Lanes) -> Self::Lanes;

    /// Writes a block.
    fn store(self, values: Self::Values, block: &mut [f32; BLOCK]);

    /// A little-endian f16.
    fn half(self, bytes: [u8; 2]) -> f32;

    /// Four of them.
    fn half4(self, bytes: [[u8; 2]; 4]) -> [f32; 4];

    /// Little-endian f32.
    fn f32(self, bytes: &[u8; 128]) -> Self::Values;

    /// Little-endian f16.
    fn f16(self, bytes: &[u8; 64]) -> Self::Values;

    /// Little-endian bfloat16.
    fn bf16(self, bytes: &[u8; 64]) -> Self::Values;

    /// Bytes as they are.
    fn bytes(self, bytes: &[u8; 32]) -> Self::Bytes;

    /// The low halves of 16 bytes, then the high ones.
    fn halves(self, bytes: &[u8; 16]) -> Self::Bytes;

    /// The low half of the first byte, its high half, the low half of the second, and so on.
    fn pairs(self, bytes: &[u8; 16]) -> Self::Bytes;

    /// Bits `shift` and up of each byte, as many as `mask` has. `shift` is at most 7.
    fn field(self, bytes: Self::Bytes, shift: u32, mask: u8) -> Self::Bytes;

    /// Each byte shifted up, where no bit of one is lost: `bytes` has only bits below `8 − BY`.
    fn up<const BY: i32>(self, bytes: Self::Bytes) -> Self::Bytes;

    /// `a | b`.
    fn or(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;

    /// Bit i of 4 bytes as bit 4 of byte i.
    fn fifth_bits(self, bits: [u8; 4]) -> Self::Bytes;

    /// `a − b` of each byte.
    fn minus(self, a: Self::Bytes, b: u8) -> Self::Bytes;

    /// `scale · q` of signed bytes, each half of the block with its own.
    fn signed(self, q: Self::Bytes, scale: [f32; 2]) -> Self::Values;

    /// `scale · q + offset`, rounded once, each half of the block with its own.
    fn unsigned(self, q: Self::Bytes, scale: [f32; 2], offset: [f32; 2]) -> Self::Values;

    /// `scale · q + offset`, rounded once, of the low halves of 16 bytes and then the high ones.
    fn halves_values(self, bytes: &[u8; 16], scale: f32, offset: f32) -> Self::Values;

    /// `scale · q + offset`, rounded once, of the low halves of 32 bytes, and of the high ones, each with their own.
    fn nibbles(self, bytes: &[u8; 32], scale: [f32; 2], offset: [f32; 2]) -> [Self::Values; 2];

    /// `scale · table[q]` for q below 16.
    fn lookup(self, q: Self::Bytes, table: &[f32; 16], scale: f32) -> Self::Values;

    /// Each byte times `factor`.
    fn scales(self, bytes: [u8; 8], factor: f32) -> [f32; 8];

    /// Each signed byte times `factor`.
    fn signed_scales(self, bytes: [u8; 8], factor: f32) -> [f32; 8];

    /// [`Table::by_cells`] of each of `y`.
    #[inline(always)]
    fn nearest(self, table: &Table, y: &Lanes) -> Lanes {
        y.map(|y| table.by_cells(y))
    }
}
