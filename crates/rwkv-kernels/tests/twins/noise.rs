//! Numbers to compute with.

use proptest::prelude::*;

/// A stream of numbers from a seed (Marsaglia's xorshift64).
pub(crate) struct Noise(u64);

impl Noise {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: u32) -> u32 {
        u32::try_from((self.bits() >> 33) % u64::from(end)).unwrap()
    }

    /// In −1 to 1.
    pub(crate) fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// `n` numbers in ±`scale`; a few are zero, a few 30 times as large.
    pub(crate) fn values(&mut self, n: usize, scale: f32) -> Vec<f32> {
        (0..n)
            .map(|_| match self.below(64) {
                0 => 0.0,
                1 => self.unit() * scale * 30.0,
                _ => self.unit() * scale,
            })
            .collect()
    }
}

/// Sizes of activations, from vanishing to very large.
pub(crate) fn scale() -> impl Strategy<Value = f32> {
    prop::sample::select(vec![1e-3, 0.1, 1.0, 1.0, 30.0, 1e4])
}
