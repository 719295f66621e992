//! Bytes in use are counted, and a limit refuses what passes it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod support;

use rwkv_gpu::{Binding, BufferKind, Error, Gpu, OpenOptions, Readback};
use support::{DOUBLE, check_usable, filled, open};

#[track_caller]
fn refused(gpu: &Gpu, bytes: u64, in_use: u64, limit: u64) {
    let error = gpu
        .buffer(BufferKind::Storage, "att.key", bytes)
        .unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("`att.key`") && !text.contains('\n'),
        "{text:?}"
    );
    match error {
        Error::OutOfMemory {
            bytes: Some(wanted),
            in_use: used,
            limit: Some(set),
            ..
        } => assert_eq!(
            [wanted, used, set],
            [bytes.max(4).next_multiple_of(4), in_use, limit]
        ),
        other => panic!("{other}"),
    }
}

#[test]
fn a_limit_is_kept() {
    let gpu = open(&OpenOptions {
        memory_limit: Some(1000),
        ..OpenOptions::default()
    });
    let in_use = || gpu.memory().in_use;
    assert_eq!((in_use(), gpu.memory().limit), (0, Some(1000)));
    let first = gpu.buffer(BufferKind::Storage, "first", 598).unwrap();
    assert_eq!((first.size(), in_use()), (600, 600));
    refused(&gpu, 401, 600, 1000);
    assert_eq!(in_use(), 600);
    // Exactly what is left; every kind counts.
    let second = Readback::new(&gpu, "second", 400).unwrap();
    assert_eq!(gpu.memory().available(), Some(0));
    refused(&gpu, 1, 1000, 1000);
    drop(second);
    let shared = first.clone();
    drop(first);
    assert_eq!(in_use(), 600);
    drop(shared);
    assert_eq!(in_use(), 0);
    assert_eq!(gpu.memory().peak, 1000);
    // More than any adapter has, within no limit: nothing is counted of what was never made.
    gpu.set_memory_limit(None);
    let huge = gpu.capabilities().limits.buffer_bytes;
    for bytes in [huge, u64::MAX] {
        let made = gpu.buffer(BufferKind::Storage, "huge", bytes);
        let counted = made.as_ref().map_or(0, rwkv_gpu::Buffer::size);
        assert_eq!(in_use(), counted, "{made:?}");
    }
    assert_eq!(in_use(), 0);
    gpu.set_memory_limit(Some(0));
    refused(&gpu, 0, 0, 0);
    gpu.set_memory_limit(None);
    check_usable(&gpu);
}

/// A bind group keeps its buffers, and says so.
#[test]
fn bind_groups_keep_buffers() {
    let gpu = open(&OpenOptions::default());
    let pipeline = gpu.pipeline(&DOUBLE, &[]).unwrap();
    let (x, y) = (filled(&gpu, &[0; 64]), filled(&gpu, &[0; 128]));
    let group = gpu
        .bind(&pipeline, 0, &[Binding::from(&x), Binding::from(&y)])
        .unwrap();
    drop((x, y));
    let copy = group.clone();
    drop(group);
    assert_eq!(gpu.memory().in_use, 192);
    drop(copy);
    assert_eq!(gpu.memory().in_use, 0);
}

/// What the driver says that is free, where it says so, is no nonsense, and a limit is the smaller of both.
#[test]
fn what_the_driver_has() {
    let gpu = open(&OpenOptions::default());
    if let Some(free) = gpu.memory().free {
        assert!((1 << 20..1 << 50).contains(&free), "{free}");
    }
    if gpu.backend() == "vulkan" {
        assert!(gpu.memory().free.is_some());
    }
    gpu.set_memory_limit(Some(4096));
    let memory = gpu.memory();
    assert!(memory.is_limited());
    assert_eq!(memory.available(), Some(4096));
}

/// A device that is destroyed is reported by whatever comes next, and another one can be opened.
#[test]
fn a_lost_device() {
    let gpu = open(&OpenOptions::default());
    check_usable(&gpu);
    let buffer = filled(&gpu, &[0; 64]);
    gpu.lose();
    let lost = |result: Result<(), Error>| match result {
        Err(error @ Error::Lost { .. }) => {
            let text = error.to_string();
            assert!(!text.contains('\n'), "{text}");
        }
        other => panic!("{other:?}"),
    };
    lost(gpu.check());
    lost(gpu.buffer(BufferKind::Storage, "after", 64).map(drop));
    lost(gpu.recorder("after").submit().map(drop));
    lost(gpu.recorder("after").submit().and_then(|s| gpu.wait(&s)));
    // Nothing is read from it any more, but nothing panics either.
    let _ = gpu.write(&buffer, 0, &[1; 64]);
    drop(buffer);
    assert_eq!(gpu.memory().in_use, 0);
    drop(gpu);
    check_usable(&open(&OpenOptions::default()));
}
