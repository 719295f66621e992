//! Batches that there is no memory for at once: in pieces, one after the other, which need less.
//!
//! What all pieces need is there before the first one begins, so that a batch which does not fit in any way has changed no
//! state.

use super::{GpuExecutor, blend::out_of_memory, plan::Plan, plans::SMALL};
use crate::{
    Batch, BatchShape, Domain, Result,
    batch::Tables,
    part::{Begun, Carried},
};
use std::{collections::HashMap, ops::Range, sync::Arc};

/// A piece of a batch, and the plan that it runs by.
struct Piece {
    tables: Tables,
    plan: Arc<Plan>,
}

impl GpuExecutor {
    /// Whether steps of this shape come all the time: one for which memory does not suffice is no exception.
    pub(super) fn is_usual(&self, shape: BatchShape) -> bool {
        shape.tokens <= self.chunk && shape.outputs <= SMALL
    }

    /// As [`begin_part`](crate::part::PartExecutor::begin_part) for a batch of `shape` that there is no memory for: in the
    /// largest pieces that there is memory for, whose results are together what the batch's would be.
    ///
    /// # Errors
    /// Those of `begin_part`; memory that does not suffice for single tokens.
    pub(super) fn begin_pieces(
        &mut self,
        batch: &Batch,
        shape: BatchShape,
        carried: &Carried,
    ) -> Result<Begun> {
        let most = self.most_tokens;
        let mut usual = self.is_usual(shape) && shape.tokens <= most;
        let mut size = halved(shape.tokens).min(self.chunk).min(most);
        let pieces = loop {
            match self.pieces(&batch.cut(shape.tokens.div_ceil(size))) {
                Err(error) if size > 1 && out_of_memory(&error) => {
                    tracing::debug!(size, "no room for pieces: {error}");
                    // Logits of all tokens may be what is too much.
                    usual |= shape.outputs <= SMALL;
                    size = halved(size);
                }
                pieces => break pieces?,
            }
        };
        if usual {
            tracing::warn!(
                "too little memory on {} for steps of {} tokens: from now on they have {size} at most",
                self.kernels.gpu().name(),
                shape.tokens.min(self.chunk)
            );
            self.most_tokens = size;
            self.shorten_chunks(size);
        }
        let mut all = Carried::new();
        let (mut tokens, mut outputs) = (0..0, 0..0);
        for Piece { tables, plan } in pieces {
            tokens = tokens.end..tokens.end + tables.tokens.len();
            outputs = outputs.end..outputs.end + tables.outputs.len();
            let read = self.rows_of(carried, &tokens, &outputs);
            let mut made = Carried::new();
            self.begin(&tables, &plan, &read)?(&mut made)?;
            for (id, rows) in made {
                all.entry(id).or_default().extend(rows);
            }
        }
        Ok(Box::new(move |carried| {
            carried.extend(all);
            Ok(Vec::new())
        }))
    }

    /// `batches` with their plans, and a place for their results.
    fn pieces(&mut self, batches: &[Batch]) -> Result<Vec<Piece>> {
        let mut plans: HashMap<BatchShape, Arc<Plan>> = HashMap::new();
        let (mut pieces, mut bytes) = (Vec::new(), 0);
        for batch in batches {
            let tables = self.tables(batch)?;
            let shape = BatchShape::of(&tables);
            let plan = match plans.get(&shape.padded()) {
                Some(plan) => plan.clone(),
                None => self.plan(shape.padded())?,
            };
            bytes = plan.results().bytes(shape).max(bytes);
            plans.insert(shape.padded(), plan.clone());
            pieces.push(Piece { tables, plan });
        }
        drop(self.readbacks.take(self.kernels.gpu(), bytes)?);
        Ok(pieces)
    }

    /// The rows of some tokens, and of some whose logits are wanted, of what the graph reads of other parts.
    fn rows_of(&self, carried: &Carried, tokens: &Range<usize>, outputs: &Range<usize>) -> Carried {
        let graph = self.model.graph();
        let some = graph.inputs().filter_map(|id| {
            let value = graph.value(id);
            let rows = match value.domain {
                Domain::Tokens => tokens,
                Domain::Outputs => outputs,
            };
            let elements = rows.start * value.width..rows.end * value.width;
            Some((id, carried.get(&id)?.get(elements)?.to_vec()))
        });
        some.collect()
    }
}

/// The largest power of two below `tokens`, at least one.
fn halved(tokens: usize) -> usize {
    let below = tokens.saturating_sub(1).max(1);
    1 << below.ilog2()
}

#[cfg(test)]
mod tests {
    use super::halved;

    #[test]
    fn halves() {
        assert_eq!([0, 1, 2, 3, 4, 5].map(halved), [1, 1, 1, 2, 2, 4]);
        assert_eq!([2047, 2048, 2049].map(halved), [1024, 1024, 2048]);
        assert_eq!(halved(usize::MAX), 1 << (usize::BITS - 1));
    }
}
