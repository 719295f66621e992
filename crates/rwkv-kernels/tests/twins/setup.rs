//! The adapter under test, opened in four ways.

use rwkv_gpu::{Dispatch, Gpu, Hidden, OpenOptions, Selector, list_adapters};
use rwkv_kernels::Kernels;
use rwkv_mem::Upload;
use std::{env, sync::OnceLock};

/// One way of running kernels.
pub(crate) struct Setup {
    /// For messages.
    pub(crate) name: &'static str,
    pub(crate) kernels: Kernels,
}

impl Setup {
    pub(crate) fn gpu(&self) -> &Gpu {
        self.kernels.gpu()
    }

    /// Whether subgroups have as many lanes, or more.
    pub(crate) fn has_eight_lanes(&self) -> bool {
        let lanes = self.gpu().capabilities().subgroups;
        lanes.is_some_and(|lanes| lanes.min >= 8)
    }

    /// Runs `dispatches` to their end.
    pub(crate) fn run<'a>(&self, dispatches: impl IntoIterator<Item = &'a Dispatch>) {
        let mut recorder = self.gpu().recorder("test");
        recorder.dispatch(dispatches);
        let submission = recorder.submit().unwrap();
        self.gpu().wait(&submission).unwrap();
    }

    pub(crate) fn upload(&self) -> Upload {
        Upload::new(self.gpu())
    }
}

/// The adapter with and without subgroup operations, with and without checks and what drivers need not keep, opened once.
pub(crate) fn setups() -> &'static [Setup] {
    static SETUPS: OnceLock<Vec<Setup>> = OnceLock::new();
    SETUPS.get_or_init(|| {
        let ways = [
            ("subgroup, checked", false, true),
            ("subgroup, unchecked", false, false),
            ("plain, checked", true, true),
            ("plain, unchecked", true, false),
        ];
        ways.map(|(name, subgroup, checks)| {
            let hidden = Hidden {
                subgroup,
                subnormal_halves: checks,
                ..Hidden::default()
            };
            let gpu = Gpu::open(
                &selector(),
                &OpenOptions {
                    hidden,
                    checks,
                    ..OpenOptions::default()
                },
            )
            .unwrap_or_else(|e| panic!("these tests need a GPU adapter: {e}"));
            let kernels = Kernels::new(&gpu).unwrap();
            Setup { name, kernels }
        })
        .into()
    })
}

/// `RWKV_DEVICE`, or the best adapter there is, be it a software one.
fn selector() -> Selector {
    if let Ok(device) = env::var("RWKV_DEVICE") {
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

/// `count` cases a property, or what `PROPTEST_CASES` says.
pub(crate) fn cases(count: u32) -> proptest::test_runner::Config {
    let config = proptest::test_runner::Config {
        failure_persistence: None,
        ..Default::default()
    };
    if env::var_os("PROPTEST_CASES").is_some() {
        config
    } else {
        proptest::test_runner::Config {
            cases: count,
            ..config
        }
    }
}
