//! Stages that work at once: while one has a micro-batch, the one before it has the next.
//!
//! Who gives a micro-batch begins it on the first stage. Each stage has a thread, which waits for what was begun there and begins
//! the next stage with it: nobody is woken in between. So a device has the next micro-batch while the results of this one are
//! passed on. One is waited for and one begun on each device at most: who is ahead waits, and memory is bounded.

use crate::{
    Batch, Error, Result,
    part::{Begun, Carried},
};
use std::{
    sync::mpsc::{Receiver, Sender, channel, sync_channel},
    thread::{Builder, Scope},
};

/// A micro-batch on its way.
#[derive(Default)]
pub(super) struct Job {
    pub(super) batch: Batch,
    pub(super) carried: Carried,
    /// The group of sequences whose tokens are [drawn](crate::part::PartExecutor::begin_drawing) on the last device.
    pub(super) drawing: Option<usize>,
    /// Where the states are copied before it: a group, and which of its two copies.
    pub(super) copies: Option<(usize, usize)>,
    /// What was drawn.
    pub(super) drawn: Vec<u32>,
}

/// What brings micro-batches to a device.
pub(super) trait Begin: Send {
    /// Begins one, and lets go of what no later one needs; what comes back is called by another thread.
    ///
    /// # Errors
    /// Those of [`crate::Executor::run`].
    fn begin(&mut self, job: &mut Job) -> Result<Begun>;
}

/// Where a job goes; says whether it was taken, or what it has failed with.
type Next<'a> = Box<dyn FnMut(Job) -> Result<bool> + Send + 'a>;

/// Both ends of the stages. Who lets go of it ends them.
pub(super) struct Ends<'a> {
    /// Gone when it has failed.
    first: Option<Box<dyn FnMut(Job) -> Result<bool> + 'a>>,
    failed: Option<Error>,
    done: Receiver<Result<Job>>,
}

impl<'a> Ends<'a> {
    fn new(first: Box<dyn FnMut(Job) -> Result<bool> + 'a>, done: Receiver<Result<Job>>) -> Self {
        Self {
            first: Some(first),
            failed: None,
            done,
        }
    }

    /// Begins a job on the first stage, and hands it over when there is room. Where a stage has failed, [`take`](Self::take)
    /// says so.
    pub(super) fn give(&mut self, job: Job) {
        let taken = self.first.as_mut().map(|first| first(job));
        if let Some(Ok(false) | Err(_)) = taken {
            self.first = None;
        }
        if let Some(Err(error)) = taken {
            self.failed = Some(error);
        }
    }

    /// The next job that is done: they come in the order in which they were given.
    ///
    /// # Errors
    /// What a stage has failed with; nothing comes after that.
    pub(super) fn take(&mut self) -> Result<Job> {
        self.done.recv().unwrap_or_else(|_| {
            Err(self.failed.take().unwrap_or_else(|| Error::Config {
                problem: "a device's thread has ended: this is a mistake in this program"
                    .to_owned(),
            }))
        })
    }

    /// Waits until all that was given is done, and throws it away.
    ///
    /// # Errors
    /// What a stage has failed with.
    pub(super) fn finish(self) -> Result<()> {
        drop(self.first);
        self.done.iter().try_for_each(|job| job.map(drop))?;
        self.failed.map_or(Ok(()), Err)
    }
}

/// Runs `drive` beside the stages, which have ended when it returns. Where it gives no more than one job at a time, they need no
/// threads. What `drive` gives is begun on its own.
///
/// # Errors
/// What `drive` says, or a thread that the system does not give.
pub(super) fn run<S: Begin, T>(
    stages: &mut [S],
    at_once: usize,
    drive: impl FnOnce(Ends<'_>) -> Result<T>,
) -> Result<T> {
    if at_once < 2 {
        let (out, done) = channel();
        let all = move |job| Ok(out.send(here(stages, job)).is_ok());
        return drive(Ends::new(Box::new(all), done));
    }
    std::thread::scope(|scope| {
        let (out, done) = channel();
        let last = out.clone();
        let mut next: Next<'_> = Box::new(move |job| Ok(last.send(Ok(job)).is_ok()));
        for stage in stages.iter_mut().rev() {
            next = spawn(scope, stage, next, &out)?;
        }
        drop(out);
        drive(Ends::new(next, done))
    })
}

/// One job through all stages.
fn here<S: Begin>(stages: &mut [S], mut job: Job) -> Result<Job> {
    for stage in stages {
        let work = stage.begin(&mut job)?;
        job.drawn = work(&mut job.carried)?;
    }
    Ok(job)
}

/// The thread that waits for a stage, and where its jobs go: whoever brings one begins it. The thread ends when no more jobs come,
/// when nobody takes its own, or with an error, which it tells.
fn spawn<'scope, S: Begin>(
    scope: &'scope Scope<'scope, '_>,
    stage: &'scope mut S,
    mut next: Next<'scope>,
    out: &Sender<Result<Job>>,
) -> Result<Next<'scope>> {
    // Nothing waits there: a device has one micro-batch that is waited for, and the one that is about to be.
    let (begun, to_finish) = sync_channel::<(Job, Begun)>(0);
    let told = out.clone();
    let finish = move || {
        for (mut job, work) in to_finish {
            let passed_on = work(&mut job.carried).and_then(|drawn| {
                job.drawn = drawn;
                next(job)
            });
            match passed_on {
                Ok(true) => {}
                Ok(false) => return,
                // Nobody may be left who takes it.
                Err(error) => return drop(told.send(Err(error))),
            }
        }
    };
    let thread = Builder::new().name("rwkv stage".to_owned());
    let failed = |error| Error::Config {
        problem: format!("no thread for a device: {error}"),
    };
    thread.spawn_scoped(scope, finish).map_err(failed)?;
    Ok(Box::new(move |mut job| {
        let work = stage.begin(&mut job)?;
        Ok(begun.send((job, work)).is_ok())
    }))
}
