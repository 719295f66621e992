//! The twins' fast path: the same operations with the processor's vector instructions, chosen at run time.
//!
//! Each function does what its namesake of [`ops`](crate::ops) does, within f32's rounding: weights expand to the same
//! numbers, activations stay f32, and only the order of sums differs (and whether a product is rounded before it is
//! added). The K formats on x86 are the exception (`integers/`): there x is rounded to 16 bits. For one level the order of
//! sums is the same whatever else is computed with them: the result of a token does not depend on the others, nor on the
//! number of threads.

#![allow(
    clippy::inline_always,
    reason = "what uses a level's instructions must be inlined into a function that enables them"
)]
#![allow(
    clippy::wildcard_imports,
    reason = "the processor's instructions, whose names say where they are from"
)]
#![allow(
    clippy::unused_self,
    reason = "a token proves that there are the instructions"
)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod functions;
mod heads;
#[cfg(target_arch = "x86_64")]
mod integers;
mod kernel;
mod level;
#[cfg(target_arch = "aarch64")]
mod neon;
mod packed;
mod product;
mod recurrence;
mod search;
mod shares;
mod vectors;

pub use functions::apply;
pub use heads::{bonus, keys7, norm};
pub use level::Simd;
pub use product::matmul;
pub use recurrence::{wkv6, wkv7};
pub(crate) use search::{Lookup, Search, search};
