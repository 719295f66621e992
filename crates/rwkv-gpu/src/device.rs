//! An opened adapter.

use crate::{
    Capabilities, Error, Hidden, Kind, Pipeline, Result, Selector, adapter,
    cache_folder::CacheFolder, counters::Counters, error::one_line, memory::Ledger,
    pipeline::PipelineKey, pipeline_cache::PipelineCache, subnormal,
};
use dashmap::DashMap;
use parking_lot::Mutex;
use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
};

/// How to open an adapter.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// Features to pretend that the adapter lacks.
    pub hidden: Hidden,
    /// Bounds, loop and division checks inside shaders, and zeroed workgroup memory.
    pub checks: bool,
    /// Where compiled pipelines, and what else is found out about the adapter, are kept for the next run; without it no
    /// file is read or written. It is made when there is something to keep. Nobody but the user may be able to write
    /// there: what it holds is given to the driver.
    pub cache_dir: Option<PathBuf>,
    /// Bytes of buffers that may be alive at a time, all together; without it, what the driver gives. A buffer past it
    /// fails with [`Error::OutOfMemory`] before the driver is asked, and nothing else changes.
    pub memory_limit: Option<u64>,
}

impl OpenOptions {
    /// Reads `RWKV_HIDE` and `RWKV_CHECKS`; debug builds check by default, release builds do not. Nothing is kept.
    ///
    /// # Errors
    /// [`Error::BadSetting`] for a value that is not understood.
    pub fn from_env() -> Result<Self> {
        let variable = |name| std::env::var(name).unwrap_or_default();
        let checks = match variable("RWKV_CHECKS").as_str() {
            "" => cfg!(debug_assertions),
            "0" => false,
            "1" => true,
            other => {
                let problem = "expected 0 or 1".to_owned();
                return Err(Error::BadSetting {
                    name: "RWKV_CHECKS",
                    value: other.to_owned(),
                    problem,
                });
            }
        };
        Ok(Self {
            hidden: variable("RWKV_HIDE").parse()?,
            checks,
            ..Self::default()
        })
    }
}

/// An opened GPU: a device, its queue and its compiled pipelines. Cloning shares it.
#[derive(Clone)]
pub struct Gpu {
    inner: Arc<Inner>,
    planning: bool,
}

struct Inner {
    /// Ends before the device does: a device that is destroyed meanwhile is lost.
    open: Arc<()>,
    device: wgpu::Device,
    queue: wgpu::Queue,
    name: String,
    backend: &'static str,
    driver: String,
    kind: Kind,
    capabilities: Capabilities,
    subnormal_halves: bool,
    checks: bool,
    pipelines: DashMap<PipelineKey, Arc<Pipeline>>,
    cache_folder: Option<CacheFolder>,
    pipeline_cache: Option<PipelineCache>,
    counters: Counters,
    faults: Arc<Faults>,
    ledger: Arc<Ledger>,
}

/// What the driver reported outside of any error scope.
#[derive(Default)]
struct Faults {
    lost: OnceLock<String>,
    uncaptured: Mutex<Option<String>>,
}

/// Bytes of a block that the allocator takes from the driver for several buffers, the smallest that it knows: matrices of
/// more than half a block leave gaps that nothing fits, a model's all of the same size. Larger buffers get an allocation
/// of their own (docs/performance.md, "Memory hints").
const MEMORY_BLOCK: u64 = 4 << 20;

/// Held while a device is created: Vulkan's loader, up to August 2026, adds it to a list of the whole process that it does not
/// lock (Vulkan-Loader issue 2018).
static OPENING: Mutex<()> = Mutex::new(());

