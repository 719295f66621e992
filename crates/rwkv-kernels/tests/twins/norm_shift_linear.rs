//! Layer norm, token shift and product in one dispatch, against one after the other.

use crate::{
    activation::{Activation, State},
    batch::{Ragged, SLOTS, Tables, page_of},
    blocks::{native, weights},
    linear::absolute_terms,
    noise::Noise,
    setup::{cases, setups},
    tolerance::{self, check},
};
use proptest::prelude::*;
use rwkv_kernels::{
    Format, GpuMatrix, GpuVector, Matrix, Span,
    ops::{Function, MatvecShape, NormShiftLinear, Weighs, matmul, mix, norm, previous_rows},
};
use rwkv_mem::{Cols, Rows};

/// Those of two buffers at most, which the kernel has room for.
fn formats() -> Vec<Format> {
    let few = |format: &Format| {
        let layout = format.gpu_layout().unwrap();
        layout.row_bytes(256).len() + usize::from(layout.table().is_some()) <= 2
    };
    native().into_iter().filter(few).collect()
}

#[derive(Clone, Debug)]
struct Case {
    format: Format,
    rows: usize,
    cols: usize,
    slots: Vec<u32>,
    cut: u32,
    which: u32,
    weighs: Weighs,
    function: Function,
    shape: Option<MatvecShape>,
    seed: u64,
}

fn case() -> impl Strategy<Value = Case> {
    let shapes = MatvecShape::candidates()
        .into_iter()
        .map(|shape| MatvecShape {
            workgroups: 3,
            ..shape
        });
    (
        prop::sample::select(formats()),
        (1usize..150, 1usize..400),
        Just((0..SLOTS).collect::<Vec<_>>()).prop_shuffle(),
        (1..=8usize, 1..SLOTS, 0u32..2),
        prop::sample::select(vec![Weighs::Previous, Weighs::Current]),
        prop::sample::select(vec![Function::Identity, Function::SquaredRelu]),
        prop::option::of(prop::sample::select(shapes.collect::<Vec<_>>())),
        any::<u64>(),
    )
        .prop_map(
            |(
                format,
                (rows, cols),
                mut slots,
                (spans, cut, which),
                weighs,
                function,
                shape,
                seed,
            )| {
                slots.truncate(spans);
                Case {
                    format,
                    rows,
                    cols: cols.next_multiple_of(format.spec().block()),
                    slots,
                    cut,
                    which,
                    weighs,
                    function,
                    shape,
                    seed,
                }
            },
        )
}

proptest! {
    #![proptest_config(cases(5))]

    #[test]
    fn random(case in case()) {
        compare(&case);
    }
}

fn compare(case: &Case) {
    let mut noise = Noise::new(case.seed);
    let (tokens, rows, cols) = (case.slots.len(), case.rows, case.cols);
    let x = noise.values(tokens * cols, 1.0);
    let vectors = noise.values(3 * cols, 1.0);
    let (norm_weight, rest) = vectors.split_at(cols);
    let (norm_bias, mixing) = rest.split_at(cols);
    let slot = 2 * cols;
    let state = noise.values(SLOTS as usize * slot, 1.0);
    let spans: Vec<_> = (0..)
        .zip(&case.slots)
        .map(|(start, slot)| Span {
            start,
            length: 1,
            slot: *slot,
            padding: 0,
        })
        .collect();
    let ragged = Ragged {
        spans,
        cut: case.cut,
    };
    let file = weights(
        case.format,
        rows * cols,
        1.0 / (cols as f32).sqrt(),
        &mut noise,
    );
    let matrix = Matrix::new(case.format, Rows(rows), Cols(cols), &file).unwrap();
    let epsilon = 1e-5;

    let mut shifted = vec![0.0; x.len()];
    norm(&x, cols, norm_weight, norm_bias, epsilon, &mut shifted).unwrap();
    let kept = |s: u32| &state[(s as usize * 2 + case.which as usize) * cols..][..cols];
    let mut previous = vec![0.0; x.len()];
    previous_rows(&shifted, cols, &ragged.spans, kept, &mut previous);
    let mut mixed = vec![0.0; x.len()];
    mix(&shifted, &previous, case.weighs, mixing, &mut mixed);
    let mut sums = vec![0.0; tokens * rows];
    matmul(&mixed, &matrix, &mut sums).unwrap();
    let want: Vec<f32> = sums.iter().map(|s| case.function.apply(*s)).collect();

    // What rounding is relative to: in the norm what is there before the mean is taken off (norms.rs), and in the mix
    // both sides.
    let mut norm_terms = vec![0.0f32; x.len()];
    #[allow(clippy::cast_possible_truncation, reason = "about how large a term is")]
    for (x, terms) in x.chunks_exact(cols).zip(norm_terms.chunks_exact_mut(cols)) {
        let n = cols as f64;
        let mean = x.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
        let square: f64 = x.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum();
        let scale = 1.0 / (square / n + f64::from(epsilon)).sqrt();
        let largest = x.iter().fold(0.0, |m: f64, x| m.max(f64::from(x.abs()))) * scale;
        for (i, terms) in terms.iter_mut().enumerate() {
            let weight = f64::from(norm_weight[i].abs());
            *terms = (largest * weight * (1.0 + largest * 1e-3)) as f32 + norm_bias[i].abs();
        }
    }
    let mix_terms: Vec<f32> = (norm_terms.iter().zip(&previous).enumerate())
        .map(|(i, (norm, previous))| (norm + previous.abs()) * (1.0 + mixing[i % cols].abs()))
        .collect();
    let terms = absolute_terms(&mix_terms, &matrix, tokens);
    let tolerance = |i: usize| {
        let before = 2.0 * tolerance::SUM * f64::from(terms[i]);
        let slope = match case.function {
            Function::SquaredRelu => 2.0 * f64::from(sums[i].max(0.0)) + before,
            _ => 1.0,
        };
        slope * before + tolerance::function(case.function, f64::from(want[i]))
    };

    for setup in setups() {
        let gpu = setup.gpu();
        let mut upload = setup.upload();
        let weight = GpuMatrix::new(gpu, "weight", &matrix, case.format, &mut upload).unwrap();
        if !setup.kernels.norm_shift_linear_suits(&weight, tokens) {
            assert!(tokens * cols > 1024, "{tokens} × {cols} should fit");
            continue;
        }
        let batch = Tables::of(setup, &ragged);
        let vectors = GpuVector::new(gpu, "vectors", &vectors, &mut upload).unwrap();
        let x = Activation::new(setup, tokens, cols, &x);
        let got_shifted = Activation::poisoned(setup, tokens, cols, 1);
        let y = Activation::poisoned(setup, tokens, rows, 1);
        let states = ragged
            .pages()
            .map(|page| (page, State::new(setup, page_of(&state, page, slot), slot)));
        let mut dispatches = Vec::new();
        for (page, state) in &states {
            let op = NormShiftLinear {
                batch: batch.tables(),
                x: x.view(),
                vectors: &vectors,
                epsilon,
                weighs: case.weighs,
                state: state.buffer(),
                page: *page,
                which: case.which,
                weight: &weight,
                function: case.function,
                shifted: got_shifted.view(),
                y: y.view(),
            };
            dispatches.extend(setup.kernels.norm_shift_linear(&op, case.shape).unwrap());
        }
        setup.run(&dispatches);
        let what = format!("{}, {}", setup.name, case.format);
        check(&what, &got_shifted.read(), &shifted, |i| {
            tolerance::SUM * f64::from(norm_terms[i])
        });
        check(&what, &y.read(), &want, tolerance);
    }
}
