//! Running a part of a model, and what passes between parts.

use crate::{Adapter, Batch, Error, Executor, Result, ValueId};
use std::{collections::HashMap, sync::Arc};

/// Values on the host: their rows one after the other, in f32.
pub(crate) type Carried = HashMap<ValueId, Vec<f32>>;

/// An executor of some layers of a model. A whole model is the part that needs nothing, and makes logits.
pub(crate) trait PartExecutor: Executor {
    /// Advances the batch's slots by its tokens, with what the graph reads of other parts from `carried`; its results are
    /// added there. Logits are among them as far as they are wanted.
    ///
    /// # Errors
    /// Those of [`Executor::run`].
    fn run_part(&mut self, batch: &Batch, carried: &mut Carried) -> Result<()>;

    /// Drops what was [prepared](Executor::prepare_adapters) of a blend, unless it is in use.
    ///
    /// # Errors
    /// [`Error::Adapter`] for a strength that makes no sense.
    fn forget_adapters(&mut self, blend: &[(Arc<Adapter>, f32)]) -> Result<()>;
}

/// A value that another part has made.
pub(crate) fn carried_value(carried: &Carried, id: ValueId) -> Result<&[f32]> {
    let value = carried.get(&id).map(Vec::as_slice);
    value.ok_or_else(|| Error::Config {
        problem: format!(
            "value {} of another part is not there: this is a mistake in this program",
            id.0
        ),
    })
}
