//! The weight formats against ggml's: what its blocks expand to, and the error of its encoders.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod data;
mod encoders;
mod golden;
mod pinned;
