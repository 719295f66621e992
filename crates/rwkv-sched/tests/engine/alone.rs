//! What a session gets alone: the whole of its tokens fed to an empty slot, and the next ones chosen one by one.

use super::support::random_model::Random;
use rwkv_sched::{
    Batch, Executor, SlotId, State, TokenId, Wanted, engine::Request, sampling::Sampler,
};

/// A session as a list of tokens, after a state.
#[derive(Clone, Default)]
pub(crate) struct Alone {
    pub(crate) base: Option<State>,
    pub(crate) tokens: Vec<TokenId>,
}

impl Alone {
    fn feed(&self, executor: &mut dyn Executor, wanted: Wanted) -> Option<Vec<f32>> {
        let slot = SlotId(0);
        match &self.base {
            Some(state) => executor.set_state(slot, state).unwrap(),
            None => executor.reset(slot).unwrap(),
        }
        if self.tokens.is_empty() {
            return None;
        }
        let batch = Batch::single(slot, &self.tokens, wanted);
        let logits = executor.run(&batch).unwrap();
        logits.last().map(<[f32]>::to_vec)
    }

    pub(crate) fn state(&self, executor: &mut dyn Executor) -> State {
        self.feed(executor, Wanted::None);
        executor.state(SlotId(0)).unwrap()
    }

    /// The tokens that the request generates, of which `seen` at most become the session's.
    pub(crate) fn generate(
        &mut self,
        executor: &mut dyn Executor,
        request: &Request,
        seen: usize,
    ) -> Vec<TokenId> {
        let before = self.tokens.len();
        self.tokens.extend(&request.prompt);
        let answer = self.tokens.len();
        let mut logits = self.feed(executor, Wanted::Last).unwrap();
        let mut sampler = Sampler::new(request.sampler.clone()).unwrap();
        let mut tokens = Vec::new();
        while tokens.len() < request.max_tokens {
            let token = sampler.sample(&logits).unwrap();
            sampler.accept(token, true);
            tokens.push(token);
            if request.stop_tokens.contains(&token) {
                break;
            }
            let batch = Batch::single(SlotId(0), &[token], Wanted::Last);
            logits = executor.run(&batch).unwrap().last().unwrap().to_vec();
        }
        tokens.truncate(seen);
        self.tokens.extend(&tokens);
        if seen == 0 {
            self.tokens.truncate(before);
        } else {
            assert_eq!(self.tokens.len(), answer + tokens.len());
        }
        tokens
    }
}

/// True once in `n` times.
pub(crate) fn once_in(random: &mut Random, n: usize) -> bool {
    random.below(n) == 0
}
