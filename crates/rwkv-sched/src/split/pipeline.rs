//! Stages that work at once: while one has a micro-batch, the one before it has the next.
//!
//! A stage is two threads. One brings micro-batches to the device, the other waits for what they make and hands it on. So a
//! device has the next micro-batch while the results of this one are copied, and one's inputs are written while another one
//! runs. Between two stages lies one micro-batch at most: who is ahead waits, and memory is bounded.

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
    /// Begins one; what comes back is called by another thread.
    ///
    /// # Errors
    /// Those of [`crate::Executor::run`].
    fn begin(&mut self, job: &Job) -> Result<Begun>;
}

/// Where a job goes; says whether it was taken.
type Next = Box<dyn Fn(Job) -> bool + Send>;

/// Both ends of the stages. Who lets go of it ends them.
pub(super) struct Ends<'a> {
    first: Box<dyn FnMut(Job) -> bool + 'a>,
    done: Receiver<Result<Job>>,
}

impl Ends<'_> {
    /// Hands a job to the first stage, when that has room. Where a stage has failed, [`take`](Self::take) says so.
    pub(super) fn give(&mut self, job: Job) {
        (self.first)(job);
    }

    /// The next job that is done: they come in the order in which they were given.
    ///
    /// # Errors
    /// What a stage has failed with; nothing comes after that.
    pub(super) fn take(&self) -> Result<Job> {
        self.done.recv().unwrap_or_else(|_| {
            Err(Error::Config {
                problem: "a device's thread has ended: this is a mistake in this program"
                    .to_owned(),
            })
        })
    }

    /// Waits until all that was given is done, and throws it away.
    ///
    /// # Errors
    /// What a stage has failed with.
    pub(super) fn finish(self) -> Result<()> {
        drop(self.first);
        self.done.iter().try_for_each(|job| job.map(drop))
    }
}

/// Runs `drive` beside the stages, which have ended when it returns. Where it gives no more than one job at a time, they need no
/// threads.
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
        return drive(Ends {
            first: Box::new(move |job| out.send(here(stages, job)).is_ok()),
            done,
        });
    }
    std::thread::scope(|scope| {
        let (out, done) = channel();
        let last = out.clone();
        let mut next: Next = Box::new(move |job| last.send(Ok(job)).is_ok());
        for stage in stages.iter_mut().rev() {
            let (into, jobs) = sync_channel(1);
            spawn(scope, stage, jobs, next, &out)?;
            next = Box::new(move |job| into.send(job).is_ok());
        }
        drop(out);
        drive(Ends {
            first: Box::new(next),
            done,
        })
    })
}

/// One job through all stages.
fn here<S: Begin>(stages: &mut [S], mut job: Job) -> Result<Job> {
    for stage in stages {
        let work = stage.begin(&job)?;
        job.drawn = work(&mut job.carried)?;
    }
    Ok(job)
}

/// The two threads of a stage. They end when no more jobs come, when nobody takes theirs, or with an error, which they tell.
fn spawn<'scope, S: Begin>(
    scope: &'scope Scope<'scope, '_>,
    stage: &'scope mut S,
    jobs: Receiver<Job>,
    next: Next,
    out: &Sender<Result<Job>>,
) -> Result<()> {
    // Nothing waits there: a device has one micro-batch that is waited for, and the one that is about to be.
    let (begun, to_finish) = sync_channel(0);
    let told = out.clone();
    let begin = move || {
        for job in jobs {
            let work = match stage.begin(&job) {
                Ok(work) => work,
                Err(error) => return drop(told.send(Err(error))),
            };
            if begun.send((job, work)).is_err() {
                return;
            }
        }
    };
    let told = out.clone();
    let finish = move || {
        for (mut job, work) in to_finish {
            let work: Begun = work;
            match work(&mut job.carried) {
                Ok(drawn) => job.drawn = drawn,
                Err(error) => return drop(told.send(Err(error))),
            }
            if !next(job) {
                return;
            }
        }
    };
    let thread = |name: &str| Builder::new().name(format!("rwkv {name}"));
    let failed = |error| Error::Config {
        problem: format!("no thread for a device: {error}"),
    };
    let begins = thread("begins").spawn_scoped(scope, begin);
    begins.map_err(failed)?;
    let finishes = thread("finishes").spawn_scoped(scope, finish);
    finishes.map(drop).map_err(failed)
}
