//! Uploads arrive whole, however they are cut.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod support;

use proptest::prelude::*;
use rwkv_gpu::BufferKind;
use rwkv_mem::{Error, Slab, Target, Upload};
use std::ops::Range;
use support::{contents, gpu, own_gpu};

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

/// More than one slab holds, after as many small ones as there may be, all of which are on their way.
#[test]
fn large_writes() {
    let mut upload = Upload::new(gpu());
    let small: Vec<u8> = (0..=252u8).cycle().take(1_500_000).collect();
    let large: Vec<u8> = (0..=250u8).cycle().take(40_000_004).collect();
    let size = (small.len() + large.len()) as u64;
    let buffer = gpu().buffer(BufferKind::Storage, "target", size).unwrap();
    for _ in 0..6 {
        upload.write(&buffer, 0, &small).unwrap();
    }
    upload.write(&buffer, small.len() as u64, &large).unwrap();
    upload.write(&buffer, 0, &small).unwrap();
    upload.flush().unwrap();
    assert!(contents(gpu(), &buffer, 0, size) == [small, large].concat());
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

/// A target, and whether the bytes that `fill` made are there afterwards.
type Wanted = (u64, Vec<u8>);

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 24, ..ProptestConfig::default() })]

    /// Targets of any sizes, written piece by piece in any order, many times over, arrive where they belong, and what is
    /// written through the queue in between keeps its place in that order.
    #[test]
    fn targets_arrive(
        rounds in prop::collection::vec(prop::collection::vec((0..3000u64, 1..700usize), 1..4), 1..12),
        seed in any::<u8>(),
    ) {
        let mut upload = Upload::new(gpu());
        let size = 4 * 4096 * 4;
        let buffer = gpu().buffer(BufferKind::Storage, "target", size).unwrap();
        let mut want = vec![0; usize::try_from(size).unwrap()];
        for (round, targets) in (0u8..).zip(rounds) {
            let byte = |i: usize| seed.wrapping_add(round).wrapping_mul(31).wrapping_add(i.to_le_bytes()[0]);
            let made: Vec<Wanted> = targets
                .into_iter()
                .map(|(at, units)| (at * 4, (0..units * 16).map(byte).collect()))
                .collect();
            let targets: Vec<_> = made
                .iter()
                .map(|(offset, bytes)| Target { buffer: &buffer, offset: *offset, bytes: bytes.len() as u64 })
                .collect();
            upload.fill(&targets, |slab| {
                for (index, (_, bytes)) in made.iter().enumerate().rev() {
                    for start in (0..bytes.len()).step_by(48).rev() {
                        let end = bytes.len().min(start + 48);
                        let mut piece = slab.piece(index, start..end)?;
                        // In two parts.
                        piece.write(&bytes[start..start + 8])?;
                        piece.write(&bytes[start + 8..end])?;
                    }
                }
                Ok::<(), Error>(())
            }).unwrap();
            for (offset, bytes) in &made {
                let offset = usize::try_from(*offset).unwrap();
                want[offset..offset + bytes.len()].copy_from_slice(bytes);
            }
            upload.write(&buffer, u64::from(round) * 64, &[round; 4]).unwrap();
            let at = usize::from(round) * 64;
            want[at..at + 4].fill(round);
        }
        upload.flush().unwrap();
        prop_assert!(contents(gpu(), &buffer, 0, size) == want);
    }
}

