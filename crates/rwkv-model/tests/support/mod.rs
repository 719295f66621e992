//! What the tests of whole models share.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests fail by panicking"
)]
#![allow(dead_code, reason = "each test file uses its part")]

use rwkv_model::ModelFile;
use rwkv_sched::{Device, Executor, LoadOptions, load};
use std::path::{Path, PathBuf};

/// The adapter that tests run on: `RWKV_DEVICE`, or the best GPU, or any adapter at all (a software one in CI).
///
/// # Panics
/// Without an adapter: a test that needs one does not pass by skipping.
pub(crate) fn gpu() -> Device {
    let named = std::env::var("RWKV_DEVICE").unwrap_or_else(|_| "auto".to_owned());
    for name in [named.as_str(), "0"] {
        if let Ok(opened) = Device::open(name)
            && matches!(opened.device, Device::Gpu(_))
        {
            return opened.device;
        }
    }
    panic!(
        "this test needs a Vulkan, Metal, DX12 or GL adapter; scripts/test installs a software one where it can"
    );
}

/// Files beside the project's folder, where a development machine has them.
pub(crate) fn shared(path: &str) -> Option<PathBuf> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../../shared")
        .join(path);
    file.exists().then_some(file)
}

/// A file of this crate.
pub(crate) fn own(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The model at `path` on `device`.
pub(crate) fn open(path: &Path, device: &Device) -> Box<dyn Executor> {
    let model = ModelFile::open(path)
        .expect("the model opens")
        .model()
        .expect("its tensors fit");
    load(&model, device, &LoadOptions::default(), &mut |_| {}).expect("it loads")
}
