//! A step's work: a ragged list of spans.

use crate::{Error, Model, Result, part::Carried};
use rwkv_kernels::{Span, Token};

/// A token of the vocabulary.
pub type TokenId = u32;

/// The place of a sequence's state in an executor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotId(pub u32);

/// Which logits of a span are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Wanted {
    /// None: the span only advances the state.
    None,
    /// Those after its last token.
    #[default]
    Last,
    /// Those after each token.
    All,
}

/// Consecutive tokens of one sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchSpan {
    /// Where its state is.
    pub slot: SlotId,
    /// The tokens, at least one.
    pub tokens: Vec<TokenId>,
    /// Which logits to compute.
    pub wanted: Wanted,
}

/// Spans that advance together, each with a slot of its own. Decoding is the case of one token a span.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The spans.
    pub spans: Vec<BatchSpan>,
}

impl Batch {
    /// One span.
    pub fn single(slot: SlotId, tokens: &[TokenId], wanted: Wanted) -> Self {
        Self {
            spans: vec![BatchSpan {
                slot,
                tokens: tokens.to_vec(),
                wanted,
            }],
        }
    }

    /// Tokens of all spans.
    pub fn tokens(&self) -> usize {
        self.spans.iter().map(|s| s.tokens.len()).sum()
    }

    /// The batch in at most `parts` batches of as many tokens each, the last perhaps of fewer. Run one after the other they
    /// make its logits: a span may go on in the next one.
    #[must_use]
    pub fn cut(&self, parts: usize) -> Vec<Self> {
        let size = self.tokens().div_ceil(parts.max(1)).max(1);
        let mut all = Vec::new();
        let mut now = Self::default();
        let mut room = size;
        for span in &self.spans {
            let mut rest = span.tokens.as_slice();
            while !rest.is_empty() {
                let (tokens, after) = rest.split_at(room.min(rest.len()));
                let wanted = match span.wanted {
                    Wanted::Last if !after.is_empty() => Wanted::None,
                    wanted => wanted,
                };
                now.spans.push(BatchSpan {
                    slot: span.slot,
                    tokens: tokens.to_vec(),
                    wanted,
                });
                (rest, room) = (after, room - tokens.len());
                if room == 0 {
                    all.push(std::mem::take(&mut now));
                    room = size;
                }
            }
        }
        if !now.spans.is_empty() {
            all.push(now);
        }
        all
    }

    /// Checks the batch against a vocabulary and a number of slots, and lays it out for the kernels.
    ///
    /// # Errors
    /// [`Error::TokenRange`], [`Error::SlotRange`], or [`Error::Batch`] for an empty batch or span and for two spans
    /// of one slot, whose order would be undefined.
    pub fn tables(&self, vocab: usize, slots: usize) -> Result<Tables> {
        let batch_error = |problem: String| Error::Batch { problem };
        let mut tables = Tables::default();
        let mut used = std::collections::HashSet::new();
        for (index, span) in (0u32..).zip(&self.spans) {
            if span.slot.0 as usize >= slots {
                return Err(Error::SlotRange {
                    slot: span.slot,
                    slots,
                });
            }
            if !used.insert(span.slot) {
                return Err(batch_error(format!("slot {} occurs twice", span.slot.0)));
            }
            if span.tokens.is_empty() {
                return Err(batch_error(format!(
                    "the span of slot {} has no tokens",
                    span.slot.0
                )));
            }
            let row = |n: usize| {
                u32::try_from(n).map_err(|_| batch_error("more than 2^32 tokens".to_owned()))
            };
            let (start, length) = (row(tables.tokens.len())?, row(span.tokens.len())?);
            for &token in &span.tokens {
                if token as usize >= vocab {
                    return Err(Error::TokenRange { token, vocab });
                }
                tables.tokens.push(Token {
                    id: token,
                    span: index,
                });
            }
            let end = row(tables.tokens.len())?;
            match span.wanted {
                Wanted::None => {}
                Wanted::Last => tables.outputs.push(end - 1),
                Wanted::All => tables.outputs.extend(start..end),
            }
            tables.spans.push(Span {
                start,
                length,
                slot: span.slot.0,
                padding: 0,
            });
        }
        if tables.spans.is_empty() {
            return Err(batch_error("it has no spans".to_owned()));
        }
        Ok(tables)
    }
}

