//! The recurrences with a matrix `[value, key]` a head: four value rows at a time.

use super::{
    Simd,
    kernel::{ROWS, each_row},
    level::at_level,
    vectors::{BLOCK, Vectors, Work},
};
use crate::{
    Result,
    ops::{self, Decay, Function, Wkv6Operands, Wkv7Operands},
};
use rayon::prelude::*;

/// The largest head that is not left to the twin.
const LARGEST: usize = 4 * BLOCK;

/// Elements of states that are advanced before threads share the heads.
const SHARE: usize = 1 << 18;

/// A head's row of an activation, in blocks.
type Head<'a> = &'a [[f32; BLOCK]];

/// Whether heads are whole blocks and the sizes fit; the twin says what is wrong where they do not.
fn fits(state: &[f32], head_size: usize, y: &[f32], operands: &[&[f32]]) -> bool {
    let n = head_size;
    let whole = n > 0 && n <= LARGEST && n.is_multiple_of(BLOCK) && !state.is_empty();
    whole
        && state.len().is_multiple_of(n * n)
        && y.len().is_multiple_of(state.len() / n)
        && operands.iter().all(|x| x.len() == y.len())
}

/// As [`ops::wkv7`], with the instructions of `level` where heads are of 32, 64, 96 or 128 channels.
///
/// # Errors
/// Those of [`ops::wkv7`].
pub fn wkv7(
    level: Simd,
    x: Wkv7Operands<'_>,
    head_size: usize,
    state: &mut [f32],
    y: &mut [f32],
) -> Result<()> {
    if fits(state, head_size, y, &[x.r, x.w, x.k, x.kappa, x.v, x.a]) {
        at_level!(level, v => {
            by_head(state, head_size, y, |head, state, y, width| {
                v.run(Head7 { x, head, head_size, width, state, y });
            });
            Ok(())
        });
    }
    ops::wkv7(x, head_size, state, y)
}

/// As [`ops::wkv6`], with the instructions of `level` where heads are of 32, 64, 96 or 128 channels.
///
/// # Errors
/// Those of [`ops::wkv6`].
pub fn wkv6(
    level: Simd,
    x: Wkv6Operands<'_>,
    head_size: usize,
    state: &mut [f32],
    y: &mut [f32],
) -> Result<()> {
    let width = state.len() / head_size.max(1);
    let decay_fits = match x.w {
        Decay::Channels(w) => w.len() == width,
        Decay::Tokens(w) => w.len() == y.len(),
    };
    if decay_fits && x.u.len() == width && fits(state, head_size, y, &[x.r, x.k, x.v]) {
        let decays: Vec<f32>;
        let (w, step) = match x.w {
            Decay::Tokens(w) => (w, width),
            Decay::Channels(w) => {
                decays = w.iter().map(|w| Function::Decay6.apply(*w)).collect();
                (decays.as_slice(), 0)
            }
        };
        at_level!(level, v => {
            by_head(state, head_size, y, |head, state, y, width| {
                v.run(Head6 { x, w, step, head, head_size, width, state, y });
            });
            Ok(())
        });
    }
    ops::wkv6(x, head_size, state, y)
}

/// Runs `advance` for every head, on several threads where there is enough to do: it gets the head's number, its state,
/// room for its results `[token, value]` and the channels of a token.
fn by_head(
    state: &mut [f32],
    n: usize,
    y: &mut [f32],
    advance: impl Fn(usize, &mut [f32], &mut [f32], usize) + Sync,
) {
    let width = state.len() / n;
    let tokens = y.len() / width;
    let alone = tokens * width * n < SHARE || rayon::current_num_threads() == 1;
    if tokens == 1 && alone {
        let heads = state.chunks_exact_mut(n * n).zip(y.chunks_exact_mut(n));
        for (head, (state, y)) in heads.enumerate() {
            advance(head, state, y, width);
        }
        return;
    }
    let one = |(head, state): (usize, &mut [f32])| {
        let mut results = vec![0.0; tokens * n];
        advance(head, state, &mut results, width);
        results
    };
    let heads: Vec<Vec<f32>> = if alone {
        state.chunks_exact_mut(n * n).enumerate().map(one).collect()
    } else {
        let heads = state.par_chunks_exact_mut(n * n).enumerate();
        heads.map(one).collect()
    };
    for (head, results) in heads.iter().enumerate() {
        for (t, values) in results.chunks_exact(n).enumerate() {
            y[t * width + head * n..][..n].copy_from_slice(values);
        }
    }
}

/// One head of a sequence.
struct Head7<'a> {
    x: Wkv7Operands<'a>,
    head: usize,
    head_size: usize,
    width: usize,
    state: &'a mut [f32],
    y: &'a mut [f32],
}

