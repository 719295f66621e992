//! Matrix products: the matrix-vector kernels up to 8 tokens, the tiled one above, or those that stream weights past
//! several tokens.

use crate::{
    activation::Activation,
    blocks::{native, packed, weights},
    noise::{Noise, scale},
    setup::{Setup, cases, setups},
    stream::{integers, met},
    tolerance::{self, check},
};
use proptest::prelude::*;
use rwkv_kernels::{
    Error, Format, GpuMatrix, GpuVector, Matrix,
    ops::{Function, Linear, TokenShape, matmul},
};
use rwkv_mem::{Cols, Rows};

pub(crate) const FUNCTIONS: [Function; 7] = [
    Function::Identity,
    Function::Tanh,
    Function::Sigmoid,
    Function::SquaredRelu,
    Function::Decay7,
    Function::Decay6,
    Function::Silu,
];

/// Which kernels make products.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Way {
    /// The matrix-vector kernels and the tiled one.
    Old,
    /// Whatever is chosen.
    Chosen,
    /// Those of several tokens, if they suit.
    Tokens(TokenShape),
}

#[derive(Clone, Debug)]
pub(crate) struct Case {
    /// What the weight is read from, and what the kernels read.
    pub(crate) source: Format,
    pub(crate) format: Format,
    pub(crate) tokens: usize,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) bias: bool,
    pub(crate) residual: bool,
    pub(crate) function: Function,
    pub(crate) scale: f32,
    pub(crate) way: Way,
    pub(crate) seed: u64,
}

pub(crate) fn case(tokens: impl Strategy<Value = usize>) -> impl Strategy<Value = Case> {
    let formats = prop_oneof![
        2 => prop::sample::select(native()).prop_map(|format| (format, format)),
        1 => (
            prop::sample::select(&Format::ALL[..]),
            prop::sample::select(vec![Format::F32, Format::F16, Format::Q8_0]),
        ),
    ];
    let epilogue = (
        any::<bool>(),
        any::<bool>(),
        prop::sample::select(&FUNCTIONS[..]),
    );
    let shape = (tokens, 1usize..200, 1usize..330);
    (formats, shape, epilogue, scale(), any::<u64>()).prop_map(
        |((source, format), (tokens, rows, cols), (bias, residual, function), scale, seed)| {
            let whole = source.spec().block().max(format.spec().block());
            let cols = cols.next_multiple_of(whole);
            Case {
                source,
                format,
                tokens,
                rows,
                cols,
                bias,
                residual,
                function,
                scale,
                way: Way::Old,
                seed,
            }
        },
    )
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn up_to_8_tokens(case in case(1usize..=8)) {
        compare(&case, setups());
    }

    #[test]
    fn many_tokens(case in case(9usize..150)) {
        // Subgroups make no difference here.
        compare(&case, [&setups()[1], &setups()[2]]);
    }
}

/// Each format by each of its kernels, in rows of one block, of several, and of so many that lanes take turns. Without
/// checks, which double the time that pipelines take to compile; the properties above have them on too.
#[test]
fn every_format() {
    let (subgroup, plain) = (&setups()[1], &setups()[3]);
    for format in native() {
        for (tokens, blocks) in [(1, 33), (2, 1), (3, 5), (8, 3), (20, 3)] {
            let block = format.spec().block();
            // The size of these formats' blocks is a constant of the kernels: two numbers of tokens show it.
            let sized = matches!(format, Format::Int8(_) | Format::Nf4(_) | Format::Sf4(_));
            if sized && block > 32 && matches!(tokens, 2 | 3 | 8) {
                continue;
            }
            let case = Case {
                source: format,
                format,
                tokens,
                rows: 41,
                cols: (blocks * block).min(2304),
                bias: false,
                residual: false,
                function: Function::Identity,
                scale: 1.0,
                way: Way::Old,
                seed: tokens as u64,
            };
            compare(&case, [plain]);
            // The tiled kernel has no lanes.
            if tokens <= 8 {
                compare(&case, [subgroup]);
            }
        }
    }
}

