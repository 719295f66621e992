//! Uploads arrive whole, however they are cut.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod support;

use rwkv_gpu::BufferKind;
use rwkv_mem::{Error, Upload};
use support::{contents, gpu};

/// More than an upload keeps in flight, in pieces of odd sizes.
#[test]
fn pieces() {
    let mut upload = Upload::new(gpu());
    let piece: Vec<u8> = (0..=250u8).cycle().take(5_000_004).collect();
    let buffer = gpu()
        .buffer(BufferKind::Storage, "target", piece.len() as u64 * 2)
        .unwrap();
    for round in 0..15 {
        let offset = (round % 2) * piece.len() as u64;
        upload.write(&buffer, offset, &piece).unwrap();
    }
    upload.flush().unwrap();
    assert_eq!(upload.total(), 15 * piece.len() as u64);
    let got = contents(gpu(), &buffer, 0, buffer.size());
    assert!(got == [&piece[..], &piece[..]].concat());
}

/// A write that does not fit is refused and not counted.
#[test]
fn past_the_end() {
    let mut upload = Upload::new(gpu());
    let buffer = gpu().buffer(BufferKind::Storage, "target", 16).unwrap();
    for (offset, bytes) in [(16, 4), (0, 20), (2, 4), (0, 3), (u64::MAX - 3, 4)] {
        let error = upload.write(&buffer, offset, &vec![1; bytes]).unwrap_err();
        assert!(matches!(error, Error::Rejected { .. }), "{error}");
    }
    assert_eq!(upload.total(), 0);
    upload.write(&buffer, 12, &[9; 4]).unwrap();
    upload.flush().unwrap();
    assert_eq!(contents(gpu(), &buffer, 12, 4), [9; 4]);
}