impl Gpu {
    /// Opens the adapter that `selector` means, with its full limits and every useful feature it has.
    ///
    /// # Errors
    /// [`Error::NoAdapter`] says why each adapter was refused; [`Error::OpenFailed`] has the driver's words.
    pub fn open(selector: &Selector, options: &OpenOptions) -> Result<Self> {
        let candidate = adapter::choose(adapter::candidates(), selector)?;
        let name = candidate.info.name.clone();
        let features = options.hidden.features(&candidate.adapter);
        // SAFETY: the only experimental feature requested is the cooperative matrix, whose hazard is undefined
        // behaviour for shapes that the adapter does not report; kernels choose from `Capabilities` alone.
        let experimental_features = unsafe { wgpu::ExperimentalFeatures::enabled() };
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("rwkv"),
            required_features: features,
            required_limits: candidate.adapter.limits(),
            experimental_features,
            memory_hints: wgpu::MemoryHints::Manual {
                suballocated_device_memory_block_size: MEMORY_BLOCK..MEMORY_BLOCK,
            },
            trace: wgpu::Trace::Off,
        };
        let opening = OPENING.lock();
        let (device, queue) = pollster::block_on(candidate.adapter.request_device(&descriptor))
            .map_err(|e| Error::OpenFailed {
                adapter: name.clone(),
                reason: one_line(&e.to_string()),
            })?;
        drop(opening);
        let faults = Arc::new(Faults::default());
        let ledger = Arc::new(Ledger::new(options.memory_limit));
        let open = Arc::new(());
        let (seen, in_use) = (faults.clone(), Arc::downgrade(&open));
        device.set_device_lost_callback(move |reason, message| {
            // A device that we drop ourselves is "destroyed", which is no fault.
            if reason != wgpu::DeviceLostReason::Destroyed || in_use.strong_count() > 0 {
                let _ = seen.lost.set(one_line(&message));
            }
        });
        let seen = faults.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            let message = one_line(&error.to_string());
            tracing::error!("{message}");
            seen.uncaptured.lock().get_or_insert(message);
        }));
        tracing::debug!(
            adapter = name,
            backend = candidate.info.backend.to_str(),
            ?features,
            "opened"
        );
        let capabilities = Capabilities::of(&candidate.adapter, features);
        let what = || "unpacking subnormal halves".to_owned();
        let kept = |device: &wgpu::Device| subnormal::halves_kept(device, &queue);
        // An adapter that fails at it is taken for one that does not keep them.
        let subnormal_halves = !options.hidden.subnormal_halves
            && scoped(&device, &faults, &ledger, &what, kept).unwrap_or(false);
        let cache_folder = options.cache_dir.as_deref();
        let cache_folder = cache_folder.map(|folder| CacheFolder::new(folder, &candidate.info));
        let pipeline_cache = cache_folder
            .as_ref()
            .filter(|_| capabilities.pipeline_cache)
            .and_then(|folder| {
                PipelineCache::open(folder, |create| {
                    let what = || "a pipeline cache".to_owned();
                    scoped(&device, &faults, &ledger, &what, create)
                })
            });
        Ok(Self {
            inner: Arc::new(Inner {
                open,
                device,
                queue,
                name,
                backend: candidate.info.backend.to_str(),
                driver: candidate.driver(),
                kind: candidate.kind,
                capabilities,
                subnormal_halves,
                checks: options.checks,
                pipelines: DashMap::new(),
                cache_folder,
                pipeline_cache,
                counters: Counters::default(),
                faults,
                ledger,
            }),
            planning: false,
        })
    }

    /// The same GPU, on which nothing is allocated: its buffers have sizes and no memory. They can be bound to pipelines, so
    /// that what would be launched, and what memory that would take, is known and can be compiled before any of it is there.
    #[must_use]
    pub fn planning(&self) -> Self {
        Self {
            planning: true,
            ..self.clone()
        }
    }

    pub(crate) fn is_planning(&self) -> bool {
        self.planning
    }

    /// The same device, said to be a discrete GPU that offers `capabilities`: which kernels would be chosen there, and how
    /// they would be bound, can be seen without compiling them. For tests.
    #[doc(hidden)]
    #[must_use]
    pub fn pretending(&self, capabilities: Capabilities) -> Self {
        let Inner {
            open,
            device,
            queue,
            name,
            backend,
            driver,
            subnormal_halves,
            checks,
            faults,
            ledger,
            ..
        } = &*self.inner;
        Self {
            inner: Arc::new(Inner {
                open: open.clone(),
                device: device.clone(),
                queue: queue.clone(),
                name: name.clone(),
                backend,
                driver: driver.clone(),
                kind: Kind::Discrete,
                capabilities,
                subnormal_halves: *subnormal_halves,
                checks: *checks,
                pipelines: DashMap::new(),
                cache_folder: None,
                pipeline_cache: None,
                counters: Counters::default(),
                faults: faults.clone(),
                ledger: ledger.clone(),
            }),
            planning: self.planning,
        }
    }

    /// Destroys the device, as a driver does that was reset. For tests.
    #[doc(hidden)]
    pub fn lose(&self) {
        self.inner.device.destroy();
        // What is lost is told when somebody waits; nobody may come to.
        let _ = self.inner.device.poll(wgpu::PollType::Poll);
    }

    /// The adapter's name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The graphics interface it is reached through: `vulkan`, `metal`, `dx12` or `gl`.
    pub fn backend(&self) -> &'static str {
        self.inner.backend
    }

    /// The driver and its version.
    pub fn driver(&self) -> &str {
        &self.inner.driver
    }

    /// What sort of processor it is.
    pub fn kind(&self) -> Kind {
        self.inner.kind
    }

    /// What it offers to kernels.
    pub fn capabilities(&self) -> &Capabilities {
        &self.inner.capabilities
    }

    /// Whether `unpack2x16float` keeps subnormal numbers, which drivers may take for zero.
    pub fn keeps_subnormal_halves(&self) -> bool {
        self.inner.subnormal_halves
    }

    /// Whether shaders check bounds.
    pub fn checks(&self) -> bool {
        self.inner.checks
    }

    /// The device, for crates that allocate or record on their own.
    pub fn device(&self) -> &wgpu::Device {
        &self.inner.device
    }

    /// The queue.
    pub fn queue(&self) -> &wgpu::Queue {
        &self.inner.queue
    }

    /// Bytes that wgpu's allocator has taken from the driver, where the backend counts them.
    pub fn reserved_bytes(&self) -> Option<u64> {
        self.inner
            .device
            .generate_allocator_report()
            .map(|r| r.total_reserved_bytes)
    }

    pub(crate) fn pipelines(&self) -> &DashMap<PipelineKey, Arc<Pipeline>> {
        &self.inner.pipelines
    }

    pub(crate) fn cache_folder(&self) -> Option<&CacheFolder> {
        self.inner.cache_folder.as_ref()
    }

    pub(crate) fn pipeline_cache(&self) -> Option<&PipelineCache> {
        self.inner.pipeline_cache.as_ref()
    }

    pub(crate) fn ledger(&self) -> &Arc<Ledger> {
        &self.inner.ledger
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.inner.counters
    }

    /// Runs `create` and turns what wgpu reports meanwhile into an error about `what`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Rejected`] or [`Error::Lost`].
    pub fn scoped<T>(
        &self,
        what: &dyn Fn() -> String,
        create: impl FnOnce(&wgpu::Device) -> T,
    ) -> Result<T> {
        let inner = &self.inner;
        scoped(&inner.device, &inner.faults, &inner.ledger, what, create)
    }

    /// Fails when the device is lost, or when an earlier operation failed outside of [`scoped`](Self::scoped).
    ///
    /// # Errors
    /// [`Error::Lost`] or [`Error::Rejected`].
    pub fn check(&self) -> Result<()> {
        self.inner.faults.check_lost()?;
        match self.inner.faults.uncaptured.lock().take() {
            None => Ok(()),
            Some(message) => Err(Error::Rejected {
                what: "an earlier operation".to_owned(),
                message,
            }),
        }
    }
}

