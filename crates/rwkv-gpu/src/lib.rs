//! What can this machine do? Adapters, pipelines, recording, submission and readback over wgpu.
//!
//! The crate knows buffers, shaders and dispatches, and nothing of tensors or models. A program
//!
//! 1. lists adapters with [`list_adapters`] or opens one with [`Gpu::open`],
//! 2. compiles a reflected [`Shader`] with [`Gpu::pipeline`],
//! 3. binds buffers to it with [`Gpu::bind`], records [`Dispatch`]es with a [`Recorder`], and submits them,
//! 4. reads results back through a [`Readback`].
//!
//! Every failure that wgpu would turn into a panic becomes an [`Error`] that names the kernel or buffer.

mod adapter;
mod buffer;
mod cache_folder;
mod capabilities;
mod counters;
mod device;
mod error;
mod memory;
mod pipeline;
mod pipeline_cache;
mod readback;
mod record;
mod shader;
mod staging;
mod subnormal;
mod timing;

pub use adapter::{AdapterSummary, Kind, Selector, list_adapters};
pub use buffer::{Buffer, BufferKind};
pub use cache_folder::{read_cache_file, write_cache_file};
pub use capabilities::{Capabilities, CooperativeMatrix, Hidden, Limits, SubgroupSizes};
pub use counters::{CacheCounter, CacheCounts, GpuCounts};
pub use device::{Gpu, OpenOptions};
pub use error::Error;
pub use memory::GpuMemory;
pub use pipeline::{BindGroup, Binding, Pipeline};
pub use readback::{Mapped, Readback};
pub use record::{Dispatch, Recorder, Recording, Submission};
pub use shader::{Access, Requirement, Shader, ShaderBinding};
pub use staging::{StagedCopy, Staging, StagingPiece};
pub use timing::{TimedSpan, Timer, Timing};

/// What this crate's functions return.
pub type Result<T, E = Error> = std::result::Result<T, E>;
