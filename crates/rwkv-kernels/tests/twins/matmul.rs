//! Products of many tokens: with cooperative matrices where the adapter has them, by the tiled kernel elsewhere.

use crate::{
    activation::{Activation, read},
    blocks::{native, weights},
    linear::absolute_terms,
    noise::Noise,
    setup::setups,
    tolerance::{self, check},
};
use half::f16;
use rwkv_kernels::{
    Format, GpuMatrix, Matrix,
    ops::{Function, HalfRows, Linear, half_row, matmul},
};
use rwkv_mem::{Cols, Rows};

/// `linear` of noise, each row of x times a scale of its own, as chosen and in every tile that there is.
fn compare(format: Format, tokens: usize, rows: usize, cols: usize, scales: &[f32]) {
    let mut noise = Noise::new((tokens * rows + cols) as u64);
    let mut x = noise.values(tokens * cols, 1.0);
    for (token, row) in x.chunks_exact_mut(cols).enumerate() {
        for value in row {
            *value *= scales[token % scales.len()];
        }
    }
    let bytes = weights(format, rows * cols, 1.0 / (cols as f32).sqrt(), &mut noise);
    let weight = Matrix::new(format, Rows(rows), Cols(cols), &bytes).unwrap();
    let mut want = vec![0.0; tokens * rows];
    matmul(&x, &weight, &mut want).unwrap();
    let terms = absolute_terms(&x, &weight, tokens);
    for setup in &setups()[1..3] {
        let mut upload = setup.upload();
        let on_gpu = GpuMatrix::new(setup.gpu(), "weight", &weight, format, &mut upload).unwrap();
        upload.flush().unwrap();
        let x = Activation::new(setup, tokens, cols, &x);
        let run = |shape| {
            let y = Activation::poisoned(setup, tokens, rows, 1);
            let op = Linear {
                x: x.view(),
                weight: &on_gpu,
                bias: None,
                function: Function::Identity,
                residual: None,
                y: y.view(),
            };
            let dispatches = match shape {
                Some(shape) => setup.kernels.coop_linear_rounding(&op, shape),
                None => setup.kernels.linear(&op),
            };
            setup.run(&dispatches.unwrap());
            let shapes = setup.kernels.coop_shapes(&op);
            let bound = if shapes.is_empty() {
                tolerance::SUM
            } else {
                tolerance::HALF
            };
            let what = format!(
                "{}, {tokens} tokens by {rows}×{cols} of {format}, {shape:?}",
                setup.name
            );
            check(&what, &y.read(), &want, |i| bound * f64::from(terms[i]));
            shapes
        };
        // More slices are as two.
        for shape in run(None).into_iter().filter(|shape| shape.slices <= 2) {
            run(Some(shape));
        }
    }
}

/// Tiles that reach past tokens, rows and columns.
#[test]
fn every_format() {
    for format in native() {
        let block = format.spec().block();
        for (tokens, rows, blocks) in [(17, 5, 1), (67, 131, 3), (130, 70, 2)] {
            compare(format, tokens, rows, (blocks * block).max(block), &[1.0]);
        }
    }
}

/// Columns that are no whole number of units.
#[test]
fn ragged_columns() {
    for format in [Format::F16, Format::F32] {
        for cols in [1, 7, 65, 333] {
            compare(format, 33, 70, cols, &[1.0]);
        }
    }
}

/// Past f16's range, below it, and both in one batch: each row has its own power of two.
#[test]
fn large_and_small_rows() {
    for format in [Format::F16, Format::Q4K] {
        compare(format, 40, 40, 512, &[1e6, 1.0, 1e-12, 1e30, 3e-5]);
    }
}

/// Several tiles of all sizes, in columns of whole windows of steps, of whole steps, and of neither.
#[test]
fn several_tiles() {
    for cols in [1024, 448, 600] {
        compare(Format::F16, 260, 140, cols, &[1.0]);
    }
}

/// What is infinite or no number in x shows in the results of its token, and in no other's.
#[test]
fn not_finite() {
    let (tokens, rows, cols) = (20, 9, 72);
    let setup = &setups()[1];
    let mut noise = Noise::new(3);
    let mut x = noise.values(tokens * cols, 1.0);
    x[3 * cols + 5] = f32::NAN;
    x[7 * cols + 71] = f32::INFINITY;
    let bytes = weights(Format::F16, rows * cols, 0.1, &mut noise);
    let weight = Matrix::new(Format::F16, Rows(rows), Cols(cols), &bytes).unwrap();
    let mut upload = setup.upload();
    let weight = GpuMatrix::new(setup.gpu(), "w", &weight, Format::F16, &mut upload).unwrap();
    upload.flush().unwrap();
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
    setup.run(&setup.kernels.linear(&op).unwrap());
    for (token, row) in y.read().chunks_exact(rows).enumerate() {
        let finite = row.iter().filter(|y| y.is_finite()).count();
        let want = if [3, 7].contains(&token) { 0 } else { rows };
        assert_eq!(finite, want, "token {token}: {row:?}");
    }
}

/// The bits of the twin, zeros to the end of a step, and the exponent.
#[test]
fn rows_of_halves() {
    let (rows, cols) = (70, 77);
    let mut noise = Noise::new(4);
    let scales = [1.0, 1e6, 1e-9, 0.0, 1e30, 1e-20];
    let mut x = noise.values(rows * cols, 1.0);
    for (i, value) in x.iter_mut().enumerate() {
        *value *= scales[i / cols % scales.len()];
    }
    x[2 * cols] = f32::INFINITY;
    x[5 * cols + 76] = f32::NEG_INFINITY;
    x[7 * cols + 1] = f32::NAN;
    for setup in setups() {
        let on_gpu = Activation::new(setup, rows, cols, &x);
        let halves = HalfRows::new(setup.gpu(), "halves", rows, cols).unwrap();
        let dispatch = setup.kernels.half_rows(&on_gpu.view(), &halves).unwrap();
        setup.run([&dispatch]);
        let words = read(setup.gpu(), halves.buffer());
        let got: &[f16] = bytemuck::cast_slice(&words);
        let stride = HalfRows::stride(cols);
        for (row, got) in x.chunks_exact(cols).zip(got.chunks_exact(stride)) {
            let (want, scale) = half_row(row);
            for (column, (got, want)) in got.iter().zip(&want).enumerate() {
                // Drivers may round a tie, or what is below f16's normal numbers, otherwise.
                let (g, w) = (f64::from(*got), f64::from(*want));
                let near = (g - w).abs() <= w.abs() / 1024.0 + 2f64.powi(-14);
                let same = got == want || (got.is_nan() && want.is_nan());
                assert!(
                    same || near,
                    "{}, column {column}: {got}, {want}",
                    setup.name
                );
            }
            let rest = &got[cols..stride - 4];
            assert!(rest.iter().all(|h| h.to_bits() == 0), "{rest:?}");
            let exponent = f32::from(got[stride - 4]);
            assert_eq!(exponent.exp2().to_bits(), scale.to_bits());
        }
    }
}
