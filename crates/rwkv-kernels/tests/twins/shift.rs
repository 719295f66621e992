//! Token shift, the row before each row, and keeping the last row of each span.

use crate::{
    activation::{Activation, State},
    batch::{Ragged, SLOTS, Tables, page_of, ragged},
    noise::{Noise, scale},
    setup::{cases, setups},
    tolerance::{self, check},
};
use proptest::prelude::*;
use rwkv_kernels::{
    GpuVector,
    ops::{Previous, StoreShift, TokenShift, Weighs, mix, previous_rows},
};

proptest! {
    #![proptest_config(cases(32))]

    #[test]
    fn shift_and_store(batch in ragged(9), width in 1usize..300, mixes in 1usize..=6, which in 0u32..2,
                       weighs in prop::sample::select(vec![Weighs::Previous, Weighs::Current]), scale in scale(),
                       seed: u64) {
        compare(&batch, width, mixes, which, weighs, scale, seed);
    }
}

fn compare(
    ragged: &Ragged,
    width: usize,
    mixes: usize,
    which: u32,
    weighs: Weighs,
    scale: f32,
    seed: u64,
) {
    let mut noise = Noise::new(seed);
    let tokens = ragged.tokens();
    let x = noise.values(tokens * width, scale);
    let mixing = noise.values(mixes * width, 1.0);
    // [slot, 2, width]
    let slot = 2 * width;
    let state = noise.values(SLOTS as usize * slot, scale);
    let row = |s: u32| (s as usize * 2 + which as usize) * width;

    let mut previous = vec![0.0; tokens * width];
    let kept = |s: u32| &state[row(s)..row(s) + width];
    previous_rows(&x, width, &ragged.spans, kept, &mut previous);
    let mut want = vec![0.0; mixes * tokens * width];
    for (m, y) in mixing
        .chunks_exact(width)
        .zip(want.chunks_exact_mut(tokens * width))
    {
        mix(&x, &previous, weighs, m, y);
    }
    let mut stored = state.clone();
    for span in ragged.spans.iter().filter(|s| s.length > 0) {
        let last = (span.start + span.length - 1) as usize * width;
        stored[row(span.slot)..][..width].copy_from_slice(&x[last..last + width]);
    }
    let terms = |i: usize| {
        let (at, m) = (
            i % (tokens * width),
            i / (tokens * width) * width + i % width,
        );
        x[at].abs().max(previous[at].abs()) + (previous[at].abs() + x[at].abs()) * mixing[m].abs()
    };

    for setup in setups() {
        let batch = Tables::of(setup, ragged);
        let x = Activation::new(setup, tokens, width, &x);
        let mix = GpuVector::new(setup.gpu(), "mix", &mixing, &mut setup.upload()).unwrap();
        let y = Activation::poisoned(setup, tokens, width, mixes);
        let pages = ragged.pages();
        let states = pages.map(|page| State::new(setup, page_of(&state, page, slot), slot));
        let shifts = pages.iter().zip(&states).map(|(page, state)| {
            let op = TokenShift {
                batch: batch.tables(),
                x: x.view(),
                mix: &mix,
                mixes,
                weighs,
                state: state.buffer(),
                page: *page,
                which,
                y: y.view(),
            };
            setup.kernels.token_shift(&op).unwrap()
        });
        setup.run(&shifts.collect::<Vec<_>>());
        check(setup.name, &y.read(), &want, |i| {
            tolerance::FEW * f64::from(terms(i))
        });
        let before = Activation::poisoned(setup, tokens, width, 1);
        let rows_before = pages.iter().zip(&states).map(|(page, state)| {
            let op = Previous {
                batch: batch.tables(),
                x: x.view(),
                state: state.buffer(),
                page: *page,
                which,
                y: before.view(),
            };
            setup.kernels.previous(&op).unwrap()
        });
        setup.run(&rows_before.collect::<Vec<_>>());
        assert_eq!(before.read(), previous, "{}", setup.name);
        let stores = pages.iter().zip(&states).map(|(page, state)| {
            let op = StoreShift {
                batch: batch.tables(),
                x: x.view(),
                state: state.buffer(),
                page: *page,
                which,
            };
            setup.kernels.store_shift(&op).unwrap()
        });
        setup.run(&stores.collect::<Vec<_>>());
        for (page, state) in pages.iter().zip(&states) {
            assert_eq!(
                state.read(),
                page_of(&stored, *page, slot),
                "{}",
                setup.name
            );
        }
    }
}
