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
        Self::open_with_cache(name, None)
    }

    /// As [`open`](Self::open); what is compiled for a GPU is kept in `cache_dir`, see [`OpenOptions::cache_dir`].
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub fn open_with_cache(name: &str, cache_dir: Option<PathBuf>) -> Result<Opened> {
        if name.trim().eq_ignore_ascii_case("cpu") {
            return Ok(Opened {
                device: Self::Cpu,
                fallback: None,
            });
        }
        let selector: Selector = name.parse()?;
        let options = OpenOptions {
            cache_dir,
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
