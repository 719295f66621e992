//! Finding adapters: listing, ranking, and choosing by `auto`, index or name.

use crate::{Error, Result, memory::BUDGET_PERCENT};
use parking_lot::Mutex;
use std::{fmt, str::FromStr};

/// Which adapter to open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Selector {
    /// The best GPU: discrete before integrated before virtual; never a software adapter.
    #[default]
    Auto,
    /// The adapter at this place of [`list_adapters`].
    Index(usize),
    /// The first adapter whose name contains this, in any case.
    Name(String),
}

impl FromStr for Selector {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        if text.is_empty() {
            let problem = "expected auto, cpu, a number or part of a name".to_owned();
            return Err(Error::BadSetting {
                name: "--device",
                value: text.to_owned(),
                problem,
            });
        }
        Ok(match text.parse() {
            _ if text.eq_ignore_ascii_case("auto") => Self::Auto,
            Ok(index) => Self::Index(index),
            Err(_) => Self::Name(text.to_owned()),
        })
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Index(index) => write!(f, "{index}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// What sort of processor an adapter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A GPU with memory of its own.
    Discrete,
    /// A GPU that shares the processor's memory.
    Integrated,
    /// A GPU lent by a hypervisor.
    Virtual,
    /// The driver does not say.
    Unknown,
    /// A driver that computes on the processor: slower than our own CPU executor.
    Software,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Discrete => "discrete GPU",
            Self::Integrated => "integrated GPU",
            Self::Virtual => "virtual GPU",
            Self::Unknown => "unknown",
            Self::Software => "software",
        })
    }
}

/// One adapter of this machine, not opened.
#[derive(Clone, Debug)]
pub struct AdapterSummary {
    /// Its place in the list, for [`Selector::Index`].
    pub index: usize,
    /// The adapter's name.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// The graphics interface it is reached through: `vulkan`, `metal`, `dx12` or `gl`.
    pub backend: String,
    /// The driver and its version.
    pub driver: String,
    /// Why it cannot be used, if it cannot.
    pub refused: Option<String>,
    /// What it offers.
    pub capabilities: crate::Capabilities,
}

/// Every adapter of this machine, the best first.
pub fn list_adapters() -> Vec<AdapterSummary> {
    candidates()
        .iter()
        .enumerate()
        .map(|(index, c)| c.summary(index))
        .collect()
}

/// The interfaces that are looked through, in turn, until one has an adapter: GL reaches the same hardware as the
/// others, more slowly and with fewer features.
const BACKENDS: [wgpu::Backends; 2] = [
    wgpu::Backends::VULKAN
        .union(wgpu::Backends::METAL)
        .union(wgpu::Backends::DX12),
    wgpu::Backends::GL,
];

/// The instance of these interfaces.
///
/// There is one for the life of the process: NVIDIA's driver corrupts its memory when threads create and destroy
/// instances at once (wgpu issue 5930).
fn instance(backends: wgpu::Backends) -> wgpu::Instance {
    static INSTANCES: Mutex<Vec<(wgpu::Backends, wgpu::Instance)>> = Mutex::new(Vec::new());
    let mut instances = INSTANCES.lock();
    if let Some((_, instance)) = instances.iter().find(|(of, _)| *of == backends) {
        return instance.clone();
    }
    let instance = new_instance(backends);
    instances.push((backends, instance.clone()));
    instance
}

/// An instance without validation: every size is checked on our side, and the indirect-call validation would cost a
/// barrier a dispatch. `WGPU_VALIDATION` and its like still switch it on for debugging.
fn new_instance(backends: wgpu::Backends) -> wgpu::Instance {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = backends;
    descriptor.flags = if cfg!(debug_assertions) {
        wgpu::InstanceFlags::VALIDATION
    } else {
        wgpu::InstanceFlags::empty()
    }
    .with_env();
    // Past these shares of the driver's budget a creation fails, which is survivable; elsewhere running out of
    // memory loses the device.
    descriptor.memory_budget_thresholds = wgpu::MemoryBudgetThresholds {
        for_resource_creation: Some(BUDGET_PERCENT),
        for_device_loss: None,
    };
    wgpu::Instance::new(descriptor)
}

/// An adapter that could be opened.
pub(crate) struct Candidate {
    pub(crate) adapter: wgpu::Adapter,
    pub(crate) info: wgpu::AdapterInfo,
    pub(crate) kind: Kind,
}

