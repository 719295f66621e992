//! The program as a person runs it: what goes to stdout, what to stderr, and which exit code.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "tests fail by panicking"
)]

mod about;
mod generate;
mod mistakes;
mod numbers;
mod program;
mod tuned;
mod writing;
