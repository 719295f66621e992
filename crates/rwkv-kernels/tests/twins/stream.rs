//! Products of one token, with and without norm and shift in front, against the twins of the operations one after the
//! other, where codes meet integers with x rounded to 16 bits.

use crate::{
    activation::{Activation, State},
    batch::{Ragged, SLOTS, Tables, page_of},
    blocks::{native, packed, weights},
    linear::absolute_terms,
    noise::Noise,
    setup::{Setup, cases, setups},
    tolerance::{self, check, check_rms},
};
use proptest::prelude::*;
use rwkv_kernels::{
    Format, GpuMatrix, GpuVector, Matrix, View,
    ops::{
        Function, MixedProduct, NormProject, Stack, StoreShift, StreamLinear, StreamShape, Weighs,
        matmul, mix, norm, previous_rows, round_to_16_bits,
    },
};
use rwkv_mem::{Cols, Rows};

const EPSILON: f32 = 1e-5;

/// Whether codes of the format are multiplied as integers.
pub(crate) fn integers(format: Format) -> bool {
    let shader = format.gpu_layout().unwrap().shader();
    matches!(
        shader,
        "int8" | "q4_0" | "q4_1" | "q5_0" | "q5_1" | "q4_k" | "q5_k" | "q6_k"
    )
}

/// x as the kernel multiplies it, and for each element the step that it was rounded to.
pub(crate) fn met(format: Format, x: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let mut rounded = x.to_vec();
    let mut steps = vec![0.0; x.len()];
    if integers(format) {
        round_to_16_bits(&mut rounded).unwrap();
        for (steps, x) in steps.chunks_mut(32).zip(x.chunks(32)) {
            steps.fill(x.iter().fold(0.0, |m: f32, x| m.max(x.abs())) / 32_639.0);
        }
    }
    (rounded, steps)
}

fn shapes() -> impl Strategy<Value = Option<StreamShape>> {
    let all = StreamShape::candidates()
        .into_iter()
        .map(|shape| StreamShape {
            workgroups: shape.workgroups.min(3),
            ..shape
        });
    prop::option::of(prop::sample::select(all.collect::<Vec<_>>()))
}

fn functions() -> impl Strategy<Value = Function> {
    prop::sample::select(vec![
        Function::Identity,
        Function::SquaredRelu,
        Function::Tanh,
    ])
}

#[derive(Clone, Debug)]
struct Case {
    format: Format,
    rows: usize,
    cols: usize,
    pairs: usize,
    slot: u32,
    cut: u32,
    which: u32,
    weighs: Weighs,
    functions: [Function; 3],
    residual: bool,
    shape: Option<StreamShape>,
    seed: u64,
}

fn case() -> impl Strategy<Value = Case> {
    (
        prop::sample::select(native()),
        (1usize..150, 1usize..50, 0usize..40),
        (0..SLOTS, 1..SLOTS, 0u32..2),
        prop::sample::select(vec![Weighs::Previous, Weighs::Current]),
        (functions(), functions(), functions()),
        any::<bool>(),
        shapes(),
        any::<u64>(),
    )
        .prop_map(
            |(
                format,
                (rows, cols, pairs),
                (slot, cut, which),
                weighs,
                of,
                residual,
                shape,
                seed,
            )| {
                let block = format.spec().block();
                Case {
                    format,
                    rows,
                    cols: (8 * cols).next_multiple_of(block),
                    pairs,
                    slot,
                    cut,
                    which,
                    weighs,
                    functions: of.into(),
                    residual,
                    shape,
                    seed,
                }
            },
        )
}

proptest! {
    #![proptest_config(cases(8))]

    #[test]
    fn random_products(case in case()) {
        product(&case, None);
    }

    #[test]
    fn random_norms(case in case()) {
        norms(&case);
    }
}

/// Slices that the last workgroup sums, twice in one submission; shift vectors that are stored.
#[test]
fn slices() {
    for (at, format) in native().into_iter().enumerate() {
        let case = Case {
            format,
            rows: 70,
            cols: 2048,
            pairs: 0,
            slot: 3,
            cut: 2 + u32::from(at % 2 == 0) * 3,
            which: 1,
            weighs: Weighs::Previous,
            functions: [Function::Identity; 3],
            residual: at % 2 == 0,
            shape: Some(StreamShape {
                threads: 128,
                rows: 2,
                unroll: 1,
                split: 1,
                workgroups: 2,
                slices: 4,
            }),
            seed: 5,
        };
        product(&case, None);
        product(&case, Some(70));
    }
}

