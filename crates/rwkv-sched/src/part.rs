//! Running a part of a model, and what passes between parts.

use crate::{Batch, Counted, Decoding, Error, Executor, Result, SlotId, State, ValueId, gpu};
use std::{
    collections::HashMap,
    ops::{Deref, Range},
    sync::Arc,
};

/// Values on the host.
pub(crate) type Carried = HashMap<ValueId, Rows>;

/// A value's rows one after the other, in f32.
pub(crate) enum Rows {
    Own(Vec<f32>),
    /// Where a device has left them, which it uses again when nobody holds them any more.
    Left(Arc<dyn AsRef<[f32]> + Send + Sync>, Range<usize>),
}

/// A micro-batch that a device has begun: waits until it is done, on any thread, adds its results to what is carried, and
/// hands over what the device [drew](PartExecutor::begin_drawing), in the GPU sampler's words.
pub(crate) type Begun = Box<dyn FnOnce(&mut Carried) -> Result<Vec<u32>> + Send>;

/// What a decoding needs of the device that has the logits, to draw tokens there: the sequences of each micro-batch.
pub(crate) struct Drawing<'a> {
    pub(crate) groups: &'a [&'a [Decoding]],
    /// Steps of each at most.
    pub(crate) steps: usize,
    /// Whether the samplers' penalties count a token.
    pub(crate) counted: Counted<'a>,
}

/// Copies of the states of some slots, where the states are.
pub(crate) enum StateCopies {
    Host(Vec<(SlotId, State)>),
    Gpu(gpu::StateCopies),
}

/// An executor of some layers of a model. A whole model is the part that needs nothing, and makes logits.
pub(crate) trait PartExecutor: Executor {
    /// Begins to advance the batch's slots by its tokens, with what the graph reads of other parts from `carried`. Its
    /// results are added there when what is returned is called; logits are among them as far as they are wanted. What is
    /// begun later is computed later.
    ///
    /// # Errors
    /// Those of [`Executor::run`].
    fn begin_part(&mut self, batch: &Batch, carried: &Carried) -> Result<Begun>;

    /// The same until it is done.
    ///
    /// # Errors
    /// Those of [`Executor::run`].
    fn run_part(&mut self, batch: &Batch, carried: &mut Carried) -> Result<()> {
        let finish = self.begin_part(batch, carried)?;
        finish(carried).map(drop)
    }

    /// Gets ready to draw tokens on the device, until this is asked again; says whether it can.
    ///
    /// # Errors
    /// A GPU's failure, or a sampler that is refused.
    fn prepare_drawing(&mut self, _drawing: &Drawing<'_>) -> Result<bool> {
        Ok(false)
    }

    /// As [`begin_part`](Self::begin_part) for a token of each sequence of a group that was
    /// [prepared](Self::prepare_drawing); instead of logits there is a token of each.
    ///
    /// # Errors
    /// Those of [`Executor::run`].
    fn begin_drawing(&mut self, _group: usize, batch: &Batch, carried: &Carried) -> Result<Begun> {
        self.begin_part(batch, carried)
    }

    /// Room for copies of the states of `slots`; none where there is no memory for it.
    ///
    /// # Errors
    /// [`Error::SlotRange`], or a GPU's failure.
    fn state_copies(&mut self, slots: &[SlotId]) -> Result<Option<StateCopies>> {
        let state = |slot: &SlotId| Ok((*slot, self.state(*slot)?));
        let states = slots.iter().map(state).collect::<Result<_>>()?;
        Ok(Some(StateCopies::Host(states)))
    }

    /// Copies the states as they are after what was begun.
    ///
    /// # Errors
    /// A GPU's failure.
    fn copy_states(&mut self, copies: &mut StateCopies) -> Result<()> {
        if let StateCopies::Host(states) = copies {
            for (slot, state) in states {
                *state = self.state(*slot)?;
            }
        }
        Ok(())
    }

    /// Puts the copies back.
    ///
    /// # Errors
    /// A GPU's failure.
    fn put_back(&mut self, copies: &StateCopies) -> Result<()> {
        if let StateCopies::Host(states) = copies {
            for (slot, state) in states {
                self.set_state(*slot, state)?;
            }
        }
        Ok(())
    }
}

impl Deref for Rows {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self {
            Self::Own(rows) => rows,
            Self::Left(all, own) => (**all).as_ref().get(own.clone()).unwrap_or_default(),
        }
    }
}

impl From<Rows> for Vec<f32> {
    fn from(rows: Rows) -> Self {
        match rows {
            Rows::Own(rows) => rows,
            left @ Rows::Left(..) => left.to_vec(),
        }
    }
}

/// A value that another part has made.
pub(crate) fn carried_value(carried: &Carried, id: ValueId) -> Result<&[f32]> {
    let value = carried.get(&id).map(Deref::deref);
    value.ok_or_else(|| Error::Config {
        problem: format!(
            "value {} of another part is not there: this is a mistake in this program",
            id.0
        ),
    })
}
