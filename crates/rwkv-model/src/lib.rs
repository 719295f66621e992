//! What is this model? Checkpoint files, tokenizers, and the binding of weights to the graphs of `rwkv-sched`.
//!
//! [`ModelFile`] opens a checkpoint, finds out its version and dimensions, and gives a [`rwkv_sched::Model`] whose
//! tensors stay in the mapped file, and the [`Tokenizer`] that belongs to it. A [`TextSession`] is a
//! session of an engine in text.

mod adapter_config;
#[cfg(feature = "demo")]
mod demo;
mod error;
pub mod export;
pub mod files;
mod lora;
mod model_file;
mod names;
pub mod output_file;
pub mod perplexity;
mod state_file;
pub mod state_store;
mod text_session;
pub mod tokenizer;

pub use error::Error;
pub use lora::AdapterFile;
pub use model_file::{ModelFile, OpenOptions, TensorSummary};
pub use state_file::{LoadedState, StateOrigin, TimeStateOrder};
pub use state_store::DiskStateStore;
pub use text_session::{ChatTemplate, TextEnd, TextRequest, TextSession, TextStream};
pub use tokenizer::Tokenizer;

/// What this crate's functions return.
pub type Result<T, E = Error> = std::result::Result<T, E>;