/// Rounding x moves products of a layer's size by less than one part in ten thousand.
#[test]
fn rounding_is_small() {
    for format in native().into_iter().filter(|format| integers(*format)) {
        let mut noise = Noise::new(3);
        let (rows, cols) = (96, 1024);
        let x = noise.values(cols, 1.0);
        let bytes = packed(format, &noise.values(rows * cols, 1.0));
        let matrix = Matrix::new(format, Rows(rows), Cols(cols), &bytes).unwrap();
        let [mut sums, mut exact] = [vec![0.0; rows], vec![0.0; rows]];
        matmul(&met(format, &x).0, &matrix, &mut sums).unwrap();
        matmul(&x, &matrix, &mut exact).unwrap();
        check_rms(&format!("{format}"), &sums, &exact, 1e-4);
    }
}

/// A product; with `stores`, a row of as many elements becomes a shift vector.
fn product(case: &Case, stores: Option<usize>) {
    let mut noise = Noise::new(case.seed);
    let (rows, cols) = (case.rows, case.cols);
    // x, and what is stored, as two rows of one width.
    let width = cols.max(rows);
    let values = noise.values(2 * width, 1.0);
    let (x, stored) = (&values[..cols], &values[width..width + rows]);
    let residual = noise.values(rows, 1.0);
    let bytes = weights(
        case.format,
        rows * cols,
        1.0 / (cols as f32).sqrt(),
        &mut noise,
    );
    let matrix = Matrix::new(case.format, Rows(rows), Cols(cols), &bytes).unwrap();
    let state = noise.values(SLOTS as usize * 2 * rows, 1.0);

    let (rounded, steps) = met(case.format, x);
    let mut sums = vec![0.0; rows];
    matmul(&rounded, &matrix, &mut sums).unwrap();
    let function = case.functions[0];
    let want: Vec<f32> = (sums.iter().zip(&residual))
        .map(|(sum, residual)| function.apply(*sum) + if case.residual { *residual } else { 0.0 })
        .collect();
    let terms = absolute_terms(&rounded, &matrix, 1);
    // A division may be off in its last place, and then one in a hundred rounds to the other side.
    let flips = absolute_terms(&steps, &matrix, 1);
    let mut exact = vec![0.0; rows];
    matmul(x, &matrix, &mut exact).unwrap();
    check("rounding x", &sums, &exact, |i| {
        0.5 * f64::from(flips[i]) + tolerance::SUM * f64::from(terms[i])
    });

    for setup in setups() {
        let mut upload = setup.upload();
        let weight =
            GpuMatrix::new(setup.gpu(), "weight", &matrix, case.format, &mut upload).unwrap();
        if !setup.kernels.stream_linear_suits(&weight, stores.is_some()) {
            fits_nowhere(setup, &weight, stores.is_some());
            continue;
        }
        let ragged = Ragged::one(case.slot, case.cut);
        let batch = Tables::of(setup, &ragged);
        let rows_of_x = Activation::new(setup, 1, width, &values);
        let at = |block: u64, width: usize| {
            let view = rows_of_x.view();
            View {
                offset: view.offset + block * View::block_bytes(1, view.width),
                width,
                ..view
            }
        };
        let y = Activation::poisoned(setup, 1, rows, 1);
        let residual = Activation::new(setup, 1, rows, &residual);
        let slot = 2 * rows;
        let states = ragged
            .pages()
            .map(|page| (page, State::new(setup, page_of(&state, page, slot), slot)));
        let mut dispatches = Vec::new();
        for (page, kept) in &states {
            let op = StreamLinear {
                x: at(0, cols),
                weight: &weight,
                function,
                residual: case.residual.then(|| residual.view()),
                y: y.view(),
                stores: stores.map(|width| StoreShift {
                    batch: batch.tables(),
                    x: at(1, width),
                    state: kept.buffer(),
                    page: *page,
                    which: case.which,
                }),
            };
            dispatches.extend(setup.kernels.stream_linear(&op, case.shape).unwrap());
        }
        setup.run(&dispatches);
        let what = format!("{}, {case:?}", setup.name);
        check(&what, &y.read(), &want, |i| {
            let before = tolerance::SUM * f64::from(terms[i]) + 0.05 * f64::from(flips[i]);
            tolerance::of_function(function, sums[i], want[i], before)
                + tolerance::FEW * f64::from(want[i].abs() + 1.0)
        });
        for (page, kept) in &states {
            let mut expected = page_of(&state, *page, slot).to_vec();
            let here = case.slot >= page.first_slot && case.slot < page.first_slot + page.slots;
            if stores.is_some() && here {
                let first =
                    (case.slot - page.first_slot) as usize * slot + case.which as usize * rows;
                expected[first..first + rows].copy_from_slice(stored);
            }
            check("shift vectors", &kept.read(), &expected, |_| 0.0);
        }
    }
}

