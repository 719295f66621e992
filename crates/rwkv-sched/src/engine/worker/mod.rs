//! The engine's thread: it has the executor, the slots and what every session has seen.

mod blends;
mod bursts;
mod lookahead;
mod prefixes;
mod sessions;
mod slots;
mod steps;

use super::{
    EngineOptions,
    history::History,
    job::{Goal, Job},
    policy::{Policy, Times, Turns},
    prefix::Prefixes,
    stats::EngineStats,
};
use crate::{Error, Executor, Hit, Result, SlotId, State, TokenId};
use blends::Blends;
use rwkv_gpu::Timing;
use sessions::Session;
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, Sender},
    },
};
use tokio::sync::{Semaphore, oneshot};

/// What the engine is told, in the order of telling.
pub(super) enum Command {
    Run(Box<Job>),
    /// A job is over for whoever asked for it, who has seen so many of its tokens, or taken its answer.
    Close {
        session: u64,
        job: u64,
        seen: usize,
    },
    Load {
        session: u64,
        state: Arc<State>,
        reply: oneshot::Sender<()>,
    },
    Fork {
        from: u64,
        to: u64,
    },
    Rollback {
        session: u64,
        tokens: usize,
        reply: oneshot::Sender<Result<()>>,
    },
    Forget {
        session: u64,
    },
    /// A state for the beginning of a job's prompt was read, or could not be.
    Restored {
        job: u64,
        hit: Option<Hit>,
    },
    /// Something that was full has room.
    Wake,
    Stop,
}

pub(super) struct Worker {
    executor: Box<dyn Executor>,
    options: EngineOptions,
    /// The options' as it suits the executor.
    policy: Policy,
    commands: Receiver<Command>,
    /// Commands that came while a step ran.
    inbox: VecDeque<Command>,
    sessions: HashMap<u64, Session>,
    waiting: BTreeMap<u64, Job>,
    running: BTreeMap<u64, Job>,
    /// Whose state each slot holds.
    slots: Vec<Option<u64>>,
    blends: Blends,
    /// After `commands`: what it still reads then need not be told.
    prefixes: Option<Prefixes>,
    uncounted: Uncounted,
    turns: Turns,
    times: Times,
    /// Rises with each use of a slot.
    clock: u64,
    stats: EngineStats,
    published: Arc<Mutex<EngineStats>>,
    /// Closed when this is gone, as nobody need wait then.
    _queue: Queue,
    /// Dropped with this.
    _stopped: oneshot::Sender<()>,
}

/// Of each token, whether samplers' penalties do not count it: a GPU's sampler is told of all.
struct Uncounted(Vec<bool>);

impl Uncounted {
    fn new(tokens: &[TokenId], vocab: usize) -> Self {
        let mut uncounted = vec![false; vocab];
        for token in tokens {
            if let Some(one) = uncounted.get_mut(*token as usize) {
                *one = true;
            }
        }
        Self(uncounted)
    }

    fn counts(&self, token: TokenId) -> bool {
        !self.0.get(token as usize).copied().unwrap_or(false)
    }
}

/// Where requests wait for their turn to be taken in.
pub(super) struct Queue(pub(super) Arc<Semaphore>);

impl Drop for Queue {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// The ends that stay outside.
pub(super) struct Outside {
    pub(super) commands: Sender<Command>,
    pub(super) queue: Arc<Semaphore>,
    pub(super) stats: Arc<Mutex<EngineStats>>,
    pub(super) stopped: oneshot::Receiver<()>,
}

impl Worker {
    pub(super) fn new(
        mut executor: Box<dyn Executor>,
        mut options: EngineOptions,
    ) -> Result<(Self, Outside)> {
        if options.gpu_clock {
            executor.set_timing(Timing::Passes)?;
        }
        let (sender, commands) = std::sync::mpsc::channel();
        let prefixes = match options.prefix_cache.take() {
            Some(cache) => Some(Prefixes::new(cache, executor.as_mut(), sender.clone())?),
            None => None,
        };
        let (stopping, stopped) = oneshot::channel();
        let queue = Arc::new(Semaphore::new(
            options.queue.clamp(1, Semaphore::MAX_PERMITS),
        ));
        let published = Arc::new(Mutex::new(EngineStats::default()));
        let outside = Outside {
            commands: sender,
            queue: queue.clone(),
            stats: published.clone(),
            stopped,
        };
        let worker = Self {
            slots: vec![None; executor.slots()],
            policy: options.policy.clone(),
            uncounted: Uncounted::new(&options.uncounted, executor.config().vocab),
            executor,
            options,
            commands,
            inbox: VecDeque::new(),
            sessions: HashMap::new(),
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
            blends: Blends::default(),
            prefixes,
            turns: Turns::default(),
            times: Times::default(),
            clock: 0,
            stats: EngineStats::default(),
            published,
            _queue: Queue(queue),
            _stopped: stopping,
        };
        Ok((worker, outside))
    }

    /// Works until it is told to stop, or nobody is left who could tell it anything. Whatever is not done then is told so
    /// when it is dropped.
    pub(super) fn run(mut self) {
        tracing::debug!(device = self.executor.device(), "engine runs");
        let mut idle = true;
        while self.receive(idle) {
            // Which may have less memory than before.
            let (chunk, stages) = (self.executor.chunk(), self.executor.stages());
            self.policy = self.options.policy.fitted(chunk, stages);
            self.admit();
            idle = !self.step();
            self.publish();
        }
        tracing::debug!("engine stops");
    }

    /// Does what it is told; waits for a command where there is nothing else to do. Says whether to go on.
    fn receive(&mut self, wait: bool) -> bool {
        if wait && self.inbox.is_empty() {
            match self.commands.recv() {
                Ok(command) => self.inbox.push_back(command),
                Err(_) => return false,
            }
        }
        self.inbox.extend(self.commands.try_iter());
        while let Some(command) = self.inbox.pop_front() {
            match command {
                Command::Run(job) => self.begin(*job),
                Command::Close { session, job, seen } => self.close(session, job, seen),
                Command::Load {
                    session,
                    state,
                    reply,
                } => {
                    self.load(session, state);
                    // Whoever asked may have gone.
                    let _ = reply.send(());
                }
                Command::Fork { from, to } => self.fork(from, to),
                Command::Rollback {
                    session,
                    tokens,
                    reply,
                } => drop(reply.send(self.rollback(session, tokens))),
                Command::Forget { session } => self.forget(session),
                Command::Restored { job, hit } => self.restored(job, hit),
                Command::Wake => {}
                Command::Stop => return false,
            }
        }
        true
    }

    fn publish(&mut self) {
        self.stats.waiting = self.waiting.len();
        self.stats.running = self.running.len();
        self.stats.sessions = self.sessions.len();
        self.stats.slots_used = self.slots.iter().flatten().count();
        self.stats.executor = self.executor.stats();
        if self.options.gpu_clock {
            let times = self.executor.take_times();
            let seconds: f64 = times.iter().map(crate::StepTimes::seconds).sum();
            self.stats.gpu_time += std::time::Duration::from_secs_f64(seconds);
        }
        publish(&self.stats, &self.published);
    }
}

/// Shows what was counted to those outside.
fn publish(stats: &EngineStats, published: &Mutex<EngineStats>) {
    let mut published = published.lock().unwrap_or_else(PoisonError::into_inner);
    let earlier = std::mem::replace(&mut *published, *stats);
    drop(published);
    stats.report(&earlier);
}
