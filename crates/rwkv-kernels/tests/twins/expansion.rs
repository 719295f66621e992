//! How the kernels expand weights: every format, from arbitrary codes and scales, element by element.

use crate::{
    activation::Activation,
    batch::Tables,
    noise::Noise,
    setup::{Setup, cases, setups},
};
use half::f16;
use proptest::prelude::*;
use rwkv_kernels::{Format, GpuMatrix, Matrix, Span, ops::Embed};
use rwkv_mem::{Cols, Rows};
use std::ops::Range;

/// Where a block has its f16 numbers, and where its codes, if zeros there leave the negative minimum.
fn places(format: Format) -> (&'static [usize], Range<usize>) {
    match format {
        Format::Q4_1 | Format::Q5_1 => (&[0, 2], 4..format.spec().block_bytes()),
        Format::Q4K | Format::Q5K => (&[0, 2], 16..format.spec().block_bytes()),
        Format::Q2K => (&[80, 82], 16..80),
        Format::Q3K => (&[108], 0..0),
        Format::Q6K => (&[208], 0..0),
        _ => (&[0], 0..0),
    }
}

/// Any finite f16: a third of them subnormal or zero.
fn half(noise: &mut Noise) -> f16 {
    let sign = if noise.below(2) == 0 { 0 } else { 0x8000 };
    let magnitude = match noise.below(3) {
        0 => noise.below(0x400),
        _ => noise.below(0x7c00),
    };
    f16::from_bits(u16::try_from(magnitude | sign).unwrap())
}

fn blocks(format: Format, count: usize, noise: &mut Noise) -> Vec<u8> {
    let bytes = format.spec().block_bytes();
    let mut blocks: Vec<u8> = (0..count * bytes)
        .map(|_| u8::try_from(noise.below(256)).unwrap())
        .collect();
    for block in blocks.chunks_exact_mut(bytes) {
        match format {
            Format::F32 => block.copy_from_slice(&noise.unit().to_le_bytes()),
            Format::F16 => block.copy_from_slice(&half(noise).to_le_bytes()),
            _ => {
                for at in places(format).0 {
                    block[*at..at + 2].copy_from_slice(&half(noise).to_le_bytes());
                }
            }
        }
    }
    blocks
}

fn expand(format: Format, blocks: &[u8], count: usize) -> Vec<f32> {
    let mut values = vec![0.0; count * format.spec().block()];
    format.spec().dequantize(blocks, &mut values);
    values
}

proptest! {
    #![proptest_config(cases(6))]

    #[test]
    fn every_format(rows in 1usize..9, count in 1usize..6, seed: u64) {
        for format in Format::ALL {
            if format.gpu_layout().is_none() {
                continue;
            }
            let mut noise = Noise::new(seed);
            let total = rows * count;
            let bytes = blocks(format, total, &mut noise);
            let want = expand(format, &bytes, total);
            // x is one term, or the sum of a product and a minimum: rounding is relative to the larger of those.
            let mut minima = bytes.clone();
            let (_, codes) = places(format);
            for block in minima.chunks_exact_mut(format.spec().block_bytes()) {
                block[codes.clone()].fill(0);
            }
            let minima = if codes.is_empty() {
                vec![0.0; want.len()]
            } else {
                expand(format, &minima, total)
            };
            let cols = count * format.spec().block();
            let matrix = Matrix::new(format, Rows(rows), Cols(cols), &bytes).unwrap();
            for setup in setups() {
                let got = on_gpu(setup, &matrix);
                for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                    let minimum = f64::from(minima[i]);
                    let larger = (f64::from(*want) - minimum).abs().max(minimum.abs());
                    // One unit in the last place, or what is below f32's normal numbers.
                    let allowed = larger * f64::from(f32::EPSILON) + f64::from(f32::MIN_POSITIVE);
                    let error = (f64::from(*got) - f64::from(*want)).abs();
                    prop_assert!(
                        error <= allowed,
                        "{}: {format} element {i} is {got:e}, the twin has {want:e}, minimum {minimum:e}",
                        setup.name
                    );
                }
            }
        }
    }
}

/// All rows of a matrix, by number.
fn on_gpu(setup: &Setup, matrix: &Matrix<'_>) -> Vec<f32> {
    let (rows, cols) = (matrix.shape().rows.0, matrix.shape().cols.0);
    let mut upload = setup.upload();
    let table = GpuMatrix::new(setup.gpu(), "table", matrix, matrix.format(), &mut upload).unwrap();
    let rows_32 = u32::try_from(rows).unwrap();
    let ids: Vec<u32> = (0..rows_32).collect();
    let span = Span {
        start: 0,
        length: rows_32,
        slot: 0,
        padding: 0,
    };
    let batch = Tables::new(setup, &ids, &[span], &[0]);
    let y = Activation::poisoned(setup, rows, cols, 1);
    let op = Embed {
        batch: batch.tables(),
        table: &table,
        y: y.view(),
    };
    setup.run(&setup.kernels.embed(&op).unwrap());
    y.read()
}
