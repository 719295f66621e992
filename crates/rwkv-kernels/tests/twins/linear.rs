//! Matrix products: the matrix-vector kernels up to 8 tokens, the tiled one above.

use crate::{
    activation::Activation,
    noise::{Noise, scale},
    setup::{Setup, cases, setups},
    tolerance::{self, check},
};
use proptest::prelude::*;
use rwkv_kernels::{
    Format, GpuMatrix, GpuVector, Matrix,
    ops::{Function, Linear, matmul},
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

#[derive(Clone, Debug)]
struct Case {
    /// What the weight is read from, and what the kernels read.
    source: Format,
    format: Format,
    tokens: usize,
    rows: usize,
    cols: usize,
    bias: bool,
    residual: bool,
    function: Function,
    scale: f32,
    seed: u64,
}

/// The formats that the kernels read.
fn readable() -> Vec<Format> {
    let read = |format: &Format| format.gpu_layout().is_some();
    Format::ALL.into_iter().filter(read).collect()
}

fn case(tokens: impl Strategy<Value = usize>) -> impl Strategy<Value = Case> {
    let formats = (
        prop::sample::select(&Format::ALL[..]),
        prop::sample::select(readable()),
    );
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
                seed,
            }
        },
    )
}

proptest! {
    #![proptest_config(cases(40))]

    #[test]
    fn up_to_8_tokens(case in case(1usize..=8)) {
        compare(&case);
    }

    #[test]
    fn many_tokens(case in case(9usize..150)) {
        compare(&case);
    }
}

fn compare(case: &Case) {
    let mut noise = Noise::new(case.seed);
    let (tokens, rows, cols) = (case.tokens, case.rows, case.cols);
    let x = noise.values(tokens * cols, case.scale);
    let file = packed(
        case.source,
        &noise.values(rows * cols, 1.0 / (cols as f32).sqrt()),
    );
    let file = Matrix::new(case.source, Rows(rows), Cols(cols), &file).unwrap();
    let bias = case.bias.then(|| noise.values(rows, 1.0));
    let residual = case
        .residual
        .then(|| noise.values(tokens * rows, case.scale));

    // What the kernels read: the file's values, converted when the format differs.
    let mut values = vec![0.0; rows * cols];
    for (row, out) in values.chunks_exact_mut(cols).enumerate() {
        file.expand_row(row, out);
    }
    let read = packed(case.format, &values);
    let read = Matrix::new(case.format, Rows(rows), Cols(cols), &read).unwrap();
    let mut sums = vec![0.0; tokens * rows];
    matmul(&x, &read, &mut sums).unwrap();
    let terms = absolute_terms(&x, &read, tokens);

    let part = |vector: &Option<Vec<f32>>, i: usize| vector.as_ref().map_or(0.0, |v| v[i]);
    let mut want = Vec::new();
    let mut tolerance = Vec::new();
    for (i, (sum, terms)) in sums.iter().zip(&terms).enumerate() {
        let (bias, residual) = (part(&bias, i % rows), part(&residual, i));
        let value = case.function.apply(sum + bias);
        want.push(value + residual);
        let before = tolerance::SUM * f64::from(terms + bias.abs());
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
    for setup in setups() {
        let got = on_gpu(setup, case, &x, &file, bias.as_deref(), residual.as_deref());
        check(setup.name, &got, &want, |i| tolerance[i]);
    }
}

/// `Σ |w x|` for each output.
fn absolute_terms(x: &[f32], weight: &Matrix<'_>, tokens: usize) -> Vec<f32> {
    let (rows, cols) = (weight.shape().rows.0, weight.shape().cols.0);
    let mut absolute = vec![0.0; rows * cols];
    for (row, out) in absolute.chunks_exact_mut(cols).enumerate() {
        weight.expand_row(row, out);
    }
    let absolute: Vec<f32> = absolute.iter().map(|w| w.abs()).collect();
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

fn on_gpu(
    setup: &Setup,
    case: &Case,
    x: &[f32],
    weight: &Matrix<'_>,
    bias: Option<&[f32]>,
    residual: Option<&[f32]>,
) -> Vec<f32> {
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
    setup.run(&setup.kernels.linear(&op).unwrap());
    y.read()
}

/// `values` in `format`.
pub(crate) fn packed(format: Format, values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; format.row_bytes(values.len()).unwrap()];
    format.spec().quantize(values, &mut bytes);
    bytes
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
        seed: 0,
    };
    let (bias, residual) = (noise.values(rows, 1.0), noise.values(tokens * rows, 1.0));
    let mut want = vec![0.0; tokens * rows];
    matmul(&x, &weight, &mut want).unwrap();
    for (i, y) in want.iter_mut().enumerate() {
        *y += bias[i % rows] + residual[i];
    }
    let got = on_gpu(setup, &case, &x, &weight, Some(&bias), Some(&residual));
    // Weights and x are in ±1 here: a quarter of a column's terms on average.
    let terms = 0.3 * cols as f64;
    check(&format!("{parts} parts"), &got, &want, |_| {
        tolerance::SUM * terms
    });
}