pub(crate) fn compare<'s>(case: &Case, setups: impl IntoIterator<Item = &'s Setup>) {
    let mut noise = Noise::new(case.seed);
    let (tokens, rows, cols) = (case.tokens, case.rows, case.cols);
    let x = noise.values(tokens * cols, case.scale);
    let size = 1.0 / (cols as f32).sqrt();
    let file = weights(case.source, rows * cols, size, &mut noise);
    let file = Matrix::new(case.source, Rows(rows), Cols(cols), &file).unwrap();
    let bias = case.bias.then(|| noise.values(rows, 1.0));
    let residual = case
        .residual
        .then(|| noise.values(tokens * rows, case.scale));

    // What the kernels read: the file's values, converted when the format differs.
    let read = if case.source == case.format {
        file.bytes().to_vec()
    } else {
        packed(case.format, &expanded(&file))
    };
    let read = Matrix::new(case.format, Rows(rows), Cols(cols), &read).unwrap();
    let (bias, residual) = (bias.as_deref(), residual.as_deref());
    // Codes meet x as it is, or rounded to 16 bits.
    let exact = expectation(case, &x, &read, bias, residual, 0.0);
    let rounds = integers(case.format) && cols.is_multiple_of(32);
    let rounded = rounds.then(|| expectation(case, &x, &read, bias, residual, 0.05));
    for setup in setups {
        let run = on_gpu(setup, case, &x, &file, bias, residual);
        let Some((got, streamed)) = run else {
            let both = case.bias && case.residual;
            let ragged = !cols.is_multiple_of(32);
            assert!(
                setup.gpu().capabilities().subgroups.is_none() || ragged || both,
                "{case:?} is refused"
            );
            continue;
        };
        let (want, tolerance) = match &rounded {
            Some(rounded) if streamed => rounded,
            _ => &exact,
        };
        let what = format!("{}, {case:?}", setup.name);
        check(&what, &got, want, |i| tolerance[i]);
    }
}

/// What the product should be, and how far from that it may be; `flips`: the share of a step of x's rounding by which
/// divisions that are off in their last place move it, or 0 where x is not rounded.
fn expectation(
    case: &Case,
    x: &[f32],
    weight: &Matrix<'_>,
    bias: Option<&[f32]>,
    residual: Option<&[f32]>,
    flips: f64,
) -> (Vec<f32>, Vec<f64>) {
    let (tokens, rows) = (case.tokens, case.rows);
    let (x, steps) = if flips > 0.0 {
        met(case.format, x)
    } else {
        (x.to_vec(), vec![0.0; x.len()])
    };
    let mut sums = vec![0.0; tokens * rows];
    matmul(&x, weight, &mut sums).unwrap();
    let terms = absolute_terms(&x, weight, tokens);
    let steps = absolute_terms(&steps, weight, tokens);
    let part = |vector: Option<&[f32]>, i: usize| vector.map_or(0.0, |v| v[i]);
    let mut want = Vec::new();
    let mut tolerance = Vec::new();
    for (i, (sum, terms)) in sums.iter().zip(&terms).enumerate() {
        let (bias, residual) = (part(bias, i % rows), part(residual, i));
        let value = case.function.apply(sum + bias);
        want.push(value + residual);
        let before = tolerance::SUM * f64::from(terms + bias.abs()) + flips * f64::from(steps[i]);
        let slope = match case.function {
            Function::SquaredRelu => 2.0 * f64::from((sum + bias).max(0.0)) + before,
            Function::Silu => 1.1,
            _ => 1.0,
        };
        tolerance.push(
            slope * before
                + tolerance::function(case.function, f64::from(value))
                + tolerance::FEW * f64::from(value.abs() + residual.abs()),
        );
    }
    (want, tolerance)
}

