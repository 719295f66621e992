//! The channel mix of one token in one dispatch against the twins of its operations one after the other.

use crate::{
    activation::{Activation, State},
    batch::{Ragged, SLOTS, Tables, page_of},
    blocks::weights,
    linear::absolute_terms,
    noise::Noise,
    setup::{Setup, cases, setups},
    stream::{integers, met},
    tolerance::{self, check},
};
use proptest::prelude::*;
use rwkv_kernels::{
    Format, GpuColumns, GpuMatrix, GpuVector, Matrix, formats,
    ops::{
        ChannelMix, ChannelValue, Function, StreamShape, Weighs, matmul, mix, norm, previous_rows,
    },
};
use rwkv_mem::{Cols, Rows};

const EPSILON: f32 = 1e-5;

#[derive(Clone, Debug)]
struct Case {
    /// Of the key, and of the value: F16 by columns beside floats.
    formats: (Format, Format),
    cols: usize,
    keys: usize,
    /// Added to what the norm makes, so that few keys or all of them are positive.
    bias: f32,
    weighs: Weighs,
    which: u32,
    slot: u32,
    cut: u32,
    shape: Option<StreamShape>,
    seed: u64,
}

fn shapes() -> impl Strategy<Value = Option<StreamShape>> {
    let shape = |(threads, rows, unroll, split, workgroups)| StreamShape {
        threads,
        rows,
        unroll,
        split,
        workgroups,
        slices: 1,
    };
    let threads = prop::sample::select(vec![32u32, 64, 128, 256, 512, 1024]);
    let loads = prop::sample::select(vec![(1u32, 1u32), (1, 4), (2, 2), (4, 1)]);
    let split = prop::sample::select(vec![1u32, 2]);
    let workgroups = prop::sample::select(vec![0u32, 3, 20]);
    prop::option::of(
        (threads, loads, split, workgroups)
            .prop_map(move |(t, (r, u), s, w)| shape((t, r, u, s, w))),
    )
}

/// Those that a kernel has together.
const FORMATS: [(Format, Format); 14] = [
    (Format::F16, Format::F16),
    (Format::F32, Format::F16),
    (Format::Q8_0, Format::Q8_0),
    (Format::Int8(formats::Block::B128), Format::Q8_0),
    (Format::Q4_0, Format::Q4_0),
    (Format::Q4_0, Format::Q4_1),
    (Format::Q4_1, Format::Q4_1),
    (Format::Q5_0, Format::Q5_0),
    (Format::Q5_1, Format::Q5_1),
    (Format::Q4K, Format::Q4K),
    (Format::Q4K, Format::Q6K),
    (Format::Q5K, Format::Q5K),
    (Format::Q5K, Format::Q6K),
    (Format::Q6K, Format::Q6K),
];

/// What the sizes are multiples of.
fn steps((key, value): (Format, Format)) -> (usize, usize) {
    let step = |format: Format, least: usize| format.spec().block().max(least);
    (
        step(key, 8),
        if integers(value) { step(value, 32) } else { 1 },
    )
}

fn case() -> impl Strategy<Value = Case> {
    let sizes = (1usize..=720, 1usize..700);
    let format = prop::sample::select(FORMATS.to_vec());
    let weighs = prop::sample::select(vec![Weighs::Previous, Weighs::Current]);
    let bias = prop::sample::select(vec![0.0f32, 0.0, 3.0, -3.0]);
    let places = (0u32..2, 0..SLOTS, 1..SLOTS);
    (
        (sizes, format, weighs, bias),
        (places, shapes(), any::<u64>()),
    )
        .prop_map(
            |(((cols, keys), formats, weighs, bias), ((which, slot, cut), shape, seed))| Case {
                formats,
                cols: cols.next_multiple_of(steps(formats).0),
                keys: keys.next_multiple_of(steps(formats).1),
                bias,
                weighs,
                which,
                slot,
                cut,
                shape,
                seed,
            },
        )
}

