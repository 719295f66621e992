//! Mistakes become errors that name what was wrong, nothing panics, and the GPU works afterwards.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod support;

use rwkv_gpu::{
    Binding, BufferKind, Dispatch, Error, OpenOptions, Readback, Shader, StagedCopy, Staging,
};
use support::{DOUBLE, check_usable, filled, open, shader};

/// Checks that `result` is an error of one line that holds each of `parts`.
#[track_caller]
fn check<T>(result: Result<T, Error>, kind: fn(&Error) -> bool, parts: &[&str]) {
    let Err(error) = result else {
        panic!("no error; wanted {parts:?}");
    };
    let line = error.to_string();
    assert!(kind(&error) && !line.contains('\n'), "{error:?}");
    for part in parts {
        assert!(line.contains(part), "{line} lacks {part}");
    }
}

fn rejected(error: &Error) -> bool {
    matches!(error, Error::Rejected { .. })
}

fn over_limit(error: &Error) -> bool {
    matches!(error, Error::OverLimit { .. })
}

static NO_WGSL: Shader = shader("broken-syntax", "fn main( {", &[]);
static NO_TYPE: Shader = shader(
    "broken-types",
    "@compute @workgroup_size(1) fn main() { let x: f32 = 1u; }",
    &[],
);
static NO_MAIN: Shader = shader(
    "broken-entry",
    "@compute @workgroup_size(1) fn other() {}",
    &[],
);
/// A binding that the reflection does not know of.
static OTHER_SLOTS: Shader = shader(
    "broken-slots",
    "@group(3) @binding(7) var<storage, read_write> z: array<u32>;
    @compute @workgroup_size(1) fn main() { z[0] = 1u; }",
    &[],
);

#[test]
fn shaders_that_do_not_compile() {
    for checks in [false, true] {
        let gpu = open(&OpenOptions {
            checks,
            ..OpenOptions::default()
        });
        for shader in [&NO_WGSL, &NO_TYPE, &NO_MAIN, &OTHER_SLOTS] {
            // The second time it must not come from the cache.
            for _ in 0..2 {
                check(
                    gpu.pipeline(shader, &[]),
                    rejected,
                    &["kernel", shader.name],
                );
            }
            check_usable(&gpu);
        }
        for factor in [-1.0, 1e30, f64::NAN] {
            let made = gpu.pipeline(&DOUBLE, &[("FACTOR", factor)]);
            check(made, rejected, &["kernel double"]);
        }
        check_usable(&gpu);
    }
}

#[test]
fn bindings_that_do_not_fit() {
    let gpu = open(&OpenOptions::default());
    let pipeline = gpu.pipeline(&DOUBLE, &[]).unwrap();
    let x = filled(&gpu, &[0; 512]);
    let uniform = gpu.buffer(BufferKind::Uniform, "uniform", 64).unwrap();
    let range = |offset, size| Binding {
        buffer: &x,
        offset,
        size,
    };
    let whole = Binding::from(&x);
    let limit = gpu.capabilities().limits.binding_bytes;
    let row = |group, bindings: &[Binding<'_>], kind, part| {
        check(gpu.bind(&pipeline, group, bindings), kind, &[part]);
    };
    row(0, &[], rejected, "group 0 has 2 slots, 0 buffers");
    row(0, &[whole], rejected, "group 0 has 2 slots, 1 buffers");
    row(0, &[whole; 3], rejected, "group 0 has 2 slots, 3 buffers");
    row(1, &[], rejected, "group 1 has 0 slots");
    row(u32::MAX, &[], rejected, "has 0 slots");
    row(
        0,
        &[whole, Binding::from(&uniform)],
        rejected,
        "kernel double",
    );
    row(0, &[whole, range(4, None)], rejected, "kernel double");
    row(0, &[whole, range(512, None)], rejected, "kernel double");
    row(0, &[whole, range(0, Some(1024))], rejected, "kernel double");
    let last = range(u64::MAX - 255, Some(256));
    row(0, &[whole, last], rejected, "kernel double");
    let large = range(0, Some(limit + 1));
    row(
        0,
        &[whole, large],
        over_limit,
        "binding `y` of kernel double",
    );
    check_usable(&gpu);
}

