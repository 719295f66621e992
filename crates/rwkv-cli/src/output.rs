//! Writing results.

use std::io::ErrorKind;

/// Whether the reader of our output went away, which is no error: `rwkv-cli … | head`.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let of = |e: &std::io::Error| e.kind() == ErrorKind::BrokenPipe;
    error
        .chain()
        .any(|cause| cause.downcast_ref::<std::io::Error>().is_some_and(of))
}

/// `n` with a unit of 1024s.
pub(crate) fn bytes(n: u64) -> String {
    indicatif::BinaryBytes(n).to_string()
}
