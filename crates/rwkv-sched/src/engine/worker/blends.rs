//! Blends of adapters, made ready a few tensors at a time while others run.

use super::Worker;
use crate::{Executor, Result, engine::blend::Blend};
use std::collections::HashSet;

/// Tensors between two steps, and where nothing else is to be done.
const BESIDE: usize = 2;
const ALONE: usize = 16;

/// The blends that running jobs name, by number; 0 is the base model.
#[derive(Default)]
pub(super) struct Blends {
    known: Vec<Known>,
    active: u64,
    last: u64,
}

struct Known {
    number: u64,
    blend: Blend,
    ready: bool,
}

impl Blends {
    /// The number of a blend; a new one where it is new.
    pub(super) fn number(&mut self, blend: &Blend) -> u64 {
        if *blend == Blend::default() {
            return 0;
        }
        if let Some(known) = self.known.iter().find(|known| known.blend == *blend) {
            return known.number;
        }
        self.last += 1;
        self.known.push(Known {
            number: self.last,
            blend: blend.clone(),
            ready: false,
        });
        self.last
    }

    /// The number of a blend that is ready.
    pub(super) fn ready(&self, blend: &Blend) -> Option<u64> {
        if *blend == Blend::default() {
            return Some(0);
        }
        let known = self.known.iter().find(|known| known.blend == *blend);
        known.filter(|known| known.ready).map(|known| known.number)
    }

    pub(super) fn is_ready(&self, number: u64) -> bool {
        number == 0 || self.known.iter().any(|k| k.number == number && k.ready)
    }

    /// Forgets all but these and the active one.
    fn retain(&mut self, numbers: &HashSet<u64>) {
        let active = self.active;
        self.known
            .retain(|k| k.number == active || numbers.contains(&k.number));
    }

    /// Makes one blend that is not ready readier; names the blend if it cannot be made.
    fn prepare(
        &mut self,
        executor: &mut dyn Executor,
        tensors: usize,
    ) -> Result<(), (u64, crate::Error)> {
        let Some(next) = self.known.iter_mut().find(|known| !known.ready) else {
            return Ok(());
        };
        match executor.prepare_adapters(next.blend.parts(), tensors) {
            Ok(progress) => next.ready = progress.is_done(),
            Err(error) => return Err((next.number, error)),
        }
        Ok(())
    }

    /// From here on steps run with this blend; or not, since the executor did not keep it, and it has to be made again.
    fn activate(&mut self, executor: &mut dyn Executor, number: u64) -> Result<bool> {
        if self.active == number {
            return Ok(true);
        }
        if number == 0 {
            executor.set_adapters(&[])?;
        } else if let Some(known) = self.known.iter_mut().find(|k| k.number == number) {
            let parts = known.blend.parts();
            if !executor.prepare_adapters(parts, BESIDE)?.is_done() {
                known.ready = false;
                return Ok(false);
            }
            executor.set_adapters(parts)?;
        }
        self.active = number;
        Ok(true)
    }
}

impl Worker {
    /// Works at a blend that a running job waits for; says whether there is one.
    pub(super) fn prepare_blends(&mut self, used: &HashSet<u64>, alone: bool) -> bool {
        self.blends.retain(used);
        self.turns.retain(used);
        let waits = self.blends.known.iter().any(|known| !known.ready);
        let tensors = if alone { ALONE } else { BESIDE };
        if let Err((number, error)) = self.blends.prepare(self.executor.as_mut(), tensors) {
            self.fail_blend(number, error);
        }
        waits
    }

    /// Switches to a blend; says whether the step can run.
    pub(super) fn activate(&mut self, number: u64) -> bool {
        let before = self.blends.active;
        match self.blends.activate(self.executor.as_mut(), number) {
            Ok(active) => {
                self.stats.blend_switches += u64::from(self.blends.active != before);
                active
            }
            Err(error) => {
                self.fail_blend(number, error);
                false
            }
        }
    }

    /// Fails all jobs that need a blend.
    fn fail_blend(&mut self, number: u64, error: crate::Error) {
        let views = self.running_views(std::time::Instant::now());
        let error = std::sync::Arc::new(error);
        for view in views.iter().filter(|view| view.blend == number) {
            self.fail(view.id, crate::Error::Step(error.clone()));
        }
        self.blends.known.retain(|known| known.number != number);
    }
}
