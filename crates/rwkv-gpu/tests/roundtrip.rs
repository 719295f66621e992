//! Bytes come back as they were written.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod support;

use proptest::prelude::*;
use rwkv_gpu::{BufferKind, Gpu, OpenOptions, Readback};
use std::sync::OnceLock;
use support::{filled, open};

fn gpu() -> &'static Gpu {
    static GPU: OnceLock<Gpu> = OnceLock::new();
    GPU.get_or_init(|| open(&OpenOptions::default()))
}

/// What was read stays where it lies while the GPU goes on; nothing is copied there before it is let go of, and then again.
#[test]
fn left_where_it_lies() {
    let gpu = gpu();
    let readback = Readback::new(gpu, "read", 16).unwrap();
    let read = |byte: u8| {
        let mut recorder = gpu.recorder("left");
        recorder.read(&filled(gpu, &[byte; 16]), 0, 16, &readback);
        recorder.submit()
    };
    let mapped = readback.map(gpu, &read(3).unwrap(), 12).unwrap();
    assert!(read(4).is_err(), "copied to what is mapped");
    gpu.finish().unwrap();
    let elsewhere = std::thread::spawn(move || {
        assert_eq!(*mapped, [3; 12]);
    });
    elsewhere.join().unwrap();
    let again = readback.map(gpu, &read(5).unwrap(), 16).unwrap();
    assert_eq!(*again, [5; 16]);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Written, copied to another buffer, and read in any length up to all of it, twice through one readback.
    #[test]
    fn write_copy_read(mut bytes in prop::collection::vec(any::<u8>(), 1..5000), parts in 0.0..1.0f64) {
        let gpu = gpu();
        let wanted = bytes.len();
        bytes.resize(wanted.next_multiple_of(4), 0);
        let size = bytes.len() as u64;
        let buffer = gpu.buffer(BufferKind::Storage, "written", size).unwrap();
        // In two writes, cut anywhere.
        #[allow(clippy::cast_possible_truncation, reason = "a share of the length")]
        let cut = (parts * bytes.len() as f64) as usize / 4 * 4;
        gpu.write(&buffer, cut as u64, &bytes[cut..]).unwrap();
        gpu.write(&buffer, 0, &bytes[..cut]).unwrap();
        let copy = filled(gpu, &vec![0xaa; bytes.len() + 8]);
        let readback = Readback::new(gpu, "read", size + 8).unwrap();
        for shown in [wanted, cut, 0] {
            let mut recorder = gpu.recorder("round trip");
            recorder.copy((&buffer, 0), (&copy, 4), size);
            recorder.read(&copy, 4, size, &readback);
            let submission = recorder.submit().unwrap();
            let same = readback.view(gpu, &submission, shown as u64, |got| got == &bytes[..shown]);
            prop_assert!(same.unwrap());
        }
        // What lies around the copy is untouched, and clearing reaches no further than asked.
        let mut recorder = gpu.recorder("clear");
        recorder.clear(&copy, 4, size);
        recorder.read(&copy, 0, size + 8, &readback);
        let submission = recorder.submit().unwrap();
        let got = readback.view(gpu, &submission, size + 8, <[u8]>::to_vec).unwrap();
        prop_assert_eq!(&got[..4], &[0xaa; 4]);
        prop_assert!(got[4..bytes.len() + 4].iter().all(|b| *b == 0));
        prop_assert_eq!(&got[bytes.len() + 4..], &[0xaa; 4]);
    }

    /// New buffers are zero, whatever was freed before them.
    #[test]
    fn new_buffers_are_zero(bytes in 0u64..10_000) {
        let gpu = gpu();
        drop(filled(gpu, &[0xff; 16384]));
        let buffer = gpu.buffer(BufferKind::Storage, "new", bytes).unwrap();
        prop_assert_eq!(buffer.size(), bytes.max(4).next_multiple_of(4));
        let got = support::contents(gpu, &buffer, buffer.size());
        prop_assert!(got.iter().all(|b| *b == 0));
    }
}
