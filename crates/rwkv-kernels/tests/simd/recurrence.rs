//! The recurrences: results and states, and the same bits however the tokens are cut.

use crate::{levels, near, noise};
use rwkv_kernels::{
    Simd,
    ops::{Decay, Wkv6Operands, Wkv7Operands},
    simd,
};

/// Errors add up over the tokens, and fade with the state.
const BOUND: f32 = 1e-5;

/// Six activations of tokens × channels.
struct Data([Vec<f32>; 6]);

impl Data {
    fn new(tokens: usize, width: usize) -> Self {
        let count = tokens * width;
        let mut data = [1, 2, 3, 4, 5, 6].map(|seed| noise(seed, count));
        let [_, decay, _, kappa, _, rate] = &mut data;
        for w in decay {
            *w = 0.8 + 0.19 * *w;
        }
        for kappa in kappa {
            *kappa *= 0.1;
        }
        for a in rate {
            *a = 0.5 + 0.5 * *a;
        }
        Self(data)
    }

    fn operands7(&self, at: std::ops::Range<usize>) -> Wkv7Operands<'_> {
        let [r, w, k, kappa, v, a] = self.0.each_ref().map(|x| &x[at.clone()]);
        Wkv7Operands {
            r,
            w,
            k,
            kappa,
            v,
            a,
        }
    }

    fn operands6<'a>(
        &'a self,
        u: &'a [f32],
        own: bool,
        at: std::ops::Range<usize>,
    ) -> Wkv6Operands<'a> {
        let [r, w, k, _, v, _] = self.0.each_ref().map(|x| &x[at.clone()]);
        let w = if own {
            Decay::Tokens(w)
        } else {
            Decay::Channels(u)
        };
        Wkv6Operands { r, w, k, v, u }
    }
}

fn check(
    what: &str,
    level: Simd,
    tokens: usize,
    heads: usize,
    n: usize,
    run: impl Fn(Simd, std::ops::Range<usize>, &mut [f32], &mut [f32]),
) {
    let width = heads * n;
    let what = format!("{what}, {level}, {tokens} tokens of {heads} heads of {n}");
    let start = noise(9, width * n);
    let (mut want_state, mut state, mut cut_state) = (start.clone(), start.clone(), start);
    let mut want = vec![f32::NAN; tokens * width];
    let (mut got, mut cut) = (want.clone(), want.clone());
    run(Simd::Twins, 0..tokens * width, &mut want_state, &mut want);
    run(level, 0..tokens * width, &mut state, &mut got);
    near(&what, &got, &want, BOUND);
    near(&what, &state, &want_state, BOUND);
    for (t, y) in cut.chunks_exact_mut(width).enumerate() {
        run(level, t * width..(t + 1) * width, &mut cut_state, y);
    }
    assert!(
        cut == got && cut_state == state,
        "{what}: a cut changes bits"
    );
}

#[test]
fn against_twins() {
    for level in levels() {
        for (tokens, heads, n) in [
            (1, 12, 64),
            (70, 2, 64),
            (130, 40, 64),
            (3, 3, 32),
            (9, 2, 96),
            (5, 1, 128),
            (4, 3, 20),
            (2, 1, 160),
        ] {
            let width = heads * n;
            let data = Data::new(tokens, width);
            let u = noise(8, width);
            check("wkv7", level, tokens, heads, n, |level, at, state, y| {
                simd::wkv7(level, data.operands7(at), n, state, y).unwrap();
            });
            for own in [false, true] {
                check("wkv6", level, tokens, heads, n, |level, at, state, y| {
                    simd::wkv6(level, data.operands6(&u, own, at), n, state, y).unwrap();
                });
            }
        }
    }
}

#[test]
fn wrong_sizes() {
    let data = Data::new(2, 64);
    let all = 0..128;
    for level in levels() {
        for (n, state, y) in [
            (0, 64 * 64, 128),
            (64, 64 * 63, 128),
            (64, 64 * 64, 127),
            (64, 0, 128),
            (64, 2 * 64 * 64, 64),
        ] {
            let (mut state, mut y) = (vec![0.0; state], vec![0.0; y]);
            assert!(simd::wkv7(level, data.operands7(all.clone()), n, &mut state, &mut y).is_err());
            let x = data.operands6(&[0.0; 64], true, all.clone());
            assert!(simd::wkv6(level, x, n, &mut state, &mut y).is_err());
        }
        let mut state = vec![0.0; 64 * 64];
        let x = data.operands6(&[0.0; 63], true, all.clone());
        assert!(simd::wkv6(level, x, 64, &mut state, &mut [0.0; 128]).is_err());
    }
}
