//! Decoding several sequences at once, step after step, each with its own sampler.

use crate::{
    Batch, BatchSpan, Error, Executor, Result, SlotId, TokenId, Wanted, sampling::Sampler,
};
use rayon::prelude::*;
use std::{collections::HashMap, ops::ControlFlow};

/// Tokens that one thread chooses.
const CHOSEN_BY_ONE: usize = 2;

/// A sequence that is decoded.
#[derive(Clone, Debug)]
pub struct Decoding {
    /// Where its state is.
    pub slot: SlotId,
    /// The token that is fed next: chosen, and not yet in the state.
    pub token: TokenId,
    /// Chooses its tokens.
    pub sampler: Sampler,
}

impl Decoding {
    /// Chooses its next token by a row of logits.
    pub(crate) fn choose(&mut self, row: &[f32], counted: Counted<'_>) -> Result<TokenId> {
        let token = self.sampler.sample(row)?;
        self.sampler.accept(token, counted(token));
        self.token = token;
        Ok(token)
    }

    /// Its next token was drawn where the logits are.
    pub(crate) fn drew(&mut self, token: TokenId, counted: Counted<'_>) {
        self.sampler.drawn(token, counted(token));
        self.token = token;
    }
}

/// What [`Executor::decode`] does besides: told of every step's tokens, in the order of the sequences.
pub type OnTokens<'a> = &'a mut dyn FnMut(&[TokenId]) -> ControlFlow<()>;

/// A chunk of prompts, and tokens after it.
pub struct Burst<'a> {
    /// What is fed first; it may be empty. A sequence whose span here wants its last logits begins with the token that is drawn
    /// from them, whatever token it has.
    pub prompts: &'a Batch,
    /// All that get tokens: first those that go on.
    pub sequences: &'a mut [Decoding],
    /// So many of them have the steps after the prompts; the others get no more than the token that they begin with.
    pub going_on: usize,
    /// Steps after the prompts, each of which feeds every sequence that goes on its token and draws the next one.
    pub steps: usize,
    /// Which tokens the samplers' penalties count.
    pub counted: Counted<'a>,
    /// Whether it may end right where it is broken off. Where that would have to be undone it has a cost, and without this the steps
    /// that are on their way then are told too, but no others are begun.
    pub may_stop: bool,
}

impl Burst<'_> {
    /// The sequences that have steps.
    pub(crate) fn stepping(&self) -> &[Decoding] {
        let count = self.going_on.min(self.sequences.len());
        self.sequences.split_at(count).0
    }

    /// Of each row of logits that the prompts want, the number of the sequence that begins with it.
    pub(crate) fn begins(&self) -> Vec<Option<usize>> {
        let numbers = self.sequences.iter().enumerate();
        let numbers: HashMap<SlotId, usize> = numbers.map(|(n, s)| (s.slot, n)).collect();
        let rows = self.prompts.spans.iter().flat_map(|span| {
            let number = numbers.get(&span.slot).copied();
            let rows = match span.wanted {
                Wanted::None => 0,
                Wanted::Last => 1,
                Wanted::All => span.tokens.len(),
            };
            (0..rows).map(move |row| number.filter(|_| row + 1 == rows))
        });
        rows.collect()
    }
}

/// Told of the tokens of the prompts' step, if it draws any, and of every step after it: one of each sequence, in their order, or
/// none where the sequence did not get one.
pub type OnDrawn<'a> = &'a mut dyn FnMut(&[Option<TokenId>]) -> ControlFlow<()>;

/// Whether the samplers' penalties count a token; asked from several threads.
pub type Counted<'a> = &'a (dyn Fn(TokenId) -> bool + Sync);

/// Feeds every sequence its token and samples the next, `steps` times or until `take` breaks off.
pub(crate) fn on_the_host<E: Executor + ?Sized>(
    executor: &mut E,
    sequences: &mut [Decoding],
    steps: usize,
    counted: Counted<'_>,
    take: OnTokens<'_>,
) -> Result<()> {
    for _ in 0..steps {
        let logits = executor.run(&batch(sequences, Wanted::Last))?;
        if logits.len() != sequences.len() {
            return Err(Error::EmptyPrompt);
        }
        let rows = sequences.iter_mut().zip(logits.rows());
        let tokens = rows.map(|(sequence, row)| sequence.choose(row, counted));
        let tokens: Vec<TokenId> = tokens.collect::<Result<_>>()?;
        if take(&tokens).is_break() {
            break;
        }
    }
    Ok(())
}

/// Runs the prompts, chooses the first tokens on the host, and decodes.
pub(crate) fn one_after_the_other<E: Executor + ?Sized>(
    executor: &mut E,
    burst: Burst<'_>,
    take: OnDrawn<'_>,
) -> Result<()> {
    let begins = burst.begins();
    let (count, going_on) = (burst.sequences.len(), burst.stepping().len());
    let Burst {
        prompts,
        sequences,
        steps,
        counted,
        ..
    } = burst;
    if !prompts.spans.is_empty() {
        let logits = executor.run(prompts)?;
        if logits.len() != begins.len() {
            return Err(Error::EmptyPrompt);
        }
        let mut drawn = vec![None; sequences.len()];
        let rows = begins.into_iter().zip(logits.rows());
        let mut rows: HashMap<usize, &[f32]> =
            rows.filter_map(|(n, row)| Some((n?, row))).collect();
        let beginning = sequences.iter_mut().zip(&mut drawn).enumerate();
        let mut beginning: Vec<_> = beginning
            .filter_map(|(number, of)| Some((of, rows.remove(&number)?)))
            .collect();
        let some = !beginning.is_empty();
        beginning
            .par_iter_mut()
            .with_min_len(CHOSEN_BY_ONE)
            .try_for_each(|((sequence, drawn), row)| {
                **drawn = Some(sequence.choose(row, counted)?);
                Ok::<(), Error>(())
            })?;
        if some && take(&drawn).is_break() {
            return Ok(());
        }
    }
    if steps == 0 || going_on == 0 {
        return Ok(());
    }
    let (stepping, _) = sequences.split_at_mut(going_on);
    executor.decode(stepping, steps, counted, &mut |tokens| {
        let mut drawn: Vec<_> = tokens.iter().copied().map(Some).collect();
        drawn.resize(count, None);
        take(&drawn)
    })
}

/// One token a sequence.
pub(crate) fn batch(sequences: &[Decoding], wanted: Wanted) -> Batch {
    let span = |sequence: &Decoding| BatchSpan {
        slot: sequence.slot,
        tokens: vec![sequence.token],
        wanted,
    };
    Batch {
        spans: sequences.iter().map(span).collect(),
    }
}