proptest! {
    #![proptest_config(cases(12))]

    #[test]
    fn random(case in case()) {
        compare(&case, setups());
    }
}

/// A published model's shape, in the default shape and with more eights of x than threads.
#[test]
fn wide() {
    let floats = (Format::F16, Format::F16);
    let packed = (Format::Q4K, Format::Q6K);
    let bytes = (Format::Q8_0, Format::Q8_0);
    for (formats, shape) in [
        (floats, None),
        (floats, Some((64, 2))),
        (floats, Some((256, 0))),
        (packed, None),
        (packed, Some((256, 40))),
        (bytes, Some((64, 0))),
    ] {
        let case = Case {
            formats,
            cols: 1024,
            keys: 4096,
            bias: 0.0,
            weighs: Weighs::Previous,
            which: 1,
            slot: 3,
            cut: 5,
            shape: shape.map(|(threads, workgroups)| StreamShape {
                threads,
                rows: 2,
                unroll: 2,
                split: 1,
                workgroups,
                slices: 1,
            }),
            seed: 7,
        };
        compare(&case, &setups()[1..2]);
    }
}

fn compare(case: &Case, setups: &[Setup]) {
    let mut noise = Noise::new(case.seed);
    let (cols, keys) = (case.cols, case.keys);
    let x = noise.values(cols, 1.0);
    let mut vectors = noise.values(3 * cols, 1.0);
    let slot = 2 * cols;
    let state = noise.values(SLOTS as usize * slot, 1.0);
    let ragged = Ragged::one(case.slot, case.cut);
    let size = |n: usize| 1.0 / (n as f32).sqrt();
    let (key_format, value_format) = case.formats;
    let key = weights(key_format, keys * cols, size(cols), &mut noise);
    let key_matrix = Matrix::new(key_format, Rows(keys), Cols(cols), &key).unwrap();
    // What all keys have in common decides how many are positive: the bias along one of them.
    let mut row = vec![0.0; cols];
    key_matrix.expand_row(0, &mut row);
    for (bias, w) in vectors[cols..2 * cols].iter_mut().zip(&row) {
        *bias += case.bias * w;
    }
    let value = weights(value_format, cols * keys, size(keys), &mut noise);
    let value = Matrix::new(value_format, Rows(cols), Cols(keys), &value).unwrap();

    // The twins, and how far their terms allow to be off.
    let (norm_weight, rest) = vectors.split_at(cols);
    let (norm_bias, mixing) = rest.split_at(cols);
    let mut normed = vec![0.0; cols];
    norm(&x, cols, norm_weight, norm_bias, EPSILON, &mut normed).unwrap();
    let kept = |s: u32| &state[(s as usize * 2 + case.which as usize) * cols..][..cols];
    let mut previous = vec![0.0; cols];
    previous_rows(&normed, cols, &ragged.spans, kept, &mut previous);
    let mut mixed = vec![0.0; cols];
    mix(&normed, &previous, case.weighs, mixing, &mut mixed);
    let mut sums = vec![0.0; keys];
    let (rounded, mix_steps) = met(key_format, &mixed);
    matmul(&rounded, &key_matrix, &mut sums).unwrap();
    let function = Function::SquaredRelu;
    let made: Vec<f32> = sums.iter().map(|s| function.apply(*s)).collect();
    let mut want = vec![0.0; cols];
    let (rounded, made_steps) = met(value_format, &made);
    matmul(&rounded, &value, &mut want).unwrap();
    for (want, x) in want.iter_mut().zip(&x) {
        *want += x;
    }
    let largest = x.iter().fold(0.0f32, |m, x| m.max(x.abs())) * 4.0;
    let norm_terms: Vec<f32> = (norm_weight.iter().zip(norm_bias))
        .map(|(weight, bias)| largest * weight.abs() * (1.0 + largest * 1e-3) + bias.abs())
        .collect();
    let mix_terms: Vec<f32> = (0..cols)
        .map(|i| (norm_terms[i] + previous[i].abs()) * (1.0 + mixing[i].abs()))
        .collect();
    let key_terms = absolute_terms(&mix_terms, &key_matrix, 1);
    // Rounding follows what is off by some units in its last place: some go to the other side.
    let key_flips = absolute_terms(&mix_steps, &key_matrix, 1);
    let value_flips = absolute_terms(&made_steps, &value, 1);
    #[allow(clippy::cast_possible_truncation, reason = "a tolerance needs no more")]
    let key_errors: Vec<f32> = (0..keys)
        .map(|i| {
            let before =
                2.0 * tolerance::SUM * f64::from(key_terms[i]) + 0.2 * f64::from(key_flips[i]);
            tolerance::of_function(function, sums[i], made[i], before) as f32
        })
        .collect();
    let from_keys = absolute_terms(&key_errors, &value, 1);
    let value_terms = absolute_terms(&made, &value, 1);
    let allowed = |i: usize| {
        let rounding = tolerance::SUM * f64::from(value_terms[i]) + 0.2 * f64::from(value_flips[i]);
        f64::from(from_keys[i]) + rounding + tolerance::FEW * f64::from(x[i].abs())
    };

    for setup in setups {
        let gpu = setup.gpu();
        let mut upload = setup.upload();
        let key = GpuMatrix::new(gpu, "key", &key_matrix, key_format, &mut upload).unwrap();
        let (by_columns, by_rows);
        let value = if integers(value_format) {
            by_rows = GpuMatrix::new(gpu, "value", &value, value_format, &mut upload).unwrap();
            ChannelValue::Rows(&by_rows)
        } else {
            by_columns = GpuColumns::new(&setup.kernels, "value", &value, &mut upload).unwrap();
            ChannelValue::Columns(&by_columns)
        };
        let suits = setup.kernels.channel_mix_suits(&key, value);
        let capabilities = gpu.capabilities();
        let able = capabilities.float_atomics && capabilities.subgroups.is_some();
        let what = format!("{}, {case:?}", setup.name);
        assert!(!suits || able, "{what}");
        assert!(suits || !able, "{what}: not taken");
        if !suits {
            continue;
        }
        let batch = Tables::of(setup, &ragged);
        let vectors = GpuVector::new(gpu, "vectors", &vectors, &mut upload).unwrap();
        let of_x = Activation::new(setup, 1, cols, &x);
        let y = Activation::new(setup, 1, cols, &vec![0.0; cols]);
        let states = ragged
            .pages()
            .map(|page| (page, State::new(setup, page_of(&state, page, slot), slot)));
        let mut dispatches = Vec::new();
        for (page, kept) in &states {
            let op = ChannelMix {
                batch: batch.tables(),
                x: of_x.view(),
                vectors: &vectors,
                epsilon: EPSILON,
                weighs: case.weighs,
                state: kept.buffer(),
                page: *page,
                which: case.which,
                key: &key,
                function,
                value,
                y: y.view(),
            };
            dispatches.push(setup.kernels.channel_mix(&op, case.shape).unwrap());
        }
        setup.run(&dispatches);
        check(&what, &y.read(), &want, allowed);
        for (page, kept) in &states {
            let mut stored = page_of(&state, *page, slot).to_vec();
            let mut terms = vec![0.0; stored.len()];
            if (page.first_slot..page.first_slot + page.slots).contains(&case.slot) {
                let place = (case.slot - page.first_slot) as usize * slot;
                let place = place + case.which as usize * cols;
                stored[place..place + cols].copy_from_slice(&normed);
                terms[place..place + cols].copy_from_slice(&norm_terms);
            }
            check(&what, &kept.read(), &stored, |i| {
                tolerance::SUM * f64::from(terms[i])
            });
        }
    }
}
