//! Decoding, by the executor and by hand.

use super::{span, states};
use rwkv_sched::{
    Batch, Counted, Decoding, Executor, Result, SlotId, State, TokenId, Wanted,
    sampling::{Sampler, SamplerParams},
};
use std::ops::ControlFlow;

/// Tokens whose repetition counts.
pub(crate) fn counted(token: TokenId) -> bool {
    !token.is_multiple_of(3)
}

/// Step by step, the sampler on the host: the tokens of each step, and the states in the end.
pub(crate) fn by_hand(
    executor: &mut dyn Executor,
    mut all: Vec<Decoding>,
    steps: usize,
) -> (Vec<Vec<TokenId>>, Vec<State>) {
    let mut tokens = Vec::new();
    for _ in 0..steps {
        let spans = all.iter().map(|s| span(s.slot.0, &[s.token], Wanted::Last));
        let spans = spans.collect();
        let logits = executor.run(&Batch { spans }).unwrap();
        for (sequence, row) in all.iter_mut().zip(logits.rows()) {
            let token = sequence.sampler.sample(row).unwrap();
            sequence.sampler.accept(token, counted(token));
            sequence.token = token;
        }
        tokens.push(all.iter().map(|s| s.token).collect());
    }
    (tokens, states(executor))
}

/// The tokens of each step of [`Executor::decode`], until `stop` of `steps` were told.
pub(crate) fn decoded(
    executor: &mut dyn Executor,
    all: &mut [Decoding],
    (steps, stop): (usize, usize),
) -> Result<Vec<Vec<TokenId>>> {
    told(executor, all, (steps, Some(stop)), &counted)
}

/// The tokens of one sequence, in slot 0 from token 5 on, all of which count: of `steps` steps, or until `stop` of them were
/// told.
pub(crate) fn decoded_alone(
    executor: &mut dyn Executor,
    params: SamplerParams,
    steps: usize,
    stop: Option<usize>,
) -> Vec<TokenId> {
    let mut alone = [Decoding {
        slot: SlotId(0),
        token: 5,
        sampler: Sampler::new(params).unwrap(),
    }];
    let tokens = told(executor, &mut alone, (steps, stop), &|_| true);
    tokens.unwrap().concat()
}

fn told(
    executor: &mut dyn Executor,
    all: &mut [Decoding],
    (steps, stop): (usize, Option<usize>),
    counted: Counted<'_>,
) -> Result<Vec<Vec<TokenId>>> {
    let mut told = Vec::new();
    executor.decode(all, steps, counted, &mut |tokens| {
        told.push(tokens.to_vec());
        if Some(told.len()) == stop {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })?;
    Ok(told)
}

/// The usual ones, with this seed.
pub(crate) fn seeded(seed: u64) -> SamplerParams {
    SamplerParams {
        seed,
        ..SamplerParams::default()
    }
}

pub(crate) fn greedy() -> SamplerParams {
    SamplerParams {
        temperature: 0.0,
        ..SamplerParams::default()
    }
}
