//! Choosing the next token from logits: penalties, top-k, top-p, min-p, temperature and the draw.
//!
//! This is the plain Rust twin of the sampling kernels: the same seed and the same logits give the same token, on any
//! processor, because everything that decides is spelled out here in f32 arithmetic and comparisons
//! ([Philox](philox4x32) for the random numbers, an exponential of our own). Of a platform's mathematics library only
//! the f64 logarithm of `min_p` is used, rounded to f32. Sums are f64 here; a kernel that sums in f32 chooses another
//! token only when `u · total` or `top_p · total` lies within rounding (about 1e-5 of the total) of a boundary between
//! two tokens.
//!
//! What is computed, in this order, for logits `l`:
//!
//! 1. `a = l + logit_bias`, and for every token seen so far `a −= presence + count · frequency`. Finite values stay
//!    finite (they saturate); `−inf` stays `−inf` and means that the token cannot come. A count is `decay^n` times what
//!    it was `n` tokens ago. Subnormal numbers are 0, here and in the gaps.
//! 2. `gap = max(a) − a`, f32 and never negative. Tokens are ranked by `(gap, id)`: the lower id comes first in a tie.
//!    With temperature 0 the first of the ranking is the answer.
//! 3. The filters, each of which keeps a beginning of the ranking. With [`SamplerOrder::Reference`] their weights are
//!    `exp(−gap)` and they come as top-p, top-k, min-p; with [`SamplerOrder::TemperatureFirst`] the weights are
//!    `exp(−gap / temperature)` (a product with the rounded `1 / temperature`) and they come as top-k, top-p (a share of
//!    what top-k left), min-p.
//! 4. The tokens that are left weigh `exp(−gap / temperature)`, which is `p^(1/temperature)` but for a factor. In the
//!    order of their ids, the first whose running sum exceeds `u · total` is the answer, with `u` from
//!    [`uniform`]`(seed, step)`.

mod error;
mod exp;
mod gpu;
mod params;
mod penalties;
mod random;
mod ranking;
mod sampler;
#[cfg(test)]
mod tests;

pub use error::SamplingError;
pub use gpu::{Chosen, Draw, DrawSettings, NONE, bias_words, counted_words, memory_words};
pub use params::{SamplerOrder, SamplerParams};
pub use random::{philox4x32, uniform};
pub use sampler::Sampler;
