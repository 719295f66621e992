//! The RWKV-7 recurrence over ragged batches, its state included.

use crate::{
    activation::{Activation, State},
    batch::{Ragged, SLOTS, Tables, many_ragged, page_of, ragged},
    noise::{Noise, scale},
    setup::{Setup, cases, setups},
    tolerance::check_rms,
};
use proptest::prelude::*;
use rwkv_kernels::{
    Page, Span,
    ops::{Function, Recurrence, RecurrenceTile, Wkv7, Wkv7Operands, wkv7},
};

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

    /// Spans of no, one and a few tokens, around what is staged and blocked together.
    #[test]
    fn many_spans(batch in many_ragged(18), head_size in prop::sample::select(vec![32usize, 64, 128]), seed: u64) {
        compare(&batch, 3, head_size, 1.0, seed);
    }
}

/// Every way to cut the work that an adapter can run, with heads that fill a kernel and that do not, and spans of no token up
/// to several stages.
#[test]
fn all_tiles() {
    let lengths = [0, 1, 3, 4, 5, 33, 70];
    let batch = Ragged::of(&lengths);
    for (seed, head_size) in (0..).zip([32, 40, 100]) {
        let mut fours = 0;
        for tile in RecurrenceTile::candidates() {
            let ran = compare_cut(&batch, 2, head_size, 1.0, seed, Some(tile));
            fours += usize::from(ran && tile.block == 4);
        }
        // Those of teams of eight lanes, which stage few tokens.
        assert!(
            fours >= 4 || !setups().iter().any(Setup::has_eight_lanes),
            "{fours} of {head_size}"
        );
    }
}

/// Longer than what any kernel stages at once, one token after the other and not.
#[test]
fn long_span() {
    for (length, head_size) in [(333, 64), (512, 128), (1001, 32)] {
        let spans = vec![Span {
            start: 0,
            length,
            slot: 3,
            padding: 0,
        }];
        compare(
            &Ragged { spans, cut: 2 },
            1,
            head_size,
            1.0,
            u64::from(length),
        );
    }
}

/// With one order of the sums, a span gives the same bits as its parts.
#[test]
fn one_order() {
    const TOKENS: usize = 77;
    let mut noise = Noise::new(7);
    for (heads, head_size) in [(2usize, 64usize), (1, 40), (1, 128), (3, 32)] {
        let width = heads * head_size;
        let [r, k, v, kappa] =
            [1.0, 1.0, 1.0, 0.1].map(|scale| noise.values(TOKENS * width, scale));
        let mut apply = |function: Function| -> Vec<f32> {
            let values = noise.values(TOKENS * width, 5.0);
            values.iter().map(|x| function.apply(*x)).collect()
        };
        let (w, a) = (apply(Function::Decay7), apply(Function::Sigmoid));
        let slot = width * head_size;
        let state = noise.values(slot, 1.0);
        let page = Page {
            first_slot: 0,
            slots: 1,
            padding: [0; 2],
        };
        for setup in setups() {
            let [r, w, keys, v, a] = [&r, &w, &[&k[..], &kappa].concat(), &v, &a]
                .map(|x| Activation::new(setup, TOKENS, width, x));
            let run = |cuts: &[u32]| {
                let y = Activation::poisoned(setup, TOKENS, width, 1);
                let state = State::new(setup, &state, slot);
                let mut start = 0;
                for length in cuts {
                    let span = Span {
                        start,
                        length: *length,
                        slot: 0,
                        padding: 0,
                    };
                    start += length;
                    let batch = Tables::new(setup, &[0; TOKENS], &[span], &[0]);
                    let op = Wkv7 {
                        batch: batch.tables(),
                        r: r.view(),
                        w: w.view(),
                        keys: keys.view(),
                        v: v.view(),
                        a: a.view(),
                        head_size,
                        state: state.buffer(),
                        page,
                        y: y.view(),
                    };
                    setup.run([&setup.kernels.wkv7_in_one_order(&op).unwrap()]);
                }
                assert_eq!(start as usize, TOKENS);
                let all = [y.read(), state.read()].concat();
                all.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            let whole = run(&[77]);
            for cuts in [&[1; 77][..], &[3, 9, 1, 64], &[8, 8, 61], &[40, 36, 1]] {
                assert!(
                    run(cuts) == whole,
                    "{}: heads of {head_size} in {cuts:?}",
                    setup.name
                );
            }
        }
    }
}

fn compare(ragged: &Ragged, heads: usize, head_size: usize, scale: f32, seed: u64) {
    compare_cut(ragged, heads, head_size, scale, seed, None);
}

/// `tile`: the only one, where there is such a kernel; else the usual one and that of one order. Says whether any has run.
fn compare_cut(
    ragged: &Ragged,
    heads: usize,
    head_size: usize,
    scale: f32,
    seed: u64,
    tile: Option<RecurrenceTile>,
) -> bool {
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
    let mut ran = false;
    for setup in setups() {
        let tiles = match tile {
            Some(tile) if tile.fits(Recurrence::Wkv7, &setup.kernels, head_size) => vec![tile],
            Some(_) => Vec::new(),
            None => {
                let states = ragged.spans.len() * heads;
                vec![
                    RecurrenceTile::usual(Recurrence::Wkv7, &setup.kernels, states, head_size),
                    RecurrenceTile::in_one_order(Recurrence::Wkv7, &setup.kernels, head_size),
                ]
            }
        };
        let batch = Tables::of(setup, ragged);
        let [r, w, keys, v, a] =
            [&r, &w, &keys, &v, &a].map(|x| Activation::new(setup, tokens, width, x));
        for tile in tiles {
            ran = true;
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
                setup.kernels.wkv7_tiled(&op, tile).unwrap()
            });
            setup.run(&dispatches.collect::<Vec<_>>());
            let what = format!("{}, {tile:?}", setup.name);
            check_rms(&format!("y, {what}"), &y.read(), &want, BOUND);
            for (page, state) in pages.iter().zip(&states) {
                let want = page_of(&next, *page, slot);
                check_rms(&format!("state, {what}"), &state.read(), want, BOUND);
            }
        }
    }
    ran
}