/// Only what is known not to fit may be refused.
fn fits_nowhere(setup: &Setup, weight: &GpuMatrix, buffers_matter: bool) {
    let layout = weight.format().gpu_layout().unwrap();
    let many = layout.row_bytes(256).len() + usize::from(layout.table().is_some()) > 2;
    let ragged = !weight.shape().cols.0.is_multiple_of(32);
    assert!(
        setup.gpu().capabilities().subgroups.is_none() || ragged || (buffers_matter && many),
        "{} of {} is refused",
        weight.shape(),
        weight.format()
    );
}

fn norms(case: &Case) {
    let mut noise = Noise::new(case.seed);
    let cols = case.cols;
    // Two products of the weights, and one of pairs.
    let counts = [case.rows, 1 + case.rows / 3, case.pairs];
    let x = noise.values(cols, 1.0);
    let vectors = noise.values(5 * cols, 1.0);
    let (norm_weight, norm_bias) = (&vectors[..cols], &vectors[cols..2 * cols]);
    let mixes: Vec<_> = (2..5).map(|m| &vectors[m * cols..(m + 1) * cols]).collect();
    let slot = 2 * cols;
    let state = noise.values(SLOTS as usize * slot, 1.0);
    let ragged = Ragged::one(case.slot, case.cut);
    let size = 1.0 / (cols as f32).sqrt();
    let stacked = counts[0] + counts[1];
    let bytes = weights(case.format, stacked * cols, size, &mut noise);
    let row_bytes = bytes.len() / stacked;
    let pair_bytes = weights(Format::F16, counts[2] * cols, size, &mut noise);
    let part = |rows: std::ops::Range<usize>| {
        let bytes = &bytes[rows.start * row_bytes..rows.end * row_bytes];
        Matrix::new(case.format, Rows(rows.len()), Cols(cols), bytes).unwrap()
    };
    let pairs = Matrix::new(Format::F16, Rows(counts[2]), Cols(cols), &pair_bytes).unwrap();

    let mut shifted = vec![0.0; cols];
    norm(&x, cols, norm_weight, norm_bias, EPSILON, &mut shifted).unwrap();
    let kept = |s: u32| &state[(s as usize * 2 + case.which as usize) * cols..][..cols];
    let mut previous = vec![0.0; cols];
    previous_rows(&shifted, cols, &ragged.spans, kept, &mut previous);
    let largest = x.iter().fold(0.0f32, |m, x| m.max(x.abs())) * 4.0;
    let norm_terms: Vec<f32> = (norm_weight.iter().zip(norm_bias))
        .map(|(weight, bias)| largest * weight.abs() * (1.0 + largest * 1e-3) + bias.abs())
        .collect();

    // The last of these is of pairs, and the mixes are not in order.
    let whole = part(0..stacked);
    let products = [
        (Stack::Weights, 0..counts[0], 1, part(0..counts[0])),
        (
            Stack::Weights,
            counts[0]..stacked,
            0,
            part(counts[0]..stacked),
        ),
        (Stack::Pairs, 0..counts[2], 2, pairs),
    ];
    let products = &products[..if counts[2] == 0 { 2 } else { 3 }];
    let mut expected = Vec::new();
    for ((_, _, which, matrix), function) in products.iter().zip(case.functions) {
        let mut mixed = vec![0.0; cols];
        mix(&shifted, &previous, case.weighs, mixes[*which], &mut mixed);
        let (rounded, steps) = met(matrix.format(), &mixed);
        let mut sums = vec![0.0; matrix.shape().rows.0];
        matmul(&rounded, matrix, &mut sums).unwrap();
        let mix_terms: Vec<f32> = (0..cols)
            .map(|i| (norm_terms[i] + previous[i].abs()) * (1.0 + mixes[*which][i].abs()))
            .collect();
        let terms = absolute_terms(&mix_terms, matrix, 1);
        // Rounding follows a sum that is off by some units in its last place: some go to the other side.
        let flips = absolute_terms(&steps, matrix, 1);
        let want: Vec<f32> = sums.iter().map(|s| function.apply(*s)).collect();
        let allowed: Vec<f64> = (0..sums.len())
            .map(|i| {
                let before = 2.0 * tolerance::SUM * f64::from(terms[i]) + 0.2 * f64::from(flips[i]);
                tolerance::of_function(function, sums[i], want[i], before)
            })
            .collect();
        expected.push((want, allowed));
    }

    for setup in setups() {
        let gpu = setup.gpu();
        let mut upload = setup.upload();
        let weight = GpuMatrix::new(gpu, "weights", &whole, case.format, &mut upload).unwrap();
        let pair_stack = products.get(2).map(|(.., matrix)| {
            GpuMatrix::new(gpu, "pairs", matrix, Format::F16, &mut upload).unwrap()
        });
        // Zeros are written half of the time, where they can be.
        let suits = |clears: bool| {
            let kernels = &setup.kernels;
            kernels.norm_project_suits(&weight, pair_stack.as_ref(), clears)
        };
        let clears = case.seed.is_multiple_of(2) && suits(true);
        if !clears && !suits(false) {
            fits_nowhere(setup, &weight, true);
            continue;
        }
        let batch = Tables::of(setup, &ragged);
        let vectors = GpuVector::new(gpu, "vectors", &vectors, &mut upload).unwrap();
        let x = Activation::new(setup, 1, cols, &x);
        // Results one after the other, with poison between them, then the normed row.
        let mut places = Vec::new();
        let mut width = 8;
        for (want, _) in &expected {
            places.push(width);
            width += want.len().next_multiple_of(8) + 8;
        }
        let y = Activation::poisoned(setup, 1, width + cols, 1);
        let cleared = Activation::new(setup, 1, cols, &vec![1.0; cols]);
        let offset = |place: usize| y.view().offset + place as u64 * 4;
        let list: Vec<_> = (products.iter().zip(case.functions).zip(&places))
            .map(|(((stack, rows, mix, _), function), place)| MixedProduct {
                stack: *stack,
                rows: rows.clone(),
                mix: *mix,
                function,
                y_offset: offset(*place),
            })
            .collect();
        let states = ragged
            .pages()
            .map(|page| (page, State::new(setup, page_of(&state, page, slot), slot)));
        let mut dispatches = Vec::new();
        for (page, kept) in &states {
            let op = NormProject {
                batch: batch.tables(),
                x: x.view(),
                vectors: &vectors,
                epsilon: EPSILON,
                weighs: case.weighs,
                state: kept.buffer(),
                page: *page,
                which: case.which,
                weights: &weight,
                pairs: pair_stack.as_ref(),
                products: &list,
                shifted_offset: offset(width),
                zeros: clears.then(|| cleared.view()),
                y: y.view().buffer,
            };
            dispatches.push(setup.kernels.norm_project(&op, case.shape).unwrap());
        }
        setup.run(&dispatches);
        let got = y.read();
        let what = format!("{}, {case:?}", setup.name);
        for (place, (want, allowed)) in places.iter().zip(&expected) {
            check(&what, &got[*place..place + want.len()], want, |i| {
                allowed[i]
            });
        }
        check(&what, &got[width..width + cols], &shifted, |i| {
            tolerance::SUM * f64::from(norm_terms[i])
        });
        let left = if clears { 0.0 } else { 1.0 };
        assert_eq!(cleared.read(), vec![left; cols], "{what}");
    }
}