/// As [`Gpu::scoped`]. The scopes are the thread's own, so threads do not see each other's errors.
fn scoped<T>(
    device: &wgpu::Device,
    faults: &Faults,
    ledger: &Ledger,
    what: &dyn Fn() -> String,
    create: impl FnOnce(&wgpu::Device) -> T,
) -> Result<T> {
    let memory = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
    let internal = device.push_error_scope(wgpu::ErrorFilter::Internal);
    let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
    let made = create(device);
    // Innermost first; on native backends these futures are ready at once.
    let errors = [
        pollster::block_on(validation.pop()),
        pollster::block_on(internal.pop()),
        pollster::block_on(memory.pop()),
    ];
    faults.check_lost()?;
    match errors.into_iter().flatten().next() {
        None => Ok(made),
        Some(wgpu::Error::OutOfMemory { .. }) => Err(Error::OutOfMemory {
            what: what(),
            bytes: None,
            in_use: ledger.in_use(),
            limit: None,
        }),
        Some(error) => Err(Error::Rejected {
            what: what(),
            message: one_line(&error.to_string()),
        }),
    }
}

impl Faults {
    fn check_lost(&self) -> Result<()> {
        match self.lost.get() {
            None => Ok(()),
            Some(reason) => Err(Error::Lost {
                reason: reason.clone(),
            }),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(cache) = &self.pipeline_cache {
            cache.save_at_the_end();
        }
    }
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gpu")
            .field("name", &self.inner.name)
            .field("kind", &self.inner.kind)
            .finish_non_exhaustive()
    }
}
