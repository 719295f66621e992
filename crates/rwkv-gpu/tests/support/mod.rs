//! The adapter under test, and a kernel small enough to read.

#![allow(dead_code, reason = "each test file uses a part")]

use rwkv_gpu::{
    Access, Binding, Buffer, BufferKind, Dispatch, Gpu, OpenOptions, Readback, Requirement,
    Selector, Shader, ShaderBinding, Submission, list_adapters,
};

/// `RWKV_DEVICE`, or the best adapter there is, be it a software one.
pub(crate) fn selector() -> Selector {
    if let Ok(device) = std::env::var("RWKV_DEVICE") {
        return device
            .parse()
            .unwrap_or_else(|e| panic!("RWKV_DEVICE: {e}"));
    }
    let adapters = list_adapters();
    let usable = adapters.iter().find(|a| a.refused.is_none());
    let best = usable.unwrap_or_else(|| {
        panic!(
            "these tests need a GPU adapter, and none of {} is usable; Mesa's lavapipe is one for any processor",
            adapters.len()
        )
    });
    Selector::Index(best.index)
}

/// The adapter under test, opened.
pub(crate) fn open(options: &OpenOptions) -> Gpu {
    Gpu::open(&selector(), options)
        .unwrap_or_else(|e| panic!("these tests need a GPU adapter: {e}"))
}

const SLOTS: [ShaderBinding; 2] = [
    ShaderBinding {
        group: 0,
        binding: 0,
        access: Access::Read,
        name: "x",
    },
    ShaderBinding {
        group: 0,
        binding: 1,
        access: Access::ReadWrite,
        name: "y",
    },
];

/// `source` with the slots of [`DOUBLE`].
pub(crate) const fn shader(
    name: &'static str,
    source: &'static str,
    requires: &'static [Requirement],
) -> Shader {
    Shader {
        name,
        source,
        bindings: &SLOTS,
        workgroup_size: [64, 1, 1],
        workgroup_bytes: 0,
        overrides: &["FACTOR"],
        requires,
    }
}

/// `y = FACTOR x`.
pub(crate) static DOUBLE: Shader = shader(
    "double",
    "override FACTOR: u32 = 2u;
    @group(0) @binding(0) var<storage, read> x: array<u32>;
    @group(0) @binding(1) var<storage, read_write> y: array<u32>;
    @compute @workgroup_size(64)
    fn main(@builtin(global_invocation_id) at: vec3<u32>) {
        if at.x < arrayLength(&x) {
            y[at.x] = FACTOR * x[at.x];
        }
    }",
    &[],
);

/// A buffer that holds `bytes`, a multiple of 4.
pub(crate) fn filled(gpu: &Gpu, bytes: &[u8]) -> Buffer {
    let buffer = gpu
        .buffer(BufferKind::Storage, "test", bytes.len() as u64)
        .unwrap();
    gpu.write(&buffer, 0, bytes).unwrap();
    buffer
}

/// The first `bytes` of `buffer`.
pub(crate) fn contents(gpu: &Gpu, buffer: &Buffer, bytes: u64) -> Vec<u8> {
    let readback = Readback::new(gpu, "test", bytes).unwrap();
    let mut recorder = gpu.recorder("test");
    recorder.read(buffer, 0, bytes.next_multiple_of(4), &readback);
    let submission: Submission = recorder.submit().unwrap();
    readback
        .view(gpu, &submission, bytes, <[u8]>::to_vec)
        .unwrap()
}

/// Checks that `gpu` still works: doubles some numbers.
#[track_caller]
pub(crate) fn check_usable(gpu: &Gpu) {
    let x: Vec<u8> = (0..40u32).flat_map(u32::to_le_bytes).collect();
    let want: Vec<u8> = (0..40u32).flat_map(|n| (2 * n).to_le_bytes()).collect();
    let (from, to) = (filled(gpu, &x), filled(gpu, &vec![0xff; x.len()]));
    let pipeline = gpu.pipeline(&DOUBLE, &[]).unwrap();
    let group = gpu
        .bind(&pipeline, 0, &[Binding::from(&from), Binding::from(&to)])
        .unwrap();
    let dispatch = Dispatch {
        pipeline,
        groups: vec![group],
        grid: [1, 1, 1],
    };
    let mut recorder = gpu.recorder("test");
    recorder.dispatch([&dispatch]);
    let submission = recorder.submit().unwrap();
    gpu.wait(&submission).unwrap();
    assert_eq!(contents(gpu, &to, x.len() as u64), want);
    gpu.check().unwrap();
}