impl<V: Vectors> Work<V> for Head7<'_> {
    #[inline(always)]
    fn run(self, v: V) {
        let Self {
            x, head_size: n, ..
        } = self;
        let blocks = n / BLOCK;
        let mut rate = [[0.0; BLOCK]; LARGEST / BLOCK];
        for (t, y) in self.y.chunks_exact_mut(n).enumerate() {
            let at = t * self.width + self.head * n;
            let values = &x.v[at..at + n];
            let r: Head<'_> = x.r[at..at + n].as_chunks().0;
            let w: Head<'_> = x.w[at..at + n].as_chunks().0;
            let k: Head<'_> = x.k[at..at + n].as_chunks().0;
            let kappa: Head<'_> = x.kappa[at..at + n].as_chunks().0;
            let a: Head<'_> = x.a[at..at + n].as_chunks().0;
            for block in 0..blocks {
                for i in 0..BLOCK {
                    rate[block][i] = kappa[block][i] * a[block][i];
                }
            }
            let rows = self.state.chunks_exact_mut(ROWS * n);
            let outputs = values.as_chunks::<ROWS>().0.iter();
            for ((state, values), y) in rows.zip(outputs).zip(y.as_chunks_mut::<ROWS>().0) {
                let state = state.as_chunks_mut::<BLOCK>().0;
                let mut removed = [v.zero(); ROWS];
                for block in 0..blocks {
                    for register in 0..V::REGISTERS {
                        let kappa = v.lanes(&kappa[block], register);
                        each_row!(row => {
                            let s = v.lanes(&state[row * blocks + block], register);
                            removed[row] = v.multiply_add(s, kappa, removed[row]);
                        });
                    }
                }
                let removed = v.sum4(removed);
                let mut sums = [v.zero(); ROWS];
                let mut removals = sums;
                let mut additions = sums;
                each_row!(row => {
                    removals[row] = v.splat(-removed[row]);
                    additions[row] = v.splat(values[row]);
                });
                for block in 0..blocks {
                    for register in 0..V::REGISTERS {
                        let w = v.lanes(&w[block], register);
                        let rate = v.lanes(&rate[block], register);
                        let k = v.lanes(&k[block], register);
                        let r = v.lanes(&r[block], register);
                        each_row!(row => {
                            let at = &mut state[row * blocks + block];
                            let added = v.multiply(additions[row], k);
                            let changed = v.multiply_add(removals[row], rate, added);
                            let s = v.multiply_add(v.lanes(at, register), w, changed);
                            v.store_lanes(s, at, register);
                            sums[row] = v.multiply_add(s, r, sums[row]);
                        });
                    }
                }
                *y = v.sum4(sums);
            }
        }
    }
}

/// One head of a sequence.
struct Head6<'a> {
    x: Wkv6Operands<'a>,
    /// The decays of the first token, and how far it is to the next one's.
    w: &'a [f32],
    step: usize,
    head: usize,
    head_size: usize,
    width: usize,
    state: &'a mut [f32],
    y: &'a mut [f32],
}

impl<V: Vectors> Work<V> for Head6<'_> {
    #[inline(always)]
    fn run(self, v: V) {
        let Self {
            x, head_size: n, ..
        } = self;
        let blocks = n / BLOCK;
        let u: Head<'_> = x.u[self.head * n..][..n].as_chunks().0;
        for (t, y) in self.y.chunks_exact_mut(n).enumerate() {
            let at = t * self.width + self.head * n;
            let values = &x.v[at..at + n];
            let r: Head<'_> = x.r[at..at + n].as_chunks().0;
            let k: Head<'_> = x.k[at..at + n].as_chunks().0;
            let w: Head<'_> = self.w[t * self.step + self.head * n..][..n].as_chunks().0;
            let rows = self.state.chunks_exact_mut(ROWS * n);
            let outputs = values.as_chunks::<ROWS>().0.iter();
            for ((state, values), y) in rows.zip(outputs).zip(y.as_chunks_mut::<ROWS>().0) {
                let state = state.as_chunks_mut::<BLOCK>().0;
                let mut sums = [v.zero(); ROWS];
                let mut additions = sums;
                each_row!(row => {
                    additions[row] = v.splat(values[row]);
                });
                for block in 0..blocks {
                    for register in 0..V::REGISTERS {
                        let w = v.lanes(&w[block], register);
                        let k = v.lanes(&k[block], register);
                        let u = v.lanes(&u[block], register);
                        let r = v.lanes(&r[block], register);
                        each_row!(row => {
                            let at = &mut state[row * blocks + block];
                            let s = v.lanes(at, register);
                            let added = v.multiply(additions[row], k);
                            let seen = v.multiply_add(u, added, s);
                            sums[row] = v.multiply_add(r, seen, sums[row]);
                            v.store_lanes(v.multiply_add(s, w, added), at, register);
                        });
                    }
                }
                *y = v.sum4(sums);
            }
        }
    }
}
