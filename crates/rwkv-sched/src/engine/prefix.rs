//! States of prompts' beginnings: which of a cache's states an engine's prompts may start from, and reading those that are
//! not in memory while others run.

use super::{blend::Blend, worker::Command};
use crate::{
    CacheKey, Error, Executor, Hit, Result, SlotId, Spacing, StateCache, StateLayout, TokenId,
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc::{Receiver, Sender, channel},
    },
    thread::JoinHandle,
};

/// Where an engine keeps states of prompts' beginnings, and finds those that it and others kept.
#[derive(Clone)]
pub struct PrefixCache {
    /// The states. Several engines may share one cache.
    pub states: Arc<StateCache>,
    /// The model with its quantization. The engine adds what else its states depend on: the device, the state that
    /// sequences begin with, and the adapters of a request.
    pub model: CacheKey,
    /// Where along a prompt states are kept. A prompt of which less than the grain has to be fed keeps none: each costs a
    /// step and reading the state.
    pub spacing: Spacing,
}

impl PrefixCache {
    /// With the usual spacing.
    pub fn new(states: Arc<StateCache>, model: CacheKey) -> Self {
        Self {
            states,
            model,
            spacing: Spacing::default(),
        }
    }
}

/// The cache as the engine's thread uses it.
pub(super) struct Prefixes {
    pub(super) states: Arc<StateCache>,
    pub(super) spacing: Spacing,
    /// What holds for all sequences that begin where sequences begin.
    key: CacheKey,
    commands: Sender<Command>,
    /// None when this is going.
    reads: Option<Sender<Read>>,
    going: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

/// A state to read. When it is dropped, read or not, the engine is told.
struct Read {
    job: u64,
    key: CacheKey,
    tokens: Vec<TokenId>,
    hit: Option<Hit>,
    commands: Sender<Command>,
}

impl Prefixes {
    /// Starts the thread that reads, and tells by `commands` what it has read.
    ///
    /// # Errors
    /// [`Error::State`] for a cache of states of another layout, the executor's errors, or a thread that the system does
    /// not give.
    pub(super) fn new(
        cache: PrefixCache,
        executor: &mut dyn Executor,
        commands: Sender<Command>,
    ) -> Result<Self> {
        let PrefixCache {
            states,
            model,
            spacing,
        } = cache;
        let (layout, cached) = (StateLayout::of(executor.config()), states.layout());
        if layout != cached {
            let problem = format!("its states are {layout:?}, those of the cache {cached:?}");
            return Err(Error::State { problem });
        }
        executor.reset(SlotId(0))?;
        let initial = executor.state(SlotId(0))?;
        let (sender, reads) = channel();
        let (from, going) = (states.clone(), Arc::new(AtomicBool::new(false)));
        let stop = going.clone();
        let reader = std::thread::Builder::new()
            .name("rwkv restore".to_owned())
            .spawn(move || read_until(&stop, &reads, &from))
            .map_err(|error| Error::Config {
                problem: format!("no thread to read states: {error}"),
            })?;
        Ok(Self {
            states,
            spacing,
            key: model
                .with(executor.device().as_bytes())
                .with_initial_state(&initial),
            commands,
            reads: Some(sender),
            going,
            reader: Some(reader),
        })
    }

    /// What states of this blend are found under; none where an adapter has no name that outlives the process.
    pub(super) fn key(&self, blend: &Blend) -> Option<CacheKey> {
        let parts = blend.fingerprints()?;
        let add = |key: CacheKey, (adapter, strength): &(&str, u32)| {
            key.with(adapter.as_bytes()).with(&strength.to_le_bytes())
        };
        Some(parts.iter().fold(self.key, add))
    }

    /// Reads the longest state for `tokens`; [`Command::Restored`] says that it is done.
    pub(super) fn read(&self, job: u64, key: CacheKey, tokens: &[TokenId]) {
        let read = Read {
            job,
            key,
            tokens: tokens.to_vec(),
            hit: None,
            commands: self.commands.clone(),
        };
        if let Some(reads) = &self.reads {
            let _ = reads.send(read);
        }
    }
}

impl Drop for Prefixes {
    fn drop(&mut self) {
        self.going.store(true, Relaxed);
        self.reads = None;
        if let Some(Err(_)) = self.reader.take().map(JoinHandle::join) {
            tracing::error!("the thread that reads states has panicked");
        }
    }
}

impl Drop for Read {
    fn drop(&mut self) {
        let (job, hit) = (self.job, self.hit.take());
        // An engine that has stopped need not know.
        let _ = self.commands.send(Command::Restored { job, hit });
    }
}

fn read_until(stop: &AtomicBool, reads: &Receiver<Read>, states: &StateCache) {
    for mut read in reads {
        if stop.load(Relaxed) {
            return;
        }
        read.hit = states.lookup(read.key, &read.tokens);
    }
}
