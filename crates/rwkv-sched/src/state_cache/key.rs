//! What tells cached states apart: what made them, and the tokens that they have seen.

use crate::{State, TokenId};
use blake3::Hasher;

/// What the states of a prefix must share to be exchanged: 256 bits of BLAKE3 over whatever they depend on beside the
/// tokens. Begin with the model ([`new`](Self::new)) and add the rest ([`with`](Self::with)): its quantization, the blend of
/// adapters with their strengths, the initial state, and the device too where tokens must be equal to the last bit. Use
/// names that outlive the process, fingerprints of files say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CacheKey([u8; 32]);

impl CacheKey {
    /// The states of a model that nothing was added to.
    pub fn new(model: &[u8]) -> Self {
        let mut hasher = Hasher::new_derive_key("rwkv-sched state cache 1");
        hasher.update(model);
        Self(hasher.finalize().into())
    }

    /// What differs from `self` by `part`. The order of parts counts.
    #[must_use]
    pub fn with(self, part: &[u8]) -> Self {
        let mut hasher = Hasher::new_keyed(&self.0);
        hasher.update(part);
        Self(hasher.finalize().into())
    }

    /// What differs from `self` by the state that sequences begin with.
    #[must_use]
    pub fn with_initial_state(self, state: &State) -> Self {
        let mut hasher = Hasher::new_keyed(&self.0);
        for values in state.wkv.iter().chain(&state.shift) {
            hasher.update(&(values.len() as u64).to_le_bytes());
            hasher.update(bytemuck::cast_slice(values));
        }
        Self(hasher.finalize().into())
    }

    /// The first bits, which tell the keys of one store apart without proof.
    pub(super) fn tag(self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }
}

/// A prefix under a key, without its tokens: 256 bits of BLAKE3 over both. Who knows the tokens can find the state, and
/// what is on a disk says nothing about them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct PrefixId(pub(super) [u8; 32]);

impl PrefixId {
    pub(super) fn of(key: CacheKey, tokens: &[TokenId]) -> Self {
        let mut prefix = GrowingPrefix::new(key);
        prefix.push(tokens);
        prefix.id()
    }
}

/// The ids of longer and longer prefixes of one prompt, each token hashed once.
pub(super) struct GrowingPrefix(Hasher);

impl GrowingPrefix {
    pub(super) fn new(key: CacheKey) -> Self {
        Self(Hasher::new_keyed(&key.0))
    }

    pub(super) fn push(&mut self, tokens: &[TokenId]) {
        if cfg!(target_endian = "little") {
            self.0.update(bytemuck::cast_slice(tokens));
        } else {
            for token in tokens {
                self.0.update(&token.to_le_bytes());
            }
        }
    }

    pub(super) fn id(&self) -> PrefixId {
        PrefixId(self.0.finalize().into())
    }
}
