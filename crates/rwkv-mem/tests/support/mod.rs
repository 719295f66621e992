//! The adapter under test, and reading buffers back.

#![allow(dead_code, reason = "each test file uses a part")]

use rwkv_gpu::{Buffer, Gpu, OpenOptions, Readback, Selector, list_adapters};
use std::sync::OnceLock;

/// The adapter of `RWKV_DEVICE`, or the best one there is, be it a software one; opened once.
pub(crate) fn gpu() -> &'static Gpu {
    static GPU: OnceLock<Gpu> = OnceLock::new();
    GPU.get_or_init(own_gpu)
}

/// The same opened anew: what it counts is a test's own.
pub(crate) fn own_gpu() -> Gpu {
    Gpu::open(&selector(), &OpenOptions::default())
        .unwrap_or_else(|e| panic!("these tests need a GPU adapter: {e}"))
}

fn selector() -> Selector {
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

/// `bytes` of `buffer` from `offset`.
pub(crate) fn contents(gpu: &Gpu, buffer: &Buffer, offset: u64, bytes: u64) -> Vec<u8> {
    let readback = Readback::new(gpu, "test", bytes).unwrap();
    let mut recorder = gpu.recorder("test");
    recorder.read(buffer, offset, bytes, &readback);
    let submission = recorder.submit().unwrap();
    readback
        .view(gpu, &submission, bytes, <[u8]>::to_vec)
        .unwrap()
}