#[test]
fn buffers_past_the_limit() {
    let gpu = open(&OpenOptions::default());
    let limit = gpu.capabilities().limits.buffer_bytes;
    for bytes in [limit.saturating_add(1), u64::MAX - 3, u64::MAX] {
        for kind in [
            BufferKind::Storage,
            BufferKind::Uniform,
            BufferKind::Readback,
        ] {
            check(
                gpu.buffer(kind, "huge", bytes),
                over_limit,
                &["`huge`", &limit.to_string()],
            );
        }
        check(Readback::new(&gpu, "huge", bytes), over_limit, &["huge"]);
    }
    check_usable(&gpu);
}

#[test]
fn writes_out_of_range() {
    let gpu = open(&OpenOptions::default());
    let buffer = filled(&gpu, &[7; 16]);
    for (offset, bytes) in [
        (0, 20),
        (16, 4),
        (20, 0),
        (u64::MAX - 3, 4),
        (u64::MAX, 0),
        (2, 4),
        (0, 3),
    ] {
        check(
            gpu.write(&buffer, offset, &vec![1; bytes]),
            rejected,
            &["write", "a buffer of 16"],
        );
    }
    gpu.write(&buffer, 16, &[]).unwrap();
    assert_eq!(support::contents(&gpu, &buffer, 16), [7; 16]);
    check_usable(&gpu);
}

#[test]
fn submissions_that_do_not_validate() {
    let gpu = open(&OpenOptions::default());
    let (x, y) = (filled(&gpu, &[0; 64]), filled(&gpu, &[0; 64]));
    let pipeline = gpu.pipeline(&DOUBLE, &[]).unwrap();
    let bind = |x, y| {
        gpu.bind(&pipeline, 0, &[Binding::from(x), Binding::from(y)])
            .unwrap()
    };
    let dispatch = |groups, grid| Dispatch {
        pipeline: pipeline.clone(),
        groups,
        grid,
    };
    let limit = gpu.capabilities().limits.workgroups;
    let rows = [
        dispatch(vec![], [1, 1, 1]),
        dispatch(vec![bind(&x, &y)], [1, limit + 1, 1]),
        // One buffer both read and written.
        dispatch(vec![bind(&x, &x)], [1, 1, 1]),
    ];
    for row in rows {
        let mut recorder = gpu.recorder("test");
        recorder.dispatch([&row]);
        check(recorder.submit(), rejected, &["a submission"]);
        check_usable(&gpu);
    }
    for (from, to, bytes) in [
        (0, 0, 68),
        (64, 0, 4),
        (0, u64::MAX - 3, 4),
        (2, 0, 4),
        (0, 0, 3),
    ] {
        let mut recorder = gpu.recorder("test");
        recorder.copy((&x, from), (&y, to), bytes);
        check(recorder.submit(), rejected, &["a submission"]);
    }
    let mut recorder = gpu.recorder("test");
    recorder.clear(&x, 60, 8);
    check(recorder.submit(), rejected, &["a submission"]);
    // Grids without workgroups are left out, whatever is bound.
    let mut recorder = gpu.recorder("test");
    recorder.dispatch([&dispatch(vec![], [0, 1, 1]), &dispatch(vec![], [1, 1, 0])]);
    gpu.wait(&recorder.submit().unwrap()).unwrap();
    check_usable(&gpu);
}

#[test]
fn reading_more_than_there_is() {
    let gpu = open(&OpenOptions::default());
    let x = filled(&gpu, &[5; 64]);
    let readback = Readback::new(&gpu, "small", 32).unwrap();
    assert_eq!(readback.capacity(), 32);
    let read = |bytes| {
        let mut recorder = gpu.recorder("test");
        recorder.read(&x, 0, 32, &readback);
        let submission = recorder.submit().unwrap();
        readback.view(&gpu, &submission, bytes, <[u8]>::to_vec)
    };
    for bytes in [33, 64, u64::MAX - 3, u64::MAX] {
        check(
            read(bytes),
            rejected,
            &["reading results back", "a readback buffer of 32"],
        );
        // The same readback serves again.
        assert_eq!(read(32).unwrap(), [5; 32]);
    }
    let mut recorder = gpu.recorder("test");
    recorder.read(&x, 0, 64, &readback);
    check(recorder.submit(), rejected, &["a submission"]);
    check_usable(&gpu);
}

