//! What is computed group by group or head by head around the recurrence: sums of lanes side by side.

use super::{
    Simd,
    level::at_level,
    vectors::{Vectors, Work},
};
use crate::{Result, ops};

/// Sums side by side.
const LANES: usize = 16;

/// Σ of what `term` makes of each index below `n`.
#[inline(always)]
fn sum(n: usize, term: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let whole = n / LANES * LANES;
    for start in (0..whole).step_by(LANES) {
        for (i, lane) in lanes.iter_mut().enumerate() {
            *lane += term(start + i);
        }
    }
    let mut sum: f32 = (whole..n).map(term).sum();
    for lane in lanes {
        sum += lane;
    }
    sum
}

/// As [`ops::norm`], with the instructions of `level`.
///
/// # Errors
/// Those of [`ops::norm`].
pub fn norm(
    level: Simd,
    x: &[f32],
    group: usize,
    weight: &[f32],
    bias: &[f32],
    epsilon: f32,
    y: &mut [f32],
) -> Result<()> {
    let width = weight.len();
    let whole =
        width > 0 && group > 0 && width.is_multiple_of(group) && x.len().is_multiple_of(width);
    if whole && bias.len() == width && y.len() == x.len() {
        at_level!(level, v => {
            v.run(Norm { x, group, weight, bias, epsilon, y });
            Ok(())
        });
    }
    ops::norm(x, group, weight, bias, epsilon, y)
}

struct Norm<'a> {
    x: &'a [f32],
    group: usize,
    weight: &'a [f32],
    bias: &'a [f32],
    epsilon: f32,
    y: &'a mut [f32],
}

impl<V: Vectors> Work<V> for Norm<'_> {
    #[inline(always)]
    fn run(self, _: V) {
        let n = self.group;
        let groups = self.x.chunks_exact(n).zip(self.y.chunks_exact_mut(n));
        let weights = self.weight.chunks_exact(n).zip(self.bias.chunks_exact(n));
        for ((x, y), (weight, bias)) in groups.zip(weights.cycle()) {
            let mean = sum(n, |i| x[i]) / n as f32;
            let variance = sum(n, |i| (x[i] - mean) * (x[i] - mean)) / n as f32;
            let scale = 1.0 / (variance + self.epsilon).sqrt();
            for (((x, y), w), b) in x.iter().zip(y).zip(weight).zip(bias) {
                *y = (x - mean) * scale * w + b;
            }
        }
    }
}

/// As [`ops::bonus`], with the instructions of `level`.
///
/// # Errors
/// Those of [`ops::bonus`].
#[expect(clippy::too_many_arguments, reason = "those of the twin and the level")]
pub fn bonus(
    level: Simd,
    x: &[f32],
    r: &[f32],
    k: &[f32],
    v: &[f32],
    r_k: &[f32],
    head_size: usize,
    y: &mut [f32],
) -> Result<()> {
    let width = r_k.len();
    let fit = [r.len(), k.len(), v.len(), y.len()]
        .iter()
        .all(|n| *n == x.len());
    let whole = width > 0 && head_size > 0 && width.is_multiple_of(head_size);
    if fit && whole && x.len().is_multiple_of(width) {
        at_level!(level, token => {
            token.run(Bonus { x, r, k, v, r_k, head_size, y });
            Ok(())
        });
    }
    ops::bonus(x, r, k, v, r_k, head_size, y)
}

struct Bonus<'a> {
    x: &'a [f32],
    r: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    r_k: &'a [f32],
    head_size: usize,
    y: &'a mut [f32],
}

impl<V: Vectors> Work<V> for Bonus<'_> {
    #[inline(always)]
    fn run(self, _: V) {
        let n = self.head_size;
        let weights = self.r_k.chunks_exact(n).cycle();
        for ((start, y), weight) in (0..self.x.len())
            .step_by(n)
            .zip(self.y.chunks_exact_mut(n))
            .zip(weights)
        {
            let at = start..start + n;
            let (x, r) = (&self.x[at.clone()], &self.r[at.clone()]);
            let (k, v) = (&self.k[at.clone()], &self.v[at]);
            let sum = sum(n, |i| r[i] * k[i] * weight[i]);
            for ((y, x), v) in y.iter_mut().zip(x).zip(v) {
                *y = x + sum * v;
            }
        }
    }
}

/// As [`ops::keys7`], with the instructions of `level`.
///
/// # Errors
/// Those of [`ops::keys7`].
#[expect(clippy::too_many_arguments, reason = "those of the twin and the level")]
pub fn keys7(
    level: Simd,
    k: &[f32],
    a: &[f32],
    k_k: &[f32],
    k_a: &[f32],
    head_size: usize,
    replacement: &mut [f32],
    removal: &mut [f32],
) -> Result<()> {
    let width = k_k.len();
    let fit = [a.len(), replacement.len(), removal.len()]
        .iter()
        .all(|n| *n == k.len());
    let whole = width > 0 && head_size > 0 && width.is_multiple_of(head_size);
    if fit && whole && k.len().is_multiple_of(width) && k_a.len() == width {
        at_level!(level, v => {
            v.run(Keys7 { k, a, k_k, k_a, head_size, replacement, removal });
            Ok(())
        });
    }
    ops::keys7(k, a, k_k, k_a, head_size, replacement, removal)
}

struct Keys7<'a> {
    k: &'a [f32],
    a: &'a [f32],
    k_k: &'a [f32],
    k_a: &'a [f32],
    head_size: usize,
    replacement: &'a mut [f32],
    removal: &'a mut [f32],
}

impl<V: Vectors> Work<V> for Keys7<'_> {
    #[inline(always)]
    fn run(self, _: V) {
        let n = self.head_size;
        let keys = self.k.chunks_exact(n).zip(self.a.chunks_exact(n));
        let weights = self
            .k_k
            .chunks_exact(n)
            .zip(self.k_a.chunks_exact(n))
            .cycle();
        let outputs = self
            .replacement
            .chunks_exact_mut(n)
            .zip(self.removal.chunks_exact_mut(n));
        for (((k, a), (k_k, k_a)), (replacement, removal)) in keys.zip(weights).zip(outputs) {
            for i in 0..n {
                replacement[i] = k[i] * (1.0 + (a[i] - 1.0) * k_a[i]);
                removal[i] = k[i] * k_k[i];
            }
            let scale = 1.0 / sum(n, |i| removal[i] * removal[i]).sqrt().max(1e-12);
            for x in removal {
                *x *= scale;
            }
        }
    }
}
