//! Products of the K formats in integers.
//!
//! Codes and their groups' scales are small integers, and x is rounded to 16 bits in blocks of 256 columns, as many as
//! share a floating-point scale in these formats: so a block's sum is exact, whatever its order, and is scaled once. One
//! token meets codes as bytes, x in two halves; many tokens meet codes times scales, in 16 bits. Both add the same
//! integers to the same sums, so that a token's bits depend on the level and the number of columns alone.
//!
//! x counts in steps that are powers of two, of which the block's largest magnitude has 16,319 to 32,639 (fewer below 2^-86,
//! since steps end at 2^-100): a term is off by no more than half a step times its weight.

mod avx2;
mod avx512;
mod coded;
mod instructions;
mod kernel;
mod product;
mod rounded;
#[cfg(test)]
mod tests;

pub(super) use product::{has, matmul};
