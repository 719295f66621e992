//! Numbers by their place.

/// How a tensor's elements are distributed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Distribution {
    /// The same everywhere.
    Constant(f32),
    /// Within `centre ± spread`.
    Uniform { centre: f32, spread: f32 },
    /// A bell: the sum of four uniform numbers, which reaches 3.46 standard deviations.
    Bell { mean: f32, deviation: f32 },
}

/// A tensor to be made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Made {
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) distribution: Distribution,
    /// So many elements that follow each other are the same.
    pub(super) repeat: usize,
    /// What tells this tensor from others.
    pub(super) key: u64,
}

/// SplitMix64's step and its finishing function (Steele, Lea and Flood 2014): the n-th number of a stream is the mix
/// of n steps, so that any of them can be had at once.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

pub(super) fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The key of the tensor called `name` (FNV-1a of it) in the model of `seed`.
pub(super) fn key(seed: u64, name: &str) -> u64 {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    mix(hash ^ mix(seed.wrapping_add(STEP)))
}

impl Made {
    /// The elements from place `first` on.
    pub(super) fn fill(&self, first: usize, out: &mut [f32]) {
        let random = |place: usize| {
            let place = (place / self.repeat.max(1)) as u64;
            mix(self
                .key
                .wrapping_add(place.wrapping_add(1).wrapping_mul(STEP)))
        };
        for (place, x) in (first..).zip(out) {
            *x = match self.distribution {
                Distribution::Constant(value) => value,
                Distribution::Uniform { centre, spread } => {
                    let unit = (random(place) >> 40) as f32 / (1u32 << 23) as f32 - 1.0;
                    centre + spread * unit
                }
                Distribution::Bell { mean, deviation } => {
                    let bits = random(place);
                    let quarters = [0, 16, 32, 48].map(|shift| (bits >> shift) & 0xffff);
                    let sum = quarters.iter().sum::<u64>() as f32 / 65_536.0;
                    // Four numbers in 0 to 1: mean 2 less half a step each, variance 1/3.
                    mean + deviation * (sum + 2.0 / 65_536.0 - 2.0) * 1.732_050_8
                }
            };
        }
    }
}

/// The place below which a standard normal number lies with `probability` (Abramowitz and Stegun 1964, 26.2.23; within
/// 4.5e-4).
pub(super) fn normal_quantile(probability: f64) -> f64 {
    if probability > 0.5 {
        return -normal_quantile(1.0 - probability);
    }
    let t = (-2.0 * probability.ln()).sqrt();
    let top = 2.515_517 + t * (0.802_853 + t * 0.010_328);
    let bottom = 1.0 + t * (1.432_788 + t * (0.189_269 + t * 0.001_308));
    top / bottom - t
}

/// The mean of `relu(z − t)⁴` for a standard normal z, where `zeros` of them are below t.
pub(super) fn rectified_fourth_moment(t: f64, zeros: f64) -> f64 {
    let density = (-t * t / 2.0).exp() / std::f64::consts::TAU.sqrt();
    (t.powi(4) + 6.0 * t * t + 3.0) * (1.0 - zeros) - (t.powi(3) + 5.0 * t) * density
}
