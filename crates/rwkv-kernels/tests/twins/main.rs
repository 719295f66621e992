//! Every kernel against its CPU twin, on a real adapter: with and without subgroup operations, with and without
//! checks inside the shaders. Outputs and the padding of inputs are NaN beforehand, so that an element that was not
//! written, or a padding that leaked, cannot pass.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod activation;
mod batch;
mod blend;
mod blocks;
mod channel_mix;
mod csr;
mod embedding;
mod expansion;
mod functions;
mod gated_heads_halves;
mod heads;
mod linear;
mod map;
mod matmul;
mod matvec_shapes;
mod mix6;
mod noise;
mod norm_shift_halves;
mod norm_steps;
mod norms;
mod projections;
mod sampling;
mod setup;
mod shift;
mod sparse;
mod stream;
mod stream_tokens;
mod token_matmul;
mod tolerance;
mod wkv4;
mod wkv6;
mod wkv6_step;
mod wkv7;
mod wkv7_step;
