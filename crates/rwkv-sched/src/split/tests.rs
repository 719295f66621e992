//! The stages work at once, in order, and end whatever fails. What the devices are does not matter here.
#![allow(clippy::panic, clippy::unwrap_used, reason = "tests fail by panicking")]

use super::pipeline::{self, Begin, Job};
use crate::{Batch, Error, Result, SlotId, Wanted, part::Begun};
use std::{
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

/// Long enough for any machine, and not for ever.
const LONG: Duration = Duration::from_mins(10);

/// What stages have done, in order.
#[derive(Default)]
struct Log {
    done: Mutex<Vec<(What, usize, u32)>>,
    more: Condvar,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Begun,
    Finished,
}

impl Log {
    fn note(&self, what: What, stage: usize, token: u32) {
        self.done.lock().unwrap().push((what, stage, token));
        self.more.notify_all();
    }

    /// Waits until something has happened.
    fn wait_for(&self, what: What, stage: usize, token: u32) {
        let done = self.done.lock().unwrap();
        let not_yet = |done: &mut Vec<_>| !done.contains(&(what, stage, token));
        let (done, late) = self.more.wait_timeout_while(done, LONG, not_yet).unwrap();
        drop(done);
        assert!(!late.timed_out(), "{what:?} {token} by {stage} never comes");
    }

    fn of(&self, what: What, stage: usize) -> Vec<u32> {
        let done = self.done.lock().unwrap();
        let own = done.iter().filter(|(w, s, _)| (*w, *s) == (what, stage));
        own.map(|(.., token)| *token).collect()
    }
}

/// A stage that computes nothing; micro-batches are known by their first token.
struct Fake {
    stage: usize,
    log: Arc<Log>,
    /// What must have happened before a micro-batch is done: by this stage, another token earlier or later.
    waits: Option<(What, usize, i64)>,
    /// The micro-batches that fail, as they begin or when they are waited for.
    fails: Option<(What, u32)>,
}

impl Begin for Fake {
    fn begin(&mut self, job: &mut Job) -> Result<Begun> {
        let token = job.batch.spans[0].tokens[0];
        let failed = |what| -> Result<()> {
            if self.fails == Some((what, token)) {
                return Err(Error::EmptyPrompt);
            }
            Ok(())
        };
        failed(What::Begun)?;
        self.log.note(What::Begun, self.stage, token);
        let finished = failed(What::Finished);
        let (log, stage, waits) = (self.log.clone(), self.stage, self.waits);
        Ok(Box::new(move |_| {
            if let Some((what, other, distance)) = waits {
                let other_token = i64::from(token) + distance;
                let other_token = u32::try_from(other_token).ok().filter(|t| *t < JOBS);
                if let Some(other_token) = other_token {
                    log.wait_for(what, other, other_token);
                }
            }
            finished?;
            log.note(What::Finished, stage, token);
            Ok(Vec::new())
        }))
    }
}

const JOBS: u32 = 20;

/// What a stage waits for and where it fails.
type Kind = (Option<(What, usize, i64)>, Option<(What, u32)>);

fn stages(kinds: &[Kind]) -> (Vec<Fake>, Arc<Log>) {
    let log = Arc::new(Log::default());
    let fake = |(stage, (waits, fails)): (usize, &Kind)| Fake {
        stage,
        log: log.clone(),
        waits: *waits,
        fails: *fails,
    };
    (kinds.iter().enumerate().map(fake).collect(), log)
}

/// Gives all jobs, and takes them; the tokens that came.
fn run(stages: &mut [Fake]) -> Result<Vec<u32>> {
    pipeline::run(stages, JOBS as usize, |mut ends| {
        for token in 0..JOBS {
            ends.give(Job {
                batch: Batch::single(SlotId(0), &[token], Wanted::None),
                ..Job::default()
            });
        }
        (0..JOBS)
            .map(|_| Ok(ends.take()?.batch.spans[0].tokens[0]))
            .collect()
    })
}

/// A micro-batch on a stage is done only when the one before has begun the next, and that only when this one has begun: who
/// does one thing after another would wait for ever.
#[test]
fn stages_overlap() {
    let waits = [
        (Some((What::Begun, 1, -1)), None),
        (Some((What::Begun, 0, 2)), None),
        (None, None),
    ];
    let (mut stages, log) = stages(&waits);
    let all: Vec<u32> = (0..JOBS).collect();
    assert_eq!(run(&mut stages).unwrap(), all);
    for stage in 0..3 {
        assert_eq!(log.of(What::Begun, stage), all);
        assert_eq!(log.of(What::Finished, stage), all);
    }
}

/// A device has the next micro-batch before this one is done.
#[test]
fn a_device_has_the_next_one() {
    let (mut stages, _) = stages(&[(Some((What::Begun, 0, 1)), None), (None, None)]);
    assert_eq!(run(&mut stages).unwrap().len(), JOBS as usize);
}

/// Whatever fails, wherever and whenever: it is told, and all threads end.
#[test]
fn failures_end_all() {
    for what in [What::Begun, What::Finished] {
        for failing in 0..3 {
            for token in [0, 1, 7, JOBS - 1] {
                let mut all = [(None, None); 3];
                all[failing].1 = Some((what, token));
                let (mut stages, log) = stages(&all);
                let error = run(&mut stages).unwrap_err();
                assert!(matches!(error, Error::EmptyPrompt), "{error}");
                // In order, as far as it came.
                let finished = log.of(What::Finished, failing);
                assert!(finished.len() <= token as usize);
                assert!((0..).zip(&finished).all(|(n, token)| n == *token));
            }
        }
    }
}

/// Who gives up ends the stages too.
#[test]
fn giving_up() {
    let (mut stages, _) = stages(&[(None, None), (None, None)]);
    let given = pipeline::run(&mut stages, 2, |mut ends| {
        ends.give(Job {
            batch: Batch::single(SlotId(0), &[0], Wanted::None),
            ..Job::default()
        });
        Err::<(), _>(Error::Busy)
    });
    assert!(matches!(given, Err(Error::Busy)));
}
