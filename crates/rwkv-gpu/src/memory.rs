//! How much memory a GPU has, and how much of it is in use.
//!
//! What this crate made is counted exactly, buffer by buffer, and may be limited. What the adapter has comes from the
//! driver: on Vulkan from `VK_EXT_memory_budget`, or without it from the size of the heap.

use crate::Gpu;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// The memory of an opened GPU, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GpuMemory {
    /// Of the buffers that are alive, as they were asked for: what the driver adds between them is not in it.
    pub in_use: u64,
    /// The most that ever was in use at a time.
    pub peak: u64,
    /// What may be in use: [`OpenOptions::memory_limit`](crate::OpenOptions::memory_limit).
    pub limit: Option<u64>,
    /// What the driver would still give this program, other programs considered, where it says so.
    pub free: Option<u64>,
}

impl GpuMemory {
    /// What can still be taken: what is left of the limit, but no more than the driver has; none where neither is
    /// known.
    pub fn available(&self) -> Option<u64> {
        let left = self.limit.map(|limit| limit.saturating_sub(self.in_use));
        match (left, self.free) {
            (Some(left), Some(free)) => Some(left.min(free)),
            (left, free) => left.or(free),
        }
    }

    /// Whether the limit leaves less than the driver would give.
    pub fn is_limited(&self) -> bool {
        let left = self.limit.map(|limit| limit.saturating_sub(self.in_use));
        left.is_some_and(|left| self.free.is_none_or(|free| left < free))
    }
}

/// Counts the bytes of buffers, from any thread.
#[derive(Debug)]
pub(crate) struct Ledger {
    in_use: AtomicU64,
    peak: AtomicU64,
    /// [`u64::MAX`] is none.
    limit: AtomicU64,
}

/// The bytes of one buffer, given back when it is dropped. [`Share::made`] says that there is such a buffer.
#[derive(Debug)]
pub(crate) struct Share {
    bytes: u64,
    ledger: Arc<Ledger>,
}

impl Ledger {
    pub(crate) fn new(limit: Option<u64>) -> Self {
        Self {
            in_use: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            limit: AtomicU64::new(limit.unwrap_or(u64::MAX)),
        }
    }

    pub(crate) fn in_use(&self) -> u64 {
        self.in_use.load(Relaxed)
    }

    pub(crate) fn limit(&self) -> Option<u64> {
        Some(self.limit.load(Relaxed)).filter(|limit| *limit != u64::MAX)
    }

    /// Counts `bytes`, if the limit allows them; else says how many are in use.
    pub(crate) fn take(self: &Arc<Self>, bytes: u64) -> Result<Share, u64> {
        let limit = self.limit.load(Relaxed);
        let within = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= limit);
        self.in_use.fetch_update(Relaxed, Relaxed, within)?;
        Ok(Share {
            bytes,
            ledger: self.clone(),
        })
    }
}

impl Share {
    pub(crate) fn made(&self) {
        self.ledger.peak.fetch_max(self.ledger.in_use(), Relaxed);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.ledger.in_use.fetch_sub(self.bytes, Relaxed);
    }
}

impl Gpu {
    /// What is in use now, and what there is.
    pub fn memory(&self) -> GpuMemory {
        let ledger = self.ledger();
        GpuMemory {
            in_use: ledger.in_use(),
            peak: ledger.peak.load(Relaxed),
            limit: ledger.limit(),
            free: free_bytes(self.device(), ledger.in_use()),
        }
    }

    /// Limits what may be in use from here on, as [`OpenOptions::memory_limit`](crate::OpenOptions::memory_limit) does.
    /// What is in use stays, be it more.
    pub fn set_memory_limit(&self, limit: Option<u64>) {
        let limit = limit.unwrap_or(u64::MAX);
        self.ledger().limit.store(limit, Relaxed);
    }
}

/// The share of the driver's budget, in percent, past which a creation fails: see [`free_bytes`].
pub(crate) const BUDGET_PERCENT: u8 = 97;

