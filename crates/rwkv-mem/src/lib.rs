//! Where do bytes live? Shapes and data types, a buffer pool, a parameter cache and upload, over `rwkv-gpu`.
//!
//! The crate knows sizes and buffers, and nothing of kernels or models.

#[cfg(not(loom))]
mod interner;
#[cfg(not(loom))]
mod params;
#[cfg(not(loom))]
mod pool;
#[cfg(not(loom))]
mod shape;
#[cfg(not(loom))]
mod upload;

// All that there is where loom tries the orders of threads: without the others, neither wgpu nor anything else that they
// need is built for it.
mod shelves;
mod sync;

#[cfg(not(loom))]
pub use interner::{Interned, Interner};
#[cfg(not(loom))]
pub use params::{ParamBlock, ParamCache};
#[cfg(not(loom))]
pub use pool::{Pool, PoolCounters, Pooled};
#[cfg(not(loom))]
pub use shape::{Cols, DType, Rows, Shape};
#[cfg(not(loom))]
pub use upload::{Slab, Staged, Target, Upload};

#[cfg(not(loom))]
pub use rwkv_gpu::{Error, Result};