impl Candidate {
    fn summary(&self, index: usize) -> AdapterSummary {
        let features = crate::Hidden::default().features(&self.adapter);
        AdapterSummary {
            index,
            name: self.info.name.clone(),
            kind: self.kind,
            backend: self.info.backend.to_str().to_owned(),
            driver: self.driver(),
            refused: self.refused(),
            capabilities: crate::Capabilities::of(&self.adapter, features),
        }
    }

    /// The driver and its version.
    pub(crate) fn driver(&self) -> String {
        let text = format!("{} {}", self.info.driver, self.info.driver_info);
        text.trim().to_owned()
    }

    /// Why the kernels cannot run here: they need compute shaders and WebGPU's default limits.
    pub(crate) fn refused(&self) -> Option<String> {
        let downlevel = self.adapter.get_downlevel_capabilities();
        if !downlevel
            .flags
            .contains(wgpu::DownlevelFlags::COMPUTE_SHADERS)
        {
            return Some("no compute shaders".to_owned());
        }
        let (have, need) = (self.adapter.limits(), wgpu::Limits::defaults());
        let short = [
            (
                "storage buffers a shader",
                have.max_storage_buffers_per_shader_stage,
                need.max_storage_buffers_per_shader_stage,
            ),
            (
                "invocations a workgroup",
                have.max_compute_invocations_per_workgroup,
                256,
            ),
            (
                "bytes of workgroup memory",
                have.max_compute_workgroup_storage_size,
                16384,
            ),
            ("bind groups", have.max_bind_groups, 2),
        ];
        short
            .iter()
            .find(|(_, have, need)| have < need)
            .map(|(what, have, need)| format!("{have} {what}, where {need} are needed"))
    }
}

/// The adapters of this machine, best first.
pub(crate) fn candidates() -> Vec<Candidate> {
    let mut found: Vec<Candidate> = BACKENDS
        .into_iter()
        .map(|backends| pollster::block_on(instance(backends).enumerate_adapters(backends)))
        .find(|adapters| !adapters.is_empty())
        .unwrap_or_default()
        .into_iter()
        .map(|adapter| {
            let info = adapter.get_info();
            let kind = match info.device_type {
                wgpu::DeviceType::DiscreteGpu => Kind::Discrete,
                wgpu::DeviceType::IntegratedGpu => Kind::Integrated,
                wgpu::DeviceType::VirtualGpu => Kind::Virtual,
                wgpu::DeviceType::Other => Kind::Unknown,
                wgpu::DeviceType::Cpu => Kind::Software,
            };
            Candidate {
                adapter,
                info,
                kind,
            }
        })
        .collect();
    found.sort_by_key(|c| c.kind);
    found
}

/// Picks the adapter that `selector` means, or says why each was refused.
pub(crate) fn choose(candidates: Vec<Candidate>, selector: &Selector) -> Result<Candidate> {
    let mut refused = Vec::new();
    for (index, candidate) in candidates.into_iter().enumerate() {
        let reason = match selector {
            Selector::Auto if candidate.kind == Kind::Software => {
                Some("software, taken only when it is named".to_owned())
            }
            Selector::Index(wanted) if *wanted != index => Some(format!("is number {index}")),
            Selector::Name(part)
                if !candidate
                    .info
                    .name
                    .to_lowercase()
                    .contains(&part.to_lowercase()) =>
            {
                Some("has another name".to_owned())
            }
            _ => candidate.refused(),
        };
        match reason {
            None => return Ok(candidate),
            Some(reason) => refused.push((candidate.info.name, reason)),
        }
    }
    Err(Error::NoAdapter {
        wanted: selector.to_string(),
        refused,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors() {
        #[track_caller]
        fn check(text: &str, want: Option<&Selector>) {
            let got = text.parse::<Selector>().ok();
            assert_eq!(got.as_ref(), want, "{text:?}");
            if let Some(selector) = got {
                assert_eq!(
                    selector.to_string().parse::<Selector>().ok(),
                    Some(selector)
                );
            }
        }
        check("auto", Some(&Selector::Auto));
        check("AUTO", Some(&Selector::Auto));
        check("2", Some(&Selector::Index(2)));
        check("llvmpipe", Some(&Selector::Name("llvmpipe".to_owned())));
        check("  ", None);
    }
}
