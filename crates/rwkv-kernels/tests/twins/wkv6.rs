//! The recurrence of RWKV-5 and RWKV-6 over ragged batches, its state included.

use crate::{
    activation::{Activation, State},
    batch::{Ragged, SLOTS, Tables, page_of, ragged},
    noise::{Noise, scale},
    setup::{cases, setups},
    tolerance::check_rms,
};
use proptest::prelude::*;
use rwkv_kernels::{
    GpuVector,
    ops::{Decay, Function, Wkv6, Wkv6Operands, wkv6},
};

/// Each step rounds a state that the decay keeps from growing, so errors stay near those of one step; the sum over a
/// row of up to 128 adds its own.
const BOUND: f64 = 2e-6;

/// Two units in the last place of a decay a channel close to 1, which every token repeats.
const DECAY_BOUND: f64 = 1.2e-7;

proptest! {
    #![proptest_config(cases(20))]

    #[test]
    fn any_head_size(batch in ragged(7), heads in 1usize..4, head_size in 1usize..=128, one: bool, scale in scale(),
                     seed: u64) {
        compare(&batch, heads, head_size, one, scale, seed);
    }

    /// The sizes of published models, and those at the edges of the compiled variants.
    #[test]
    fn usual_head_sizes(batch in ragged(7), one: bool, scale in scale(), seed: u64,
                        head_size in prop::sample::select(vec![1usize, 8, 24, 32, 33, 40, 64, 65, 100, 128])) {
        compare(&batch, 2, head_size, one, scale, seed);
    }

    #[test]
    fn long_spans(batch in ragged(300), head_size in prop::sample::select(vec![8usize, 64]), one: bool, seed: u64) {
        compare(&batch, 1, head_size, one, 1.0, seed);
    }
}

/// `one`: a decay a channel rather than one a token.
fn compare(ragged: &Ragged, heads: usize, head_size: usize, one: bool, scale: f32, seed: u64) {
    let mut noise = Noise::new(seed);
    let (tokens, width) = (ragged.tokens(), heads * head_size);
    let r = noise.values(tokens * width, 1.0);
    let k = noise.values(tokens * width, 1.0);
    let v = noise.values(tokens * width, scale);
    let u = noise.values(width, 1.0);
    // From decays of nearly 1 to decays of 0.
    let raw = |n: usize, noise: &mut Noise| -> Vec<f32> {
        (0..n).map(|_| noise.unit() * 6.0 - 1.0).collect()
    };
    let channels = raw(width, &mut noise);
    let mut w = raw(tokens * width, &mut noise);
    for x in &mut w {
        *x = Function::Decay6.apply(*x);
    }
    // [slot, head, value, key]
    let slot = width * head_size;
    let state = noise.values(SLOTS as usize * slot, scale);

    let mut next = state.clone();
    let mut want = vec![0.0; tokens * width];
    for span in &ragged.spans {
        let at = span.start as usize * width..(span.start + span.length) as usize * width;
        let operands = Wkv6Operands {
            r: &r[at.clone()],
            w: if one {
                Decay::Channels(&channels)
            } else {
                Decay::Tokens(&w[at.clone()])
            },
            k: &k[at.clone()],
            v: &v[at.clone()],
            u: &u,
        };
        let kept = &mut next[span.slot as usize * slot..][..slot];
        wkv6(operands, head_size, kept, &mut want[at]).unwrap();
    }

    let longest = ragged.spans.iter().map(|s| s.length).max().unwrap_or(0);
    let bound = BOUND
        + if one {
            DECAY_BOUND * f64::from(longest)
        } else {
            0.0
        };
    for setup in setups() {
        let batch = Tables::of(setup, ragged);
        let [r, w, k, v] = [&r, &w, &k, &v].map(|x| Activation::new(setup, tokens, width, x));
        let mut upload = setup.upload();
        let [channels, u] =
            [&channels, &u].map(|v| GpuVector::new(setup.gpu(), "wkv", v, &mut upload).unwrap());
        let y = Activation::poisoned(setup, tokens, width, 1);
        let pages = ragged.pages();
        let states = pages.map(|page| State::new(setup, page_of(&state, page, slot), slot));
        let dispatches = pages.iter().zip(&states).map(|(page, state)| {
            let op = Wkv6 {
                batch: batch.tables(),
                r: r.view(),
                w: if one {
                    Decay::Channels(&channels)
                } else {
                    Decay::Tokens(w.view())
                },
                k: k.view(),
                v: v.view(),
                u: &u,
                head_size,
                state: state.buffer(),
                page: *page,
                y: y.view(),
            };
            setup.kernels.wkv6(&op).unwrap()
        });
        setup.run(&dispatches.collect::<Vec<_>>());
        check_rms(&format!("y, {}", setup.name), &y.read(), &want, bound);
        for (page, state) in pages.iter().zip(&states) {
            let what = format!("state, {}", setup.name);
            check_rms(&what, &state.read(), page_of(&next, *page, slot), bound);
        }
    }
}
