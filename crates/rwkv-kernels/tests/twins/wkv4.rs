//! The RWKV-4 recurrence over ragged batches, its state included.

use crate::{
    activation::{Activation, State},
    batch::{Ragged, SLOTS, Tables, page_of, ragged},
    noise::{Noise, scale},
    setup::{cases, setups},
    tolerance::{check, check_rms, relative_error},
};
use proptest::prelude::*;
use rwkv_kernels::{
    GpuVector,
    ops::{Wkv4, Wkv4Operands, multiply, wkv4},
};

/// Four exponentials a token, of numbers that are themselves rounded: at an exponent of 100 by 8e-6.
const BOUND: f64 = 1e-5;

/// What moves exp(decay) by a unit or two in its last place, which is as exact as an exponential on a GPU gets. Where a
/// large exponent fades by nearly half a unit of its own, that decides how it is rounded, at every token alike: what the
/// twin makes of it is allowed on top.
const LAST_PLACE: f32 = 2.4e-7;

proptest! {
    #![proptest_config(cases(20))]

    #[test]
    fn any_width(batch in ragged(7), width in 1usize..300, keys in prop::sample::select(vec![0.1f32, 1.0, 5.0]),
                 gated: bool, scale in scale(), seed: u64) {
        compare(&batch, width, keys, gated, scale, seed);
    }

    #[test]
    fn long_spans(batch in ragged(300), width in 1usize..70, seed: u64) {
        compare(&batch, width, 2.0, false, 1.0, seed);
    }
}

/// Slots of zeros, which have seen nothing, among slots in the middle of their text.
fn states(width: usize, keys: f32, scale: f32, noise: &mut Noise) -> Vec<f32> {
    let mut state = Vec::new();
    for slot in 0..SLOTS {
        if slot % 3 == 0 {
            state.resize(state.len() + 3 * width, 0.0);
            continue;
        }
        state.extend(noise.values(width, scale));
        state.extend(noise.values(width, 1.0).iter().map(|x| 1.0 + x.abs()));
        state.extend(noise.values(width, keys));
    }
    state
}

/// One of the state's three rows, of all slots.
fn row_of(state: &[f32], width: usize, row: usize) -> Vec<f32> {
    let rows = state.chunks_exact(width).skip(row).step_by(3);
    rows.flatten().copied().collect()
}

fn compare(ragged: &Ragged, width: usize, keys: f32, gated: bool, scale: f32, seed: u64) {
    let mut noise = Noise::new(seed);
    let tokens = ragged.tokens();
    let (k, v) = (
        noise.values(tokens * width, keys),
        noise.values(tokens * width, scale),
    );
    let decay: Vec<f32> = (0..width).map(|_| noise.unit() * 4.0 - 2.0).collect();
    let bonus = noise.values(width, 1.0);
    let gate = noise.values(tokens * width, 1.0);
    // [slot, 3, width]
    let slot = 3 * width;
    let state = states(width, keys, scale, &mut noise);

    let twin = |decay: &[f32]| {
        let mut next = state.clone();
        let mut y = vec![0.0; tokens * width];
        for span in &ragged.spans {
            let at = span.start as usize * width..(span.start + span.length) as usize * width;
            let operands = Wkv4Operands {
                k: &k[at.clone()],
                v: &v[at.clone()],
                decay,
                bonus: &bonus,
            };
            let kept = &mut next[span.slot as usize * slot..][..slot];
            wkv4(operands, kept, &mut y[at]).unwrap();
        }
        if gated {
            multiply(&y.clone(), &gate, &mut y);
        }
        (y, next)
    };
    let (want, next) = twin(&decay);
    let others = [-LAST_PLACE, LAST_PLACE].map(|off| {
        let decay: Vec<f32> = decay.iter().map(|d| d + off).collect();
        twin(&decay)
    });

    for setup in setups() {
        let batch = Tables::of(setup, ragged);
        let [k, v, gate] = [&k, &v, &gate].map(|x| Activation::new(setup, tokens, width, x));
        let mut upload = setup.upload();
        let [decay, bonus] =
            [&decay, &bonus].map(|v| GpuVector::new(setup.gpu(), "wkv", v, &mut upload).unwrap());
        let y = Activation::poisoned(setup, tokens, width, 1);
        let pages = ragged.pages();
        let states = pages.map(|page| State::new(setup, page_of(&state, page, slot), slot));
        let dispatches = pages.iter().zip(&states).map(|(page, state)| {
            let op = Wkv4 {
                batch: batch.tables(),
                k: k.view(),
                v: v.view(),
                decay: &decay,
                bonus: &bonus,
                state: state.buffer(),
                page: *page,
                y: y.view(),
            };
            if gated {
                setup.kernels.wkv4_gated(&op, gate.view()).unwrap()
            } else {
                setup.kernels.wkv4(&op).unwrap()
            }
        });
        setup.run(&dispatches.collect::<Vec<_>>());
        let near = |what: &str, got: &[f32], want: &[f32], others: [&[f32]; 2]| {
            let moved: f64 = others.map(|other| relative_error(other, want)).iter().sum();
            check_rms(&format!("{what}, {}", setup.name), got, want, BOUND + moved);
        };
        near("y", &y.read(), &want, [&others[0].0, &others[1].0]);
        for (page, state) in pages.iter().zip(&states) {
            let got = state.read();
            for (row, name) in ["aa", "bb", "pp"].into_iter().enumerate() {
                let row = |state: &[f32]| row_of(state, width, row);
                let of = |next: &[f32]| row(page_of(next, *page, slot));
                let [low, high] = [&others[0].1, &others[1].1].map(|next| of(next));
                near(name, &row(&got), &of(&next), [&low, &high]);
            }
        }
    }
}

/// A state of zeros has seen nothing, also where an exponent was left behind: the first result is the first value.
#[test]
fn nothing_seen() {
    let (k, v) = ([3.0, -90.0], [0.25, -7.0]);
    for pp in [0.0, 50.0] {
        let mut state = [0.0, 0.0, 0.0, 0.0, pp, pp];
        let mut y = [0.0; 2];
        let operands = Wkv4Operands {
            k: &k,
            v: &v,
            decay: &[0.5; 2],
            bonus: &[1.0; 2],
        };
        wkv4(operands, &mut state, &mut y).unwrap();
        check("y", &y, &v, |_| 0.0);
        check("state", &state, &[0.25, -7.0, 1.0, 1.0, 3.0, -90.0], |_| {
            0.0
        });
    }
}
