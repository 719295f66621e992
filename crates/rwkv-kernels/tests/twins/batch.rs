//! Ragged batches and their tables on the GPU.

use crate::{activation::filled, setup::Setup};
use proptest::prelude::*;
use rwkv_gpu::{Binding, Buffer};
use rwkv_kernels::{BatchTables, Page, Span, Token};
use std::ops::RangeInclusive;

/// Slots that spans may have; the state is cut into two pages.
pub(crate) const SLOTS: u32 = 11;

/// Spans, one after the other, and where the second page starts.
#[derive(Clone, Debug)]
pub(crate) struct Ragged {
    pub(crate) spans: Vec<Span>,
    pub(crate) cut: u32,
}

/// Up to five spans of up to `longest` tokens in random slots; some may be empty, not all.
pub(crate) fn ragged(longest: u32) -> impl Strategy<Value = Ragged> {
    ragged_spans(longest, 1..=5)
}

/// A span for every slot, or nearly: a third of them of no token or one.
pub(crate) fn many_ragged(longest: u32) -> impl Strategy<Value = Ragged> {
    let count = SLOTS as usize;
    (ragged_spans(longest, count - 2..=count), 0..3u32).prop_map(move |(mut ragged, phase)| {
        let mut start = 0;
        for (index, span) in (phase..).zip(&mut ragged.spans) {
            if index % 3 == 0 {
                span.length = index / 3 % 2;
            }
            span.start = start;
            start += span.length;
        }
        if start == 0 {
            ragged.spans[0].length = 1;
            for span in &mut ragged.spans[1..] {
                span.start = 1;
            }
        }
        ragged
    })
}

fn ragged_spans(longest: u32, counts: RangeInclusive<usize>) -> impl Strategy<Value = Ragged> {
    let slots = Just((0..SLOTS).collect::<Vec<_>>()).prop_shuffle();
    (
        prop::collection::vec(0..=longest, counts),
        slots,
        1..SLOTS,
        1..=longest,
    )
        .prop_map(|(mut lengths, slots, cut, one)| {
            if lengths.iter().all(|n| *n == 0) {
                lengths[0] = one;
            }
            let spans = one_after_the_other(&lengths, slots);
            Ragged { spans, cut }
        })
}

/// Spans of these lengths.
fn one_after_the_other(lengths: &[u32], slots: impl IntoIterator<Item = u32>) -> Vec<Span> {
    let mut start = 0;
    let spans = lengths.iter().zip(slots).map(|(length, slot)| {
        let span = Span {
            start,
            length: *length,
            slot,
            padding: 0,
        };
        start += length;
        span
    });
    spans.collect()
}

/// One to nine spans of one token in random slots.
pub(crate) fn singles() -> impl Strategy<Value = Ragged> {
    let slots = Just((0..SLOTS).collect::<Vec<_>>()).prop_shuffle();
    (1usize..=9, slots, 1..SLOTS).prop_map(|(count, slots, cut)| {
        let spans = (0..).zip(slots).take(count).map(|(start, slot)| Span {
            start,
            length: 1,
            slot,
            padding: 0,
        });
        Ragged {
            spans: spans.collect(),
            cut,
        }
    })
}

impl Ragged {
    /// Spans of these lengths, in slots of their own on both pages.
    pub(crate) fn of(lengths: &[u32]) -> Self {
        Self {
            spans: one_after_the_other(lengths, (0..SLOTS).rev()),
            cut: SLOTS / 2,
        }
    }

    /// The same without spans of no token, which executors refuse: then as many spans as tokens have one each.
    pub(crate) fn without_empty(mut self) -> Self {
        self.spans.retain(|span| span.length > 0);
        self
    }

    /// One span of one token in `slot`.
    pub(crate) fn one(slot: u32, cut: u32) -> Self {
        let span = Span {
            start: 0,
            length: 1,
            slot,
            padding: 0,
        };
        Self {
            spans: vec![span],
            cut,
        }
    }

    pub(crate) fn tokens(&self) -> usize {
        self.spans.iter().map(|s| s.length as usize).sum()
    }

    pub(crate) fn pages(&self) -> [Page; 2] {
        [(0, self.cut), (self.cut, SLOTS - self.cut)].map(|(first_slot, slots)| Page {
            first_slot,
            slots,
            padding: [0; 2],
        })
    }
}

/// The elements of `page` in a state of all slots, each of `slot` elements.
pub(crate) fn page_of(state: &[f32], page: Page, slot: usize) -> &[f32] {
    let first = page.first_slot as usize * slot;
    &state[first..first + page.slots as usize * slot]
}

/// The tables in GPU memory.
pub(crate) struct Tables {
    tokens: Buffer,
    spans: Buffer,
    outputs: Buffer,
    span_count: usize,
}

impl Tables {
    /// The tables of `ragged`; ids are zero.
    pub(crate) fn of(setup: &Setup, ragged: &Ragged) -> Self {
        let ids = vec![0; ragged.tokens()];
        Self::new(setup, &ids, &ragged.spans, &[0])
    }

    pub(crate) fn new(setup: &Setup, ids: &[u32], spans: &[Span], outputs: &[u32]) -> Self {
        let mut tokens: Vec<Token> = ids.iter().map(|id| Token { id: *id, span: 0 }).collect();
        for (index, span) in (0u32..).zip(spans) {
            for token in &mut tokens[span.start as usize..(span.start + span.length) as usize] {
                token.span = index;
            }
        }
        let gpu = setup.gpu();
        Self {
            tokens: filled(gpu, bytemuck::cast_slice(&tokens)),
            spans: filled(gpu, bytemuck::cast_slice(spans)),
            outputs: filled(gpu, outputs),
            span_count: spans.len(),
        }
    }

    pub(crate) fn tables(&self) -> BatchTables<'_> {
        BatchTables {
            tokens: Binding::from(&self.tokens),
            spans: Binding::from(&self.spans),
            outputs: Binding::from(&self.outputs),
            span_count: self.span_count,
        }
    }
}
