//! What is asked of an engine, and what it answers.

use crate::{Adapter, TokenId, sampling::SamplerParams};
use std::sync::Arc;

/// What a session is asked to generate.
#[derive(Clone, Debug)]
pub struct Request {
    /// Tokens to feed first. May be empty where the session has seen some.
    pub prompt: Vec<TokenId>,
    /// Tokens to generate at most, at least one.
    pub max_tokens: usize,
    /// How to choose them: each request has a sampler of its own.
    pub sampler: SamplerParams,
    /// The first of these ends the request; it is handed out, and is part of the session.
    pub stop_tokens: Vec<TokenId>,
    /// Who gets a slot first: the higher number. Waiting raises it ([`Policy::ageing`](super::Policy::ageing)).
    pub priority: i32,
    /// Whether the session may be taken back into this answer, by a [rollback](super::Session::rollback) or by a stream that is dropped
    /// before its end, as at a stop string: the state after the prompt is kept on the host then, so that no more than the answer
    /// is fed again.
    pub rewinds: bool,
    /// The adapters that these tokens are fed with, and their strengths; none is the base model.
    pub adapters: Vec<(Arc<Adapter>, f32)>,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            prompt: Vec::new(),
            max_tokens: 256,
            sampler: SamplerParams::default(),
            stop_tokens: Vec::new(),
            priority: 0,
            rewinds: false,
            adapters: Vec::new(),
        }
    }
}

/// A generated token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// Which.
    pub id: TokenId,
    /// Its number in this request, from 0.
    pub index: usize,
    /// Sequences that the step had which made it.
    pub batch: usize,
    /// Why it is the last one, if it is.
    pub end: Option<End>,
}

/// Why a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It is one of [`Request::stop_tokens`].
    Stop,
    /// There are [`Request::max_tokens`].
    Length,
}