/// Steps that nobody waits for, a thousand times: each has its own bytes when it runs, whatever was recorded and never submitted
/// or filled in between, and memory is made for the first few alone.
#[test]
fn recorded_with_steps() {
    const STEPS: u32 = 1000;
    let gpu = &own_gpu();
    let mut upload = Upload::new(gpu);
    let input = gpu.buffer(BufferKind::Storage, "input", 128).unwrap();
    let log = gpu.buffer(BufferKind::Storage, "log", u64::from(STEPS) * 128);
    let log = log.unwrap();
    // Two targets, and what lies in the first one's slab before the second.
    let targets = [(64, 36), (0, 64)].map(|(offset, bytes)| Target {
        buffer: &input,
        offset,
        bytes,
    });
    let mut stagings = 0;
    for step in 0..STEPS {
        let write = |slab: &Slab<'_>| {
            slab.piece(1, 0..64)?
                .write(&step.to_le_bytes().repeat(16))?;
            slab.piece(0, 0..36)?
                .write(&(!step).to_le_bytes().repeat(9))
        };
        let mut recorder = gpu.recorder("step");
        let staged = upload.record(&mut recorder, &targets, write).unwrap();
        recorder.copy((&input, 0), (&log, u64::from(step) * 128), 128);
        let submission = recorder.submit().unwrap();
        upload.submitted(staged.unwrap(), &submission);
        match step % 100 {
            // A step that fails before it is submitted.
            40 => {
                let mut recorder = gpu.recorder("never submitted");
                let lost = upload.record(&mut recorder, &targets, |slab: &Slab<'_>| {
                    slab.piece(0, 0..36)?.write(&[9; 36])
                });
                drop(lost.unwrap());
            }
            80 => upload
                .fill(&targets, |slab| slab.piece(0, 0..36)?.write(&[8; 36]))
                .unwrap(),
            _ => {}
        }
        stagings = gpu.counts().stagings.max(stagings);
        if step == 10 {
            assert!(stagings <= 4, "{stagings}");
        }
    }
    // Another one for each that was lost.
    assert!(stagings <= 4 + 10, "{stagings}");
    let got = contents(gpu, &log, 0, u64::from(STEPS) * 128);
    for (step, got) in (0..STEPS).zip(got.chunks_exact(128)) {
        assert_eq!(got[..64], step.to_le_bytes().repeat(16), "{step}");
        assert_eq!(got[64..100], (!step).to_le_bytes().repeat(9), "{step}");
    }
}

/// What is refused while a slab is filled, and that the upload goes on afterwards as if nothing had been.
#[test]
fn failed_fills() {
    let mut upload = Upload::new(gpu());
    let buffer = gpu().buffer(BufferKind::Storage, "target", 64).unwrap();
    let target = |offset, bytes| Target {
        buffer: &buffer,
        offset,
        bytes,
    };
    let refused =
        |upload: &mut Upload, targets: &[Target<'_>], pieces: &[(usize, Range<usize>)]| {
            let mut held = Vec::new();
            let error = upload.fill(targets, |slab| {
                for (index, range) in pieces {
                    held.push(slab.piece(*index, range.clone())?.write(&[7; 16]));
                }
                Err(Error::Rejected {
                    what: "by the caller".to_owned(),
                    message: String::new(),
                })
            });
            (error.unwrap_err().to_string(), held)
        };
    // Past the end, crooked, too much at a time.
    for bad in [
        target(64, 16),
        target(2, 4),
        target(0, 6),
        target(u64::MAX - 3, 8),
    ] {
        let (error, _) = refused(&mut upload, &[bad], &[]);
        assert!(error.contains("do not fit a buffer of 64"), "{error}");
    }
    let large = gpu().buffer(BufferKind::Storage, "large", Upload::MOST as u64 + 16);
    let large = large.unwrap();
    let whole = Target {
        buffer: &large,
        offset: 0,
        bytes: large.size(),
    };
    let (error, _) = refused(&mut upload, &[whole], &[]);
    assert!(error.contains("at a time"), "{error}");
    // Pieces that are none, or the caller's own failure.
    for (pieces, part) in [
        (vec![(1, 0..16)], "no piece"),
        (vec![(0, 16..16)], "no piece"),
        (vec![(0, 16..48)], "no piece"),
        (vec![(0, 4..20)], "staging memory"),
        (vec![(0, 0..16)], "by the caller"),
    ] {
        let (error, _) = refused(&mut upload, &[target(0, 32)], &pieces);
        assert!(error.contains(part) && !error.contains('\n'), "{error}");
    }
    let (_, written) = refused(&mut upload, &[target(0, 32)], &[(0, 0..8)]);
    assert!(written[0].is_err(), "16 bytes for a piece of 8");
    assert_eq!(upload.total(), 0);
    upload
        .fill(&[target(16, 16)], |slab| {
            slab.piece(0, 0..16)?.write(&[5; 16])
        })
        .unwrap();
    upload.flush().unwrap();
    let got = contents(gpu(), &buffer, 0, 64);
    assert_eq!(got, [[0; 16], [5; 16], [0; 16], [0; 16]].concat());
    assert_eq!(upload.total(), 16);
}