/// What the largest heap of the device's own still has for this program, up to the share of its budget at which wgpu
/// stops. Without the extension, as if nobody else used it.
#[cfg(any(
    windows,
    target_os = "linux",
    target_os = "android",
    target_os = "freebsd"
))]
fn free_bytes(device: &wgpu::Device, in_use: u64) -> Option<u64> {
    use ash::vk;
    // SAFETY: the handles are used while `device` is alive, and nothing is destroyed.
    let device = unsafe { device.as_hal::<wgpu::hal::api::Vulkan>() }?;
    let (instance, physical) = (device.shared_instance(), device.raw_physical_device());
    let raw = instance.raw_instance();
    let budgets = instance.instance_api_version() >= vk::API_VERSION_1_1
        && device
            .enabled_device_extensions()
            .contains(&ash::ext::memory_budget::NAME);
    let mut budget = vk::PhysicalDeviceMemoryBudgetPropertiesEXT::default();
    let memory = if budgets {
        let mut both = vk::PhysicalDeviceMemoryProperties2::default().push_next(&mut budget);
        // SAFETY: the instance is of Vulkan 1.1 at least, and the device has the extension whose structure is chained.
        unsafe { raw.get_physical_device_memory_properties2(physical, &mut both) };
        both.memory_properties
    } else {
        // SAFETY: the physical device is one of this instance.
        unsafe { raw.get_physical_device_memory_properties(physical) }
    };
    let heaps = memory.memory_heaps_as_slice().iter().enumerate();
    let own = heaps.filter(|(_, heap)| heap.flags.contains(vk::MemoryHeapFlags::DEVICE_LOCAL));
    let (index, heap) = own.max_by_key(|(_, heap)| heap.size)?;
    let (whole, used) = if budgets {
        (
            *budget.heap_budget.get(index)?,
            *budget.heap_usage.get(index)?,
        )
    } else {
        (heap.size, in_use)
    };
    let usable = whole / 100 * u64::from(BUDGET_PERCENT);
    Some(usable.saturating_sub(used))
}

/// Metal and GL do not say.
#[cfg(not(any(
    windows,
    target_os = "linux",
    target_os = "android",
    target_os = "freebsd"
)))]
fn free_bytes(_: &wgpu::Device, _: u64) -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn available() {
        #[track_caller]
        fn check(in_use: u64, limit: Option<u64>, free: Option<u64>, want: Option<u64>) {
            let memory = GpuMemory {
                in_use,
                limit,
                free,
                ..GpuMemory::default()
            };
            assert_eq!(memory.available(), want);
            let limited = limit.is_some() && (free.is_none() || want < free);
            assert_eq!(memory.is_limited(), limited);
        }
        check(5, None, None, None);
        check(5, None, Some(7), Some(7));
        check(5, Some(6), None, Some(1));
        check(5, Some(4), None, Some(0));
        check(5, Some(6), Some(7), Some(1));
        check(5, Some(60), Some(7), Some(7));
    }

    proptest! {
        /// Whatever is taken and given back, the sum is right and never past the limit.
        #[test]
        fn adds_up(
            limit in prop::option::of(0..1000u64),
            steps in prop::collection::vec((prop::bool::ANY, prop_oneof![0..400u64, Just(u64::MAX)]), 0..40),
        ) {
            let ledger = Arc::new(Ledger::new(limit));
            let mut held: Vec<Share> = Vec::new();
            for (takes, bytes) in steps {
                let before = ledger.in_use();
                if !takes {
                    held.pop();
                } else if let Ok(share) = ledger.take(bytes) {
                    share.made();
                    held.push(share);
                } else {
                    let sum = before.checked_add(bytes);
                    prop_assert!(sum.is_none_or(|sum| sum > limit.unwrap_or(u64::MAX)));
                    prop_assert_eq!(ledger.in_use(), before);
                }
                prop_assert_eq!(ledger.in_use(), held.iter().map(|share| share.bytes).sum::<u64>());
                prop_assert!(limit.is_none_or(|limit| ledger.in_use() <= limit));
                prop_assert!(ledger.peak.load(Relaxed) >= ledger.in_use());
            }
            drop(held);
            prop_assert_eq!(ledger.in_use(), 0);
        }
    }
}