/// A fault that nobody asked about is reported by the next wait, which must leave the readback usable.
#[test]
fn a_readback_survives_a_fault() {
    let gpu = open(&OpenOptions::default());
    let x = filled(&gpu, &[5; 32]);
    let readback = Readback::new(&gpu, "result", 32).unwrap();
    let record = || {
        let mut recorder = gpu.recorder("test");
        recorder.read(&x, 0, 32, &readback);
        recorder.submit()
    };
    let submission = record().unwrap();
    // Past wgpu's own check, and outside of any error scope.
    gpu.queue().write_buffer(x.raw().unwrap(), 64, &[0; 4]);
    let failed = readback.view(&gpu, &submission, 32, <[u8]>::to_vec);
    check(failed, rejected, &["an earlier operation"]);
    let submission = record().unwrap();
    let again = readback.view(&gpu, &submission, 32, <[u8]>::to_vec);
    assert_eq!(again.unwrap(), [5; 32]);
    check_usable(&gpu);
}

/// What is planned takes no memory, is bound as the real thing would be, and does nothing.
#[test]
fn planned_buffers() {
    let gpu = open(&OpenOptions::default());
    let x = filled(&gpu, &[0; 256]);
    gpu.set_memory_limit(Some(0));
    let before = (gpu.memory().in_use, gpu.counts().buffers);
    let largest = gpu.capabilities().limits.buffer_bytes;
    let plan = gpu.planning();
    let planned = plan.buffer(BufferKind::Storage, "planned", 255).unwrap();
    let other = plan.buffer(BufferKind::Storage, "planned", 255).unwrap();
    assert_eq!(planned.size(), 256);
    assert!(planned == planned.clone() && planned != other);
    let large = plan.buffer(BufferKind::Storage, "planned", largest.saturating_add(4));
    check(large, over_limit, &["buffer `planned`"]);
    let after = (gpu.memory().in_use, gpu.counts().buffers);
    assert_eq!(after, before);
    gpu.set_memory_limit(None);

    // Pipelines are those of the GPU itself.
    let pipeline = plan.pipeline(&DOUBLE, &[]).unwrap();
    let bind = |bindings: &[Binding<'_>]| plan.bind(&pipeline, 0, bindings);
    let slot = Binding::from(&planned);
    check(bind(&[slot]), rejected, &["group 0 has 2 slots, 1 buffers"]);
    for (offset, size) in [(4, None), (0, Some(512)), (256, Some(4))] {
        let outside = Binding {
            offset,
            size,
            ..slot
        };
        check(
            bind(&[Binding::from(&x), outside]),
            rejected,
            &["binding `y`"],
        );
    }
    let group = bind(&[Binding::from(&x), slot]).unwrap();
    let dispatch = Dispatch {
        pipeline: pipeline.clone(),
        groups: vec![group],
        grid: [1; 3],
    };
    let readback = Readback::new(&gpu, "result", 256).unwrap();
    let uses: [&dyn Fn(&mut rwkv_gpu::Recorder); 5] = [
        &|recorder| recorder.dispatch([&dispatch]),
        &|recorder| recorder.copy((&planned, 0), (&x, 0), 4),
        &|recorder| recorder.copy((&x, 0), (&planned, 0), 4),
        &|recorder| recorder.clear(&planned, 0, 4),
        &|recorder| recorder.read(&planned, 0, 4, &readback),
    ];
    for used in uses {
        let mut recorder = gpu.recorder("test");
        used(&mut recorder);
        check(recorder.submit(), rejected, &["only planned"]);
    }
    check(gpu.write(&planned, 0, &[0; 4]), rejected, &["only planned"]);
    let mut staging = Staging::new(&gpu, 256).unwrap();
    let copy = StagedCopy {
        from: 0,
        to: &planned,
        offset: 0,
        bytes: 4,
    };
    check(staging.submit(&gpu, &[copy]), rejected, &["only planned"]);
    assert!(staging.piece(0..256).is_ok());
    check_usable(&gpu);
}
