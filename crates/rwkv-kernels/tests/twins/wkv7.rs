//! The RWKV-7 recurrence over ragged batches, its state included.

use crate::{
    activation::{Activation, State},
    batch::{Ragged, SLOTS, Tables, page_of, ragged},
    noise::{Noise, scale},
    setup::{cases, setups},
    tolerance::check_rms,
};
use proptest::prelude::*;
use rwkv_kernels::ops::{Function, Wkv7, Wkv7Operands, wkv7};

/// Each step rounds a state that the decay and the removal keep from growing, so errors stay near those of one step;
/// the sum over a row of up to 128 adds its own.
const BOUND: f64 = 2e-6;

proptest! {
    #![proptest_config(cases(20))]

    #[test]
    fn any_head_size(batch in ragged(7), heads in 1usize..4, head_size in 1usize..=128, scale in scale(), seed: u64) {
        compare(&batch, heads, head_size, scale, seed);
    }

    /// The sizes of published models, and those at the edges of the compiled variants.
    #[test]
    fn usual_head_sizes(batch in ragged(7), scale in scale(), seed: u64,
                        head_size in prop::sample::select(vec![1usize, 8, 32, 33, 40, 64, 65, 100, 128])) {
        compare(&batch, 2, head_size, scale, seed);
    }

    #[test]
    fn long_spans(batch in ragged(300), head_size in prop::sample::select(vec![8usize, 64]), seed: u64) {
        compare(&batch, 1, head_size, 1.0, seed);
    }
}

fn compare(ragged: &Ragged, heads: usize, head_size: usize, scale: f32, seed: u64) {
    let mut noise = Noise::new(seed);
    let (tokens, width) = (ragged.tokens(), heads * head_size);
    let r = noise.values(tokens * width, 1.0);
    let k = noise.values(tokens * width, 1.0);
    let v = noise.values(tokens * width, scale);
    let mut kappa = noise.values(tokens * width, 1.0);
    for head in kappa.chunks_exact_mut(head_size) {
        let length = head.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-12);
        for x in head {
            *x /= length;
        }
    }
    let mut apply = |function: Function, scale: f32| -> Vec<f32> {
        let values = noise.values(tokens * width, scale);
        values.iter().map(|x| function.apply(*x)).collect()
    };
    let (w, a) = (apply(Function::Decay7, 5.0), apply(Function::Sigmoid, 5.0));
    // [slot, head, value, key]
    let slot = width * head_size;
    let state = noise.values(SLOTS as usize * slot, scale);

    let mut next = state.clone();
    let mut want = vec![0.0; tokens * width];
    for span in &ragged.spans {
        let at = span.start as usize * width..(span.start + span.length) as usize * width;
        let operands = Wkv7Operands {
            r: &r[at.clone()],
            w: &w[at.clone()],
            k: &k[at.clone()],
            kappa: &kappa[at.clone()],
            v: &v[at.clone()],
            a: &a[at.clone()],
        };
        let kept = &mut next[span.slot as usize * slot..][..slot];
        wkv7(operands, head_size, kept, &mut want[at]).unwrap();
    }

    let keys = [k, kappa].concat();
    for setup in setups() {
        let batch = Tables::of(setup, ragged);
        let [r, w, keys, v, a] =
            [&r, &w, &keys, &v, &a].map(|x| Activation::new(setup, tokens, width, x));
        let y = Activation::poisoned(setup, tokens, width, 1);
        let pages = ragged.pages();
        let states = pages.map(|page| State::new(setup, page_of(&state, page, slot), slot));
        let dispatches = pages.iter().zip(&states).map(|(page, state)| {
            let op = Wkv7 {
                batch: batch.tables(),
                r: r.view(),
                w: w.view(),
                keys: keys.view(),
                v: v.view(),
                a: a.view(),
                head_size,
                state: state.buffer(),
                page: *page,
                y: y.view(),
            };
            setup.kernels.wkv7(&op).unwrap()
        });
        setup.run(&dispatches.collect::<Vec<_>>());
        check_rms(&format!("y, {}", setup.name), &y.read(), &want, BOUND);
        for (page, state) in pages.iter().zip(&states) {
            let what = format!("state, {}", setup.name);
            check_rms(&what, &state.read(), page_of(&next, *page, slot), BOUND);
        }
    }
}