/// Every element.
pub(crate) fn expanded(matrix: &Matrix<'_>) -> Vec<f32> {
    let (rows, cols) = (matrix.shape().rows.0, matrix.shape().cols.0);
    let mut values = vec![0.0; rows * cols];
    for (row, out) in values.chunks_exact_mut(cols).enumerate() {
        matrix.expand_row(row, out);
    }
    values
}

/// `Σ |w x|` for each output.
pub(crate) fn absolute_terms(x: &[f32], weight: &Matrix<'_>, tokens: usize) -> Vec<f32> {
    let (rows, cols) = (weight.shape().rows.0, weight.shape().cols.0);
    let absolute: Vec<f32> = expanded(weight).iter().map(|w| w.abs()).collect();
    let x: Vec<f32> = x.iter().map(|x| x.abs()).collect();
    let matrix = Matrix::new(
        Format::F32,
        Rows(rows),
        Cols(cols),
        bytemuck::cast_slice(&absolute),
    );
    let mut terms = vec![0.0; tokens * rows];
    matmul(&x, &matrix.unwrap(), &mut terms).unwrap();
    terms
}

/// The product, and whether it was streamed past several tokens; None where that does not suit.
fn on_gpu(
    setup: &Setup,
    case: &Case,
    x: &[f32],
    weight: &Matrix<'_>,
    bias: Option<&[f32]>,
    residual: Option<&[f32]>,
) -> Option<(Vec<f32>, bool)> {
    let mut upload = setup.upload();
    let weight = GpuMatrix::new(setup.gpu(), "weight", weight, case.format, &mut upload).unwrap();
    let bias = bias.map(|b| GpuVector::new(setup.gpu(), "bias", b, &mut upload).unwrap());
    let x = Activation::new(setup, case.tokens, case.cols, x);
    let residual = residual.map(|r| Activation::new(setup, case.tokens, case.rows, r));
    let y = Activation::poisoned(setup, case.tokens, case.rows, 1);
    let op = Linear {
        x: x.view(),
        weight: &weight,
        bias: bias.as_ref(),
        function: case.function,
        residual: residual.as_ref().map(Activation::view),
        y: y.view(),
    };
    let suits = setup.kernels.token_linear_suits(&op);
    let (dispatches, streamed) = match case.way {
        Way::Old => (setup.kernels.linear_shaped(&op, None), false),
        Way::Chosen => (setup.kernels.linear(&op), suits),
        Way::Tokens(shape) => (setup.kernels.token_linear(&op, Some(shape)), true),
    };
    let dispatches = match (dispatches, case.way) {
        (Err(Error::Shape { .. }), Way::Tokens(_)) => return None,
        (dispatches, _) => dispatches.unwrap(),
    };
    setup.run(&dispatches);
    Some((y.read(), streamed))
}

/// A matrix past the smallest binding limits (128 MiB) comes in several parts there; the rows around the cut must not
/// notice.
#[test]
fn parts_of_a_large_matrix() {
    let setup = &setups()[1];
    let (rows, cols, tokens) = (9001, 4096, 2);
    let mut noise = Noise::new(5);
    let x = noise.values(tokens * cols, 1.0);
    let weight: Vec<f32> = (0..rows * cols).map(|_| noise.unit()).collect();
    let weight = Matrix::new(
        Format::F32,
        Rows(rows),
        Cols(cols),
        bytemuck::cast_slice(&weight),
    )
    .unwrap();
    let limit = setup.gpu().capabilities().limits.binding_bytes;
    let parts = (weight.bytes().len() as u64).div_ceil(limit);
    let case = Case {
        source: Format::F32,
        format: Format::F32,
        tokens,
        rows,
        cols,
        bias: true,
        residual: true,
        function: Function::Identity,
        scale: 1.0,
        way: Way::Chosen,
        seed: 0,
    };
    let (bias, residual) = (noise.values(rows, 1.0), noise.values(tokens * rows, 1.0));
    let mut want = vec![0.0; tokens * rows];
    matmul(&x, &weight, &mut want).unwrap();
    for (i, y) in want.iter_mut().enumerate() {
        *y += bias[i % rows] + residual[i];
    }
    let got = on_gpu(setup, &case, &x, &weight, Some(&bias), Some(&residual));
    let (got, _) = got.unwrap();
    // Weights and x are in ±1 here: a quarter of a column's terms on average.
    let terms = 0.3 * cols as f64;
    check(&format!("{parts} parts"), &got, &want, |_| {
        tolerance::SUM * terms
    });
}

