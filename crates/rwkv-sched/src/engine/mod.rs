//! The engine: many sessions on one executor, in batches that any of them may join or leave at any step.
//!
//! An [`Engine`] has a thread that owns the executor. [`Session`]s ask it to generate, from any thread and under any
//! asynchronous runtime, and get their tokens by a [`TokenStream`] as they come.
//!
//! ```no_run
//! # async fn example(model: &rwkv_sched::Model) -> rwkv_sched::Result<()> {
//! use rwkv_sched::engine::{Engine, EngineOptions, Request};
//!
//! let engine = Engine::spawn(model, EngineOptions::default())?;
//! let mut session = engine.session();
//! let request = Request {
//!     prompt: vec![3, 14, 15],
//!     max_tokens: 10,
//!     ..Request::default()
//! };
//! let mut tokens = session.generate(request).await?;
//! while let Some(token) = tokens.next().await {
//!     println!("{}", token?.id);
//! }
//! drop(tokens);
//! engine.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! A session is its tokens: what a slot holds is a copy that can be made again, from a state on the host and the tokens
//! since ([`Session::rollback`] says which are kept). So a sequence that gave its slot away, ran past what was read of it,
//! or was in a step that failed goes on from there. On the CPU, and on a GPU with
//! [`LoadOptions::deterministic`], a session's tokens are those that it
//! would get alone, whatever else runs.

mod blend;
mod history;
mod job;
mod outbox;
mod policy;
mod prefix;
mod request;
mod session;
mod stats;
mod worker;

pub use outbox::TokenStream;
pub use policy::Policy;
pub use prefix::PrefixCache;
pub use request::{End, Request, Token};
pub use session::Session;
pub use stats::EngineStats;

use crate::{
    Device, Error, Executor, LoadOptions, Model, ModelConfig, Placement, Result, StateLayout,
    TokenId, load, load_placed,
};
use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU64, mpsc::Sender},
    thread::JoinHandle,
};
use tokio::sync::{Semaphore, oneshot};
use worker::{Command, Outside, Worker};

/// Slots of an engine that nobody said otherwise of.
const SLOTS: usize = 8;

/// How an engine runs.
#[derive(Clone)]
pub struct EngineOptions {
    /// Where; without one, on the best device that there is.
    pub placement: Option<Placement>,
    /// How the model is loaded: `slots` sequences run at once.
    pub load: LoadOptions,
    /// What runs when.
    pub policy: Policy,
    /// Requests that may wait for a slot.
    pub queue: usize,
    /// About so many tokens of a request are made before somebody reads them.
    pub ahead: usize,
    /// Tokens that the samplers' penalties do not count.
    pub uncounted: Vec<TokenId>,
    /// A state of a session is kept on the host after so many tokens.
    pub checkpoint_every: usize,
    /// So many of them, at least one.
    pub checkpoints: usize,
    /// Where states of prompts' beginnings are looked up and kept.
    pub prefix_cache: Option<PrefixCache>,
    /// Whether [`EngineStats::gpu_time`] is taken, where the executor can; the GPU runs ahead by fewer steps then.
    pub gpu_clock: bool,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            placement: None,
            load: LoadOptions {
                slots: SLOTS,
                ..LoadOptions::default()
            },
            policy: Policy::default(),
            queue: 4096,
            ahead: 128,
            uncounted: Vec::new(),
            checkpoint_every: 4096,
            checkpoints: 2,
            prefix_cache: None,
            gpu_clock: false,
        }
    }
}

/// Runs many sessions on one executor. Dropping it stops it after the step that runs; what is not done then ends with
/// [`Error::Stopped`].
pub struct Engine {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    stopped: Option<oneshot::Receiver<()>>,
}

/// What sessions know of their engine.
struct Shared {
    commands: Sender<Command>,
    queue: Arc<Semaphore>,
    queued: usize,
    ahead: usize,
    /// The number of the next session or job.
    ids: AtomicU64,
    stats: Arc<Mutex<EngineStats>>,
    config: ModelConfig,
    layout: StateLayout,
    device: String,
    slots: usize,
}

impl Engine {
    /// Loads `model` and starts. Loading takes as long as it takes: an asynchronous program does it on a thread of its own.
    ///
    /// # Errors
    /// What [`load`](crate::load()) and [`load_placed`] say, and those of [`with_executor`](Self::with_executor).
    pub fn spawn(model: &Model, options: EngineOptions) -> Result<Self> {
        let progress = &mut |_| {};
        let executor = if let Some(placement) = &options.placement {
            load_placed(model, placement, &options.load, progress)?
        } else {
            let device = Device::open("auto")?.device;
            load(model, &device, &options.load, progress)?
        };
        Self::with_executor(executor, options)
    }

    /// Starts with an executor that is there already; `options.placement` and `options.load` say nothing then.
    ///
    /// # Errors
    /// A GPU's failure, [`Error::State`] for a prefix cache of another model's states, or a thread that the system does
    /// not give.
    pub fn with_executor(executor: Box<dyn Executor>, options: EngineOptions) -> Result<Self> {
        let config = executor.config().clone();
        let (device, slots) = (executor.device().to_owned(), executor.slots());
        let queued = options.queue.clamp(1, Semaphore::MAX_PERMITS);
        let ahead = options.ahead;
        let (worker, outside) = Worker::new(executor, options)?;
        let Outside {
            commands,
            queue,
            stats,
            stopped,
        } = outside;
        let thread = std::thread::Builder::new()
            .name("rwkv engine".to_owned())
            .spawn(move || worker.run())
            .map_err(|error| Error::Config {
                problem: format!("no thread for the engine: {error}"),
            })?;
        let shared = Shared {
            commands,
            queue,
            queued,
            ahead,
            ids: AtomicU64::new(0),
            stats,
            layout: StateLayout::of(&config),
            config,
            device,
            slots,
        };
        Ok(Self {
            shared: Arc::new(shared),
            thread: Some(thread),
            stopped: Some(stopped),
        })
    }

    /// A session that has seen nothing.
    pub fn session(&self) -> Session {
        Session::new(self.shared.clone())
    }

    /// What it has counted until its last step.
    pub fn stats(&self) -> EngineStats {
        let stats = self.shared.stats.lock();
        *stats.unwrap_or_else(PoisonError::into_inner)
    }

    /// The model's dimensions.
    pub fn config(&self) -> &ModelConfig {
        &self.shared.config
    }

    /// Where it runs, for people.
    pub fn device(&self) -> &str {
        &self.shared.device
    }

    /// Sequences that run at once.
    pub fn slots(&self) -> usize {
        self.shared.slots
    }

    /// Stops it, and waits until its device is free. What is not done then ends with [`Error::Stopped`].
    pub async fn shutdown(mut self) {
        let _ = self.shared.commands.send(Command::Stop);
        if let Some(stopped) = self.stopped.take() {
            // Nothing is ever sent: the end is gone when the thread has let go of all it had.
            let _ = stopped.await;
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.shared.commands.send(Command::Stop);
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("the engine's thread has panicked");
        }
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("device", &self.shared.device)
            .field("slots", &self.shared.slots)
            .finish_non_exhaustive()
    }
}
