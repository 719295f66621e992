//! What can be computed? WGSL kernels with variants, the weight formats they read, a CPU twin of each operation, and
//! sampling.
//!
//! Each file of [`ops`] holds one operation: its equation, its plain Rust twin, and the dispatch of its kernel. The
//! twins are the oracle that the kernels are tested against, and what runs where there is no GPU.

mod copy_bandwidth;
mod csr_upload;
mod error;
pub mod formats;
mod gpu_columns;
mod gpu_csr;
mod gpu_weights;
mod kernels;
mod lora_up;
mod matrix;
mod matrix_upload;
pub mod ops;
pub mod sampling;
pub mod shaders;
pub mod simd;
pub mod tuning;

pub use copy_bandwidth::CopyBandwidth;
pub use csr_upload::CsrUpload;
pub use error::Error;
pub use formats::{Csr, CsrColumns, Format, GpuLayout};
pub use gpu_columns::GpuColumns;
pub use gpu_csr::GpuCsr;
pub use gpu_weights::{GpuMatrix, GpuVector};
pub use kernels::{BatchTables, Kernels, Page, Scratch, Span, Token, View};
pub use lora_up::LoraUp;
pub use matrix::Matrix;
pub use matrix_upload::MatrixUpload;
pub use simd::Simd;

/// What this crate's functions return.
pub type Result<T, E = Error> = std::result::Result<T, E>;
