//! Steps that are recorded before anybody asks for them, while the GPU runs another one: what the executor was told to expect, and
//! what has followed such steps before.
//!
//! A recording runs once, and reads its tables when it runs, so it serves any batch that is padded to its plan's shape. Its plan
//! keeps it until it is used, whatever comes in between; where there are too many, the oldest goes. What is expected and has no
//! plan yet gets one.

use super::{
    GpuExecutor,
    plan::{self, Plan},
    plans::PlanKey,
};
use crate::{BatchShape, Forecast, Result};
use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
};

/// Recordings that are kept: what is expected, and the guesses for a step.
const MOST: usize = 4;

/// Which steps come next, and which of them were recorded.
#[derive(Default)]
pub(super) struct Prepared {
    forecast: Forecast<PlanKey>,
    /// Whose plans have a recording, or had one: the oldest first.
    recorded: VecDeque<Weak<Plan>>,
    /// Plans that were made for what is expected, and that the executor is to take in.
    pub(super) made: Vec<(PlanKey, Arc<Plan>)>,
}

impl Prepared {
    /// A step runs by the plan of this key.
    pub(super) fn observe(&mut self, key: &PlanKey) {
        self.forecast.observe(key);
    }

    /// Records what is expected, and the likely next steps. It is not known yet whether they will be asked for: a failure is left
    /// for who asks.
    pub(super) fn record(&mut self, executor: &GpuExecutor) {
        self.record_expected(executor);
        for key in self.forecast.next() {
            if let Some(plan) = executor.plans.peek(&key) {
                noted(self.keep(executor, plan));
            }
        }
    }

    /// Records a step by `plan`, which comes next.
    pub(super) fn record_next(&mut self, executor: &GpuExecutor, plan: &Arc<Plan>) {
        noted(self.keep(executor, plan));
    }

    /// Records what is expected, if the executor was told anything new.
    pub(super) fn record_expected(&mut self, executor: &GpuExecutor) {
        if let Some(shape) = executor.expected.take() {
            noted(self.expect(executor, shape.padded()));
        }
    }

    fn expect(&mut self, executor: &GpuExecutor, shape: BatchShape) -> Result<()> {
        let key = (shape, executor.blends.number());
        let made = self.made.iter().find(|(known, _)| *known == key);
        let plan = executor.plans.peek(&key).or(made.map(|(_, plan)| plan));
        let plan = if let Some(plan) = plan {
            plan.clone()
        } else {
            if !executor.may_prepare(shape) {
                // It needs more than there is: who asks for it may have that.
                return Ok(());
            }
            let plan = executor.resolve(shape)?;
            if plan.leased().needed() > executor.usual {
                // It would drive others out, perhaps for nothing.
                return Ok(());
            }
            // What is expected mostly comes, and then somebody waits for the compiler in any case: better while the GPU is busy.
            plan::compile(executor.kernels.gpu(), plan.pipelines())?;
            let plan = Arc::new(plan);
            self.made.push((key, plan.clone()));
            plan
        };
        self.keep(executor, &plan)
    }

    /// Records a step of `plan`, unless one is.
    fn keep(&mut self, executor: &GpuExecutor, plan: &Arc<Plan>) -> Result<()> {
        if plan.has_recording() {
            return Ok(());
        }
        plan.prepare(executor.kernels.gpu())?;
        tracing::trace!("recorded in advance");
        let waits = |known: &Weak<Plan>| {
            let other = !std::ptr::eq(known.as_ptr(), Arc::as_ptr(plan));
            other && known.upgrade().is_some_and(|plan| plan.has_recording())
        };
        self.recorded.retain(waits);
        self.recorded.push_back(Arc::downgrade(plan));
        while self.recorded.len() > MOST {
            let oldest = self.recorded.pop_front();
            if let Some(plan) = oldest.and_then(|plan| plan.upgrade()) {
                drop(plan.take_recording());
            }
        }
        Ok(())
    }
}

fn noted(prepared: Result<()>) {
    if let Err(error) = prepared {
        tracing::debug!("a step was not prepared: {error}");
    }
}
