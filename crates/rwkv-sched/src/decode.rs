//! Decoding several sequences at once, step after step, each with its own sampler.

use crate::{
    Batch, BatchSpan, Error, Executor, Result, SlotId, TokenId, Wanted, sampling::Sampler,
};
use std::ops::ControlFlow;

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

/// What [`Executor::decode`] does besides: told of every step's tokens, in the order of the sequences.
pub type OnTokens<'a> = &'a mut dyn FnMut(&[TokenId]) -> ControlFlow<()>;

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
        for (sequence, row) in sequences.iter_mut().zip(logits.rows()) {
            let token = sequence.sampler.sample(row)?;
            sequence.sampler.accept(token, counted(token));
            sequence.token = token;
        }
        let tokens: Vec<TokenId> = sequences.iter().map(|s| s.token).collect();
        if tokens.len() != logits.len() {
            return Err(Error::EmptyPrompt);
        }
        if take(&tokens).is_break() {
            break;
        }
    }
    Ok(())
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
