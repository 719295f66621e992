//! What runs when? RWKV's layer graphs, and the two executors that run them: token ids in, logits and token ids out.
//!
//! A [`Model`] is a logical [`Graph`] (the equations of one RWKV version) with [`Weights`]. An [`Executor`] keeps the
//! states of many sequences, one a slot, and advances them by a ragged [`Batch`]: [`CpuExecutor`] interprets the graph
//! with the plain twins of `rwkv-kernels`; [`GpuExecutor`] fuses it, plans its buffers and replays the dispatches;
//! [`SplitExecutor`] has some layers on one device and some on others, as a [`Placement`] says; [`ReplicatedExecutor`] has
//! the model on several. An [`Engine`](engine::Engine) runs many sessions on one executor.

mod adapter;
mod batch;
mod config;
mod cpu;
mod decode;
mod device;
pub mod engine;
mod error;
mod executor;
mod expected;
mod forecast;
mod fuse;
mod generation;
mod gpu;
mod graph;
mod layers;
mod model;
mod part;
mod placement;
mod quantization;
mod replicated;
mod share;
mod sparse;
mod split;
mod state;
mod state_cache;
mod stats;
mod token_tables;
mod traffic;
mod weights;

pub use adapter::{Adapter, BlendProgress, Factor, LowRank, PackedBytes};
pub use batch::{Batch, BatchShape, BatchSpan, Logits, SlotId, TokenId, Wanted};
pub use config::{ModelConfig, Version};
pub use cpu::CpuExecutor;
pub use decode::{Burst, Counted, Decoding, OnDrawn, OnTokens};
pub use device::{Device, DeviceOptions, Opened};
pub use error::Error;
pub use executor::{
    Executor, LoadOptions, LoadProgress, LoadStage, WeightsDType, load, load_placed,
};
pub use expected::Expected;
pub use forecast::Forecast;
pub use generation::{Generation, prefill};
pub use gpu::{DeviceMemory, GpuExecutor, Shortfall};
pub use graph::{Domain, Graph, Node, Op, ShiftHalf, Value, ValueId};
pub use model::Model;
pub use placement::Placement;
pub use quantization::{
    Chosen, Packing, Quantization, QuantizedWeights, WeightType, encode_rows, pack,
};
pub use replicated::ReplicatedExecutor;
pub use rwkv_kernels::{Simd, sampling};
pub use share::{Share, load_shared};
pub use sparse::{PruneRatio, PrunedWeights, STORED_BELOW, SparseWeights, row_offsets, slab_rows};
pub use split::SplitExecutor;
pub use state::{State, StateLayout};
pub use state_cache::{
    CacheKey, FedPrompt, Hit, Peek, Spacing, StateCache, StateCacheOptions, StateCacheStats,
    StateStore, Stored, checkpoints, feed_prompt,
};
pub use stats::{ExecutorStats, StepTimes};
pub use token_tables::TokenTables;
pub use traffic::WeightReads;
pub use weights::{Affine, BlockWeight, InMemoryWeights, Lora, Mix, Weight, Weights};

/// What this crate's functions return.
pub type Result<T, E = Error> = std::result::Result<T, E>;
