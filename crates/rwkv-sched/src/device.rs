//! Choosing where a model runs.

use crate::Result;
use rwkv_gpu::{Gpu, OpenOptions, Selector};
use std::path::PathBuf;

/// Where a model runs.
#[derive(Clone, Debug)]
pub enum Device {
    /// The CPU executor.
    Cpu,
    /// A GPU.
    Gpu(Gpu),
}

/// How to open a device.
#[derive(Clone, Debug, Default)]
pub struct DeviceOptions {
    /// What is compiled for a GPU is kept here: see [`OpenOptions::cache_dir`].
    pub cache_dir: Option<PathBuf>,
    /// Bytes that may be in use on a GPU at a time: see [`OpenOptions::memory_limit`].
    pub memory_limit: Option<u64>,
}

/// An opened device, and what to tell the user of the choice.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The device.
    pub device: Device,
    /// Why it is the CPU although nobody asked for it.
    pub fallback: Option<String>,
}

impl Device {
    /// Opens `auto`, `cpu`, an adapter's index or part of its name. `auto` takes the best GPU, and the CPU executor
    /// where there is none (a software adapter counts as none: it is far slower).
    ///
    /// # Errors
    /// A named adapter that cannot be opened, or an environment variable that is not understood.
    pub fn open(name: &str) -> Result<Opened> {
        Self::open_with(name, DeviceOptions::default())
    }

    /// As [`open`](Self::open), with a say in more.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub fn open_with(name: &str, options: DeviceOptions) -> Result<Opened> {
        if name.trim().eq_ignore_ascii_case("cpu") {
            return Ok(Opened {
                device: Self::Cpu,
                fallback: None,
            });
        }
        let selector: Selector = name.parse()?;
        let options = OpenOptions {
            cache_dir: options.cache_dir,
            memory_limit: options.memory_limit,
            ..OpenOptions::from_env()?
        };
        match Gpu::open(&selector, &options) {
            Ok(gpu) => Ok(Opened {
                device: Self::Gpu(gpu),
                fallback: None,
            }),
            Err(rwkv_gpu::Error::NoAdapter { refused, .. }) if selector == Selector::Auto => {
                let reasons: Vec<_> = refused
                    .iter()
                    .map(|(name, why)| format!("{name}: {why}"))
                    .collect();
                let reason = if reasons.is_empty() {
                    "no driver".to_owned()
                } else {
                    reasons.join("; ")
                };
                Ok(Opened {
                    device: Self::Cpu,
                    fallback: Some(format!("no GPU found ({reason})")),
                })
            }
            Err(error) => Err(error.into()),
        }
    }
}