/// Small parts of packed matrices: cut between rows, whatever the widths of their parts.
#[test]
fn parts_of_packed_matrices() {
    let (rows, tokens) = (23, 2);
    let setup = &setups()[0];
    let mut noise = Noise::new(9);
    for format in native() {
        let cols = 512;
        let bytes = weights(format, rows * cols, 0.1, &mut noise);
        let weight = Matrix::new(format, Rows(rows), Cols(cols), &bytes).unwrap();
        let x = noise.values(tokens * cols, 1.0);
        let widest = format.gpu_layout().unwrap().row_bytes(cols);
        let widest = widest.into_iter().max().unwrap() as u64;
        let mut got = Vec::new();
        for (most, parts) in [(u64::MAX, 1), (widest * 10 + 5, 3), (widest, 23)] {
            let mut upload = setup.upload();
            let gpu = setup.gpu();
            let weight =
                GpuMatrix::in_parts(gpu, "weight", &weight, format, &mut upload, most).unwrap();
            let x = Activation::new(setup, tokens, cols, &x);
            let y = Activation::poisoned(setup, tokens, rows, 1);
            let op = Linear {
                x: x.view(),
                weight: &weight,
                bias: None,
                function: Function::Identity,
                residual: None,
                y: y.view(),
            };
            let dispatches = setup.kernels.linear(&op).unwrap();
            assert_eq!(dispatches.len(), parts, "{format}");
            setup.run(&dispatches);
            got.push(y.read());
        }
        // The parts have the same kernel, and so the same sums.
        assert_eq!(got[0], got[1], "{format}");
        assert_eq!(got[0], got[2], "{format}");
    }
}

#[test]
fn what_cannot_be_uploaded() {
    #[track_caller]
    fn check(cols: usize, value: f32, format: Format, most: u64, want: &str) {
        let setup = &setups()[0];
        let values = vec![value; 2 * cols];
        let bytes = bytemuck::cast_slice(&values);
        let matrix = Matrix::new(Format::F32, Rows(2), Cols(cols), bytes).unwrap();
        let mut upload = setup.upload();
        let gpu = setup.gpu();
        let error = GpuMatrix::in_parts(gpu, "w", &matrix, format, &mut upload, most).unwrap_err();
        assert_eq!(error.to_string(), want);
    }
    check(
        100,
        1.0,
        Format::Q4K,
        u64::MAX,
        "w: 100 columns are no whole number of q4_k's blocks of 256; choose a format with smaller blocks, or f16",
    );
    check(
        48,
        1.0,
        Format::Q8_0,
        u64::MAX,
        "w: 48 columns are no whole number of q8_0's blocks of 32; choose a format with smaller blocks, or f16",
    );
    check(
        8,
        1.0,
        Format::Bf16,
        u64::MAX,
        "w: the kernels do not read bf16 directly; convert it to f16 or f32",
    );
    check(
        64,
        1.0,
        Format::F32,
        255,
        "w: a row of 256 bytes passes the limit of 255",
    );
    check(
        8,
        -7e4,
        Format::F16,
        u64::MAX,
        "tensor w holds -70000, which is outside f16's range of ±65504; load it with --weights-dtype auto or f32",
    );
}
