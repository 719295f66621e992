//! Batches that there is no memory for at once: in pieces, one after the other, which need less.
//!
//! What all pieces need is there before the first one begins, so that a batch which does not fit in any way has changed no
//! state.

use super::{
    GpuExecutor,
    blend::out_of_memory,
    plan::Plan,
    plans::{PATIENCE, SMALL},
};
use crate::{
    Batch, BatchShape, Domain, Result, ValueId,
    batch::Tables,
    part::{Begun, Carried, Rows},
};
use std::{collections::HashMap, ops::Range, sync::Arc};

/// The most tokens that steps may have of prompts, and of one token a sequence: those have memory of their own.
#[derive(Default)]
pub(super) struct Limits {
    pub(super) prompts: Limit,
    single: Limit,
}

impl Limits {
    /// That of a step of such a shape.
    fn of(&self, shape: BatchShape) -> &Limit {
        if shape.is_single() {
            &self.single
        } else {
            &self.prompts
        }
    }

    fn of_mut(&mut self, shape: BatchShape) -> &mut Limit {
        if shape.is_single() {
            &mut self.single
        } else {
            &mut self.prompts
        }
    }

    /// A plan is asked for.
    pub(super) fn asked(&mut self, chunk: usize) {
        self.prompts.asked(chunk);
        self.single.asked(chunk);
    }
}

/// The most tokens that a step may have: fewer for a while where memory has not sufficed for more.
pub(super) struct Limit {
    tokens: usize,
    /// Plans that were asked for since that is so.
    asked: usize,
}

impl Default for Limit {
    fn default() -> Self {
        Self::to(usize::MAX)
    }
}

impl Limit {
    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }

    fn is_set(&self) -> bool {
        self.tokens < usize::MAX
    }

    fn to(tokens: usize) -> Self {
        Self { tokens, asked: 0 }
    }

    /// A plan is asked for: now and then twice as many tokens are tried once more, up to a `chunk` and then any number.
    fn asked(&mut self, chunk: usize) {
        if !self.is_set() {
            return;
        }
        self.asked += 1;
        if self.asked == PATIENCE {
            *self = if self.tokens < chunk {
                Self::to(self.tokens.saturating_mul(2).min(chunk))
            } else {
                Self::default()
            };
        }
    }
}

/// A piece of a batch, and the plan that it runs by.
struct Piece {
    tables: Tables,
    plan: Arc<Plan>,
}

impl GpuExecutor {
    /// Whether steps of this shape come all the time: one for which memory does not suffice is no exception.
    fn is_usual(&self, shape: BatchShape) -> bool {
        shape.tokens <= self.chunk && shape.outputs <= SMALL
    }

    /// Whether a step may have this shape, as far as is known.
    pub(super) fn may_run(&self, shape: BatchShape) -> bool {
        shape.tokens <= self.limits.of(shape).tokens()
    }

    /// Whether a plan of this shape may be made before anybody asks for it.
    pub(super) fn may_prepare(&self, shape: BatchShape) -> bool {
        self.is_usual(shape) && self.may_run(shape)
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
        let most = self.limits.of(shape).tokens();
        let mut size = halved(shape.tokens).min(self.chunk).min(most);
        let pieces = loop {
            match self.pieces(&batch.cut(shape.tokens.div_ceil(size))) {
                Err(error) if size > 1 && out_of_memory(&error) => {
                    tracing::debug!(size, "no room for pieces: {error}");
                    // What those have taken so far.
                    self.let_go(0);
                    size = halved(size);
                }
                pieces => break pieces?,
            }
        };
        if self.is_usual(shape) && size < most {
            let known = self.limits.of(shape).is_set();
            let (name, tokens) = (self.kernels.gpu().name(), shape.tokens);
            if known {
                tracing::debug!("still too little memory on {name} for steps of {tokens} tokens");
            } else {
                tracing::warn!(
                    "too little memory on {name} for steps of {tokens} tokens: for a while they have {size} at most"
                );
            }
            *self.limits.of_mut(shape) = Limit::to(size);
        }
        let mut all: HashMap<ValueId, Vec<f32>> = HashMap::new();
        let (mut tokens, mut outputs) = (0..0, 0..0);
        for Piece { tables, plan } in pieces {
            tokens = tokens.end..tokens.end + tables.tokens.len();
            outputs = outputs.end..outputs.end + tables.outputs.len();
            let read = self.rows_of(carried, &tokens, &outputs);
            let mut made = Carried::new();
            self.begin(&tables, &plan, &read)?(&mut made)?;
            for (id, rows) in made {
                all.entry(id).or_default().extend_from_slice(&rows);
            }
        }
        Ok(Box::new(move |carried| {
            carried.extend(all.into_iter().map(|(id, rows)| (id, Rows::Own(rows))));
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
            plan.inputs().reserve(&mut self.upload)?;
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
            let rows = carried.get(&id)?.get(elements)?;
            Some((id, Rows::Own(rows.to_vec())))
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
    use super::{Limit, PATIENCE, halved};

    /// How many tokens are tried, one time after the other.
    #[test]
    fn tried_again() {
        let mut limit = Limit::default();
        let tried = |limit: &mut Limit| {
            for _ in 1..PATIENCE {
                let before = limit.tokens();
                limit.asked(96);
                assert_eq!(limit.tokens(), before);
            }
            limit.asked(96);
            limit.tokens()
        };
        assert_eq!(tried(&mut limit), usize::MAX);
        limit = Limit::to(32);
        assert_eq!([(); 3].map(|()| tried(&mut limit)), [64, 96, usize::MAX]);
        // It has not sufficed.
        limit = Limit::to(16);
        assert_eq!(tried(&mut limit), 32);
        limit = Limit::to(16);
        assert_eq!([(); 2].map(|()| tried(&mut limit)), [32, 64]);
    }

    #[test]
    fn halves() {
        assert_eq!([0, 1, 2, 3, 4, 5].map(halved), [1, 1, 1, 2, 2, 4]);
        assert_eq!([2047, 2048, 2049].map(halved), [1024, 1024, 2048]);
        assert_eq!(halved(usize::MAX), 1 << (usize::BITS - 1));
    }
}
