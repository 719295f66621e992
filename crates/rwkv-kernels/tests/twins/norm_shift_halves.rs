//! Layer norm, token shift and rounding in one dispatch, for spans of any length.

use crate::{
    activation::{Activation, State, read},
    batch::{Ragged, SLOTS, Tables, many_ragged, page_of, ragged},
    noise::{Noise, scale},
    setup::{cases, setups},
    tolerance::check_rms,
};
use half::f16;
use proptest::prelude::*;
use rwkv_gpu::BufferKind;
use rwkv_kernels::{
    GpuVector,
    ops::{HalfRows, NormShiftHalves, Weighs, mix, norm, previous_rows},
};

/// Mean and variance are sums of up to a few thousand terms.
const BOUND: f64 = 4e-6;
/// Half a unit in the last of f16's 11 bits, relative to the row's RMS, and the sums before it.
const ROUNDED: f64 = 5e-4;

const EPSILON: f32 = 1e-5;

proptest! {
    #![proptest_config(cases(12))]

    // Counts of mixes that models have; each has pipelines of its own.
    #[test]
    fn rows(batch in prop_oneof![ragged(9), many_ragged(5)], quads in 1usize..700,
            mixes in prop::sample::select(vec![1usize, 6]), which in 0u32..2, scale in scale(), seed: u64,
            weighs in prop::sample::select(vec![Weighs::Previous, Weighs::Current])) {
        compare(&batch.without_empty(), 4 * quads, mixes, which, weighs, scale, seed);
    }
}

/// The widths of published models, and the widest, with long spans and with spans of one token.
#[test]
fn wide_rows() {
    for (width, mixes, lengths) in [
        (768, 6, &[1][..]),
        (2048, 1, &[1, 40, 2]),
        (2560, 1, &[3, 0, 1]),
        (4096, 6, &[130]),
        (4096, 6, &[1; 9]),
        (8192, 1, &[2, 1]),
    ] {
        compare(
            &Ragged::of(lengths),
            width,
            mixes,
            0,
            Weighs::Previous,
            1.0,
            5,
        );
    }
}

#[test]
fn what_suits() {
    for (width, mixes, suits) in [
        (4, 1, true),
        (8192, 6, true),
        (0, 1, false),
        (6, 1, false),
        (8196, 1, false),
        (768, 0, false),
        (768, 7, false),
        (usize::MAX / 4 * 4, 1, false),
    ] {
        assert_eq!(
            NormShiftHalves::suits(width, mixes),
            suits,
            "{width}, {mixes}"
        );
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
    let (weight, bias) = (noise.values(width, 1.0), noise.values(width, 1.0));
    let mixing = noise.values(mixes * width, 1.0);
    // [slot, 2, width]
    let slot = 2 * width;
    let state = noise.values(SLOTS as usize * slot, 1.0);
    let place = |s: u32| (s as usize * 2 + which as usize) * width;

    let mut normed = vec![0.0; tokens * width];
    norm(&x, width, &weight, &bias, EPSILON, &mut normed).unwrap();
    let mut previous = vec![0.0; tokens * width];
    let kept = |s: u32| &state[place(s)..place(s) + width];
    previous_rows(&normed, width, &ragged.spans, kept, &mut previous);
    let mut want = Vec::new();
    for m in mixing.chunks_exact(width) {
        let mut y = vec![0.0; tokens * width];
        mix(&normed, &previous, weighs, m, &mut y);
        want.push(y);
    }
    let mut stored = state.clone();
    for span in ragged.spans.iter().filter(|span| span.length > 0) {
        let last = (span.start + span.length - 1) as usize;
        stored[place(span.slot)..][..width].copy_from_slice(&normed[last * width..][..width]);
    }

    for setup in setups() {
        let batch = Tables::of(setup, ragged);
        let x = Activation::new(setup, tokens, width, &x);
        let mut upload = setup.upload();
        let mut vector = |v: &[f32]| GpuVector::new(setup.gpu(), "vector", v, &mut upload).unwrap();
        let (weight, bias, mix) = (vector(&weight), vector(&bias), vector(&mixing));
        // Behind something else, and poisoned.
        let (bytes, before) = (HalfRows::bytes(tokens, width), 16 << 10);
        let size = before + bytes * mixes as u64;
        let buffer = setup.gpu().buffer(BufferKind::Storage, "halves", size);
        let buffer = buffer.unwrap();
        let poison = vec![0xff; usize::try_from(size).unwrap()];
        setup.gpu().write(&buffer, 0, &poison).unwrap();
        let first = HalfRows::placed(buffer.clone(), before, tokens, width);
        let pages = ragged.pages();
        let states = pages.map(|page| State::new(setup, page_of(&state, page, slot), slot));
        let dispatches = pages.iter().zip(&states).map(|(page, state)| {
            let op = NormShiftHalves {
                batch: batch.tables(),
                x: x.view(),
                added: None,
                weight: &weight,
                bias: &bias,
                epsilon: EPSILON,
                mix: &mix,
                mixes,
                weighs,
                state: state.buffer(),
                page: *page,
                which,
                y: &first,
            };
            setup.kernels.norm_shift_halves(&op).unwrap()
        });
        setup.run(&dispatches.collect::<Vec<_>>());
        let words = read(setup.gpu(), &buffer);
        let halves: &[f16] = bytemuck::cast_slice(&words);
        let stride = HalfRows::stride(width);
        for (m, want) in want.iter().enumerate() {
            let block = (before / 2) as usize + m * (bytes / 2) as usize;
            let rows = halves[block..].chunks_exact(stride);
            for (token, (got, want)) in rows.zip(want.chunks_exact(width)).enumerate() {
                let what = format!("mix {m}, token {token}, {}", setup.name);
                let exponent = f32::from(got[stride - 4]);
                let got_largest = got[..width].iter().map(|h| f32::from(*h).abs());
                let largest = got_largest.fold(0.0, f32::max);
                // Rounded up, it may be 2^15.
                assert!((16384.0..=32768.0).contains(&largest), "{what}: {largest}");
                let values: Vec<f32> = got[..width]
                    .iter()
                    .map(|h| f32::from(*h) * exponent.exp2())
                    .collect();
                check_rms(&what, &values, want, ROUNDED);
                let rest = &got[width..stride - 4];
                assert!(rest.iter().all(|h| h.to_bits() == 0), "{what}: {rest:?}");
            }
        }
        assert!(
            halves[..(before / 2) as usize]
                .iter()
                .all(|h| h.to_bits() == u16::MAX)
        );
        for (page, state) in pages.iter().zip(&states) {
            let what = format!("state, {}", setup.name);
            check_rms(&what, &state.read(), page_of(&stored, *page, slot), BOUND);
        }
    }
}
