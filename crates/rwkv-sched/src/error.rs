//! What can go wrong between a model and its tokens.

use crate::{Shortfall, SlotId, TokenId};
use rwkv_kernels::sampling::SamplingError;
use std::sync::Arc;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A kernel or the GPU refused.
    #[error(transparent)]
    Kernel(#[from] rwkv_kernels::Error),

    /// The GPU refused.
    #[error(transparent)]
    Gpu(#[from] rwkv_gpu::Error),

    /// A model that a GPU has too little memory for; nothing was loaded.
    #[error("{0}")]
    DoesNotFit(Box<Shortfall>),

    /// The sampler refused.
    #[error(transparent)]
    Sampling(#[from] SamplingError),

    /// A tensor that the graph needs is missing or does not fit.
    #[error("tensor {name}: {problem}")]
    Weight {
        /// The tensor's name in its file.
        name: String,
        /// What is wrong.
        problem: String,
    },

    /// A quantization that does not exist, or not for this model.
    #[error("`{text}` cannot be used as a weight type: {problem}")]
    Quantization {
        /// As it was written.
        text: String,
        /// What is wrong.
        problem: String,
    },

    /// A share of elements to prune that is none.
    #[error("`{text}` cannot be pruned: give a share from 0 to less than 1, such as 0.7")]
    PruneRatio {
        /// As it was written.
        text: String,
    },

    /// Dimensions that make no model.
    #[error("not a model that can run: {problem}")]
    Config {
        /// What is wrong.
        problem: String,
    },

    /// Layers that are not each on one device.
    #[error("these layers cannot be placed: {problem}")]
    Placement {
        /// What is wrong.
        problem: String,
    },

    /// A token that the vocabulary does not have.
    #[error(
        "token {token} is out of range: the model's vocabulary has {vocab} tokens, numbered from 0"
    )]
    TokenRange {
        /// The token.
        token: TokenId,
        /// How many there are.
        vocab: usize,
    },

    /// A slot that the executor does not have.
    #[error("slot {} is out of range: there are {slots}", .slot.0)]
    SlotRange {
        /// The slot.
        slot: SlotId,
        /// How many there are.
        slots: usize,
    },

    /// A batch that cannot be run.
    #[error("a batch that cannot run: {problem}")]
    Batch {
        /// What is wrong.
        problem: String,
    },

    /// There is nothing to start from.
    #[error("the prompt is empty: give at least one token")]
    EmptyPrompt,

    /// An adapter that does not fit the model, or a strength that makes no sense.
    #[error("adapter {name}: {problem}")]
    Adapter {
        /// The adapter's name.
        name: String,
        /// What is wrong.
        problem: String,
    },

    /// A state of another model.
    #[error("a state that does not fit this model: {problem}")]
    State {
        /// What is wrong.
        problem: String,
    },

    /// A request that makes no sense.
    #[error("a request that cannot run: {problem}")]
    Request {
        /// What is wrong.
        problem: String,
    },

    /// The session has a request whose stream was neither read to its end nor dropped.
    #[error("this session is busy: read the stream of its last request to the end, or drop it")]
    Busy,

    /// The engine has as many waiting requests as it takes.
    #[error("{waiting} requests are waiting, which is as many as may: try again later")]
    QueueFull {
        /// How many may wait.
        waiting: usize,
    },

    /// A session cannot go back so far.
    #[error(
        "a session of {tokens} tokens cannot go back by {back}: what is kept begins after {kept}"
    )]
    Rollback {
        /// Tokens that it has seen.
        tokens: usize,
        /// By how many it should go back.
        back: usize,
        /// The fewest tokens that it can go back to.
        kept: usize,
    },

    /// The engine was stopped, or its thread has ended.
    #[error("the engine has stopped: spawn another one")]
    Stopped,

    /// What went wrong in a step, told to each request that it concerns.
    #[error("{0}")]
    Step(Arc<Error>),
}