/// How large a batch is: what steps must agree in to be planned, or recorded, alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BatchShape {
    /// Tokens of all spans.
    pub tokens: usize,
    /// Spans.
    pub spans: usize,
    /// Tokens whose logits are wanted.
    pub outputs: usize,
}

impl BatchShape {
    /// One token for each of so many sequences, with the logits of all.
    pub fn decode(sequences: usize) -> Self {
        Self {
            tokens: sequences,
            spans: sequences,
            outputs: sequences,
        }
    }

    pub(crate) fn of(tables: &Tables) -> Self {
        Self {
            tokens: tables.tokens.len(),
            spans: tables.spans.len(),
            outputs: tables.outputs.len(),
        }
    }

    /// Whether every span has one token: then it is the token's number.
    pub(crate) fn is_single(self) -> bool {
        self.tokens == self.spans
    }

    /// Whether every token's logits are wanted.
    pub(crate) fn wants_all(self) -> bool {
        self.tokens == self.outputs
    }
}

/// A batch as the kernels read it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// One row of the activations each.
    pub tokens: Vec<Token>,
    /// The spans.
    pub spans: Vec<Span>,
    /// Rows whose logits are wanted.
    pub outputs: Vec<u32>,
}

/// Logits of the wanted rows, in the order of spans and tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Logits {
    vocab: usize,
    values: Vec<f32>,
}

impl Logits {
    /// No rows.
    pub(crate) fn none(model: &Model) -> Self {
        Self {
            vocab: model.config().vocab,
            values: Vec::new(),
        }
    }

    /// Adds the rows of another one, of the same vocabulary.
    pub(crate) fn append(&mut self, mut rows: Self) {
        self.vocab = rows.vocab;
        if self.values.is_empty() {
            self.values = rows.values;
        } else {
            self.values.append(&mut rows.values);
        }
    }

    /// Adds a row, which has a value for each token.
    pub(crate) fn push(&mut self, row: &[f32]) {
        self.vocab = row.len();
        self.values.extend_from_slice(row);
    }

    /// Those among what `model`'s graph has made: none where none were wanted.
    pub(crate) fn of(model: &Model, mut carried: Carried) -> Self {
        let values = model.graph().logits().and_then(|id| carried.remove(&id));
        Self {
            vocab: model.config().vocab,
            values: values.map(Vec::from).unwrap_or_default(),
        }
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.values.len() / self.vocab.max(1)
    }

    /// Whether none were wanted.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The rows, each with one value a token of the vocabulary.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.values.chunks_exact(self.vocab.max(1))
    }

    /// The last row.
    pub fn last(&self) -> Option<&[f32]> {
        self.rows().last()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(slot: u32, tokens: &[u32], wanted: Wanted) -> BatchSpan {
        BatchSpan {
            slot: SlotId(slot),
            tokens: tokens.to_vec(),
            wanted,
        }
    }

    #[test]
    fn tables() {
        let batch = Batch {
            spans: vec![
                span(3, &[1, 2], Wanted::All),
                span(0, &[9], Wanted::None),
                span(1, &[4, 5, 6], Wanted::Last),
            ],
        };
        let tables = batch.tables(10, 4).ok();
        let got = tables.map(|t| {
            (
                t.spans
                    .iter()
                    .map(|s| (s.start, s.length, s.slot))
                    .collect::<Vec<_>>(),
                t.outputs,
            )
        });
        assert_eq!(
            got,
            Some((vec![(0, 2, 3), (2, 1, 0), (3, 3, 1)], vec![0, 1, 5]))
        );
    }

    #[test]
    fn refused() {
        #[track_caller]
        fn check(spans: Vec<BatchSpan>, want: &str) {
            let error = Batch { spans }.tables(10, 4).map_err(|e| e.to_string());
            assert!(matches!(&error, Err(e) if e.contains(want)), "{error:?}");
        }
        check(vec![], "no spans");
        check(vec![span(0, &[], Wanted::Last)], "no tokens");
        check(
            vec![span(0, &[10], Wanted::Last)],
            "token 10 is out of range",
        );
        check(vec![span(4, &[1], Wanted::Last)], "slot 4 is out of range");
        check(
            vec![span(1, &[1], Wanted::Last), span(1, &[2], Wanted::Last)],
            "twice",
        );
    }
}
