//! What a step of one token a span does in one dispatch: layer norm, token shift and its state; embedding and norm.

use crate::{
    activation::{Activation, State},
    batch::{Ragged, SLOTS, Tables, page_of, singles},
    blocks::{native, weights},
    noise::{Noise, scale},
    setup::{cases, setups},
    tolerance::check_rms,
};
use proptest::prelude::*;
use rwkv_kernels::{
    Format, GpuMatrix, GpuVector, Matrix, Span,
    ops::{EmbedNorm, NormShift, ShiftRows, Weighs, embed, mix, norm, previous_rows},
};
use rwkv_mem::{Cols, Rows};

/// Mean and variance are sums of up to a few thousand terms.
const BOUND: f64 = 4e-6;

const EPSILON: f32 = 1e-5;

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn shift(batch in singles(), quads in 1usize..700, mixes in 0usize..=6, which in 0u32..2, scale in scale(), seed: u64,
             weighs in prop::sample::select(vec![Weighs::Previous, Weighs::Current]),
             rows in prop::sample::select(vec![ShiftRows::None, ShiftRows::Normed, ShiftRows::NormedAndPrevious])) {
        let rows = if mixes == 0 && rows == ShiftRows::None { ShiftRows::Normed } else { rows };
        compare(&batch, 4 * quads, mixes, which, weighs, rows, scale, seed);
    }

    #[test]
    fn embedding(format in prop::sample::select(native()),
                 tokens in 1usize..12, rows in 1u32..100,
                 // Up to more than the threads hold.
                 cols in prop_oneof![3 => 1usize..700, 1 => 700usize..9000], seed: u64) {
        let cols = cols.next_multiple_of(format.spec().block());
        let mut noise = Noise::new(seed);
        let ids: Vec<u32> = (0..tokens).map(|_| noise.below(rows)).collect();
        let bytes = weights(format, rows as usize * cols, 1.0, &mut noise);
        let table = Matrix::new(format, Rows(rows as usize), Cols(cols), &bytes).unwrap();
        look_up(&ids, &table, &mut noise);
    }
}

/// The widths of published models, with one span and with many.
#[test]
fn wide_rows() {
    for (width, count) in [(768, 1), (2048, 3), (4096, 1), (4096, 9), (16384, 2)] {
        let spans = (0..count).map(|i| Span {
            start: i,
            length: 1,
            slot: SLOTS - 1 - i,
            padding: 0,
        });
        let batch = Ragged {
            spans: spans.collect(),
            cut: 4,
        };
        let (weighs, rows) = (Weighs::Previous, ShiftRows::None);
        compare(&batch, width, 6, 0, weighs, rows, 1.0, 5);
    }
}

#[allow(clippy::too_many_arguments, reason = "the axes of one property")]
fn compare(
    ragged: &Ragged,
    width: usize,
    mixes: usize,
    which: u32,
    weighs: Weighs,
    rows: ShiftRows,
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
        want.extend(y);
    }
    let past = [&normed, &previous];
    want.extend(past.into_iter().take(rows.count()).flatten());
    let mut stored = state.clone();
    for span in &ragged.spans {
        stored[place(span.slot)..][..width]
            .copy_from_slice(&normed[span.start as usize * width..][..width]);
    }

    for setup in setups() {
        let batch = Tables::of(setup, ragged);
        let x = Activation::new(setup, tokens, width, &x);
        let mut upload = setup.upload();
        let mut vector = |v: &[f32]| GpuVector::new(setup.gpu(), "vector", v, &mut upload).unwrap();
        let (weight, bias) = (vector(&weight), vector(&bias));
        let mix = (mixes > 0).then(|| vector(&mixing));
        let y = Activation::poisoned(setup, tokens, width, mixes + rows.count());
        let pages = ragged.pages();
        let states = pages.map(|page| State::new(setup, page_of(&state, page, slot), slot));
        let dispatches = pages.iter().zip(&states).map(|(page, state)| {
            let op = NormShift {
                batch: batch.tables(),
                x: x.view(),
                weight: &weight,
                bias: &bias,
                epsilon: EPSILON,
                mix: mix.as_ref(),
                mixes,
                weighs,
                rows,
                state: state.buffer(),
                page: *page,
                which,
                y: y.view(),
            };
            setup.kernels.norm_shift(&op).unwrap()
        });
        setup.run(&dispatches.collect::<Vec<_>>());
        check_rms(&format!("y, {}", setup.name), &y.read(), &want, BOUND);
        for (page, state) in pages.iter().zip(&states) {
            let what = format!("state, {}", setup.name);
            check_rms(&what, &state.read(), page_of(&stored, *page, slot), BOUND);
        }
    }
}

fn look_up(ids: &[u32], table: &Matrix<'_>, noise: &mut Noise) {
    let cols = table.shape().cols.0;
    let (weight, bias) = (noise.values(cols, 1.0), noise.values(cols, 1.0));
    let mut rows = vec![0.0; ids.len() * cols];
    embed(ids.iter().copied(), table, &mut rows).unwrap();
    let mut want = vec![0.0; rows.len()];
    norm(&rows, cols, &weight, &bias, EPSILON, &mut want).unwrap();
    for setup in setups() {
        let mut upload = setup.upload();
        let [weight, bias] =
            [&weight, &bias].map(|v| GpuVector::new(setup.gpu(), "norm", v, &mut upload).unwrap());
        let table =
            GpuMatrix::new(setup.gpu(), "table", table, table.format(), &mut upload).unwrap();
        let span = Span {
            start: 0,
            length: u32::try_from(ids.len()).unwrap(),
            slot: 0,
            padding: 0,
        };
        let batch = Tables::new(setup, ids, &[span], &[0]);
        let y = Activation::poisoned(setup, ids.len(), cols, 1);
        let op = EmbedNorm {
            batch: batch.tables(),
            table: &table,
            weight: &weight,
            bias: &bias,
            epsilon: EPSILON,
            y: y.view(),
        };
        setup.run(&setup.kernels.embed_norm(&op).unwrap());
        let what = format!("{}, {}", setup.name, table.format());
        check_rms(&what, &y.read(), &want, BOUND);
    }
}

/// A table past the smallest binding limits (128 MiB) comes in parts there, each of which fills its own rows.
#[test]
fn parts_of_a_large_table() {
    let (rows, cols) = (9001, 4096);
    let mut noise = Noise::new(3);
    let values = noise.values(rows * cols, 1.0);
    let bytes = bytemuck::cast_slice(&values);
    let table = Matrix::new(Format::F32, Rows(rows), Cols(cols), bytes).unwrap();
    look_up(&[6, 8191, 8192, 9000, 1], &table, &mut noise);
}
