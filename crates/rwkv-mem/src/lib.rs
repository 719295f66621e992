//! Where do bytes live? Shapes and data types, a buffer pool, a parameter cache and upload, over `rwkv-gpu`.
//!
//! The crate knows sizes and buffers, and nothing of kernels or models.

mod interner;
mod params;
mod pool;
mod shape;
mod upload;

pub use interner::{Interned, Interner};
pub use params::{ParamBlock, ParamCache};
pub use pool::{Pool, PoolCounters, Pooled};
pub use shape::{Cols, DType, Rows, Shape};
pub use upload::Upload;

pub use rwkv_gpu::{Error, Result};
