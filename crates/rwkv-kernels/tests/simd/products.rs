//! Matrix products: every format, every level that this processor has.

use crate::{SUM, levels, noise};
use proptest::prelude::*;
use rwkv_kernels::{Format, Matrix, Simd, ops, simd};
use rwkv_mem::{Cols, Rows};

#[derive(Debug)]
struct Case {
    format: Format,
    rows: usize,
    cols: usize,
    tokens: usize,
    /// Of the weights, and of x.
    factors: [f32; 2],
    seed: u64,
}

impl Case {
    fn weights(&self) -> Vec<u8> {
        let values: Vec<f32> = noise(self.seed, self.rows * self.cols)
            .into_iter()
            .map(|w| w * self.factors[0])
            .collect();
        let mut bytes = vec![0; self.rows * self.format.row_bytes(self.cols).unwrap()];
        self.format.spec().quantize(&values, &mut bytes);
        bytes
    }

    fn x(&self) -> Vec<f32> {
        let noise = noise(self.seed ^ 0x55, self.tokens * self.cols);
        noise.into_iter().map(|x| x * self.factors[1]).collect()
    }
}

/// Where d and dmin lie in a block of 256 columns, in the formats whose codes meet x as integers.
fn factors(format: Format) -> Option<(usize, Option<usize>)> {
    match format {
        Format::Q2K => Some((80, Some(82))),
        Format::Q3K => Some((108, None)),
        Format::Q4K | Format::Q5K => Some((0, Some(2))),
        Format::Q6K => Some((208, None)),
        _ => None,
    }
}

/// What a sum may be off by at `level`: f32's rounding of the terms, and for products in integers that of x, half a step
/// times each weight. There codes and minima are summed apart, so that both count as terms.
fn allowed(level: Simd, matrix: &Matrix<'_>, row: usize, x: &[f32]) -> f64 {
    let cols = x.len();
    let expand = |matrix: &Matrix<'_>| {
        let mut expanded = vec![0.0; cols];
        matrix.expand_row(row, &mut expanded);
        expanded
    };
    let weights = expand(matrix);
    let Some((_, minimum)) = factors(matrix.format()).filter(|_| level != Simd::Neon) else {
        let terms = weights.iter().zip(x);
        return SUM * terms.map(|(w, x)| f64::from(w * x).abs()).sum::<f64>();
    };
    let mut without_minima = matrix.bytes().to_vec();
    if let Some(at) = minimum {
        for block in without_minima.chunks_exact_mut(matrix.format().spec().block_bytes()) {
            block[at..at + 2].fill(0);
        }
    }
    let shape = matrix.shape();
    let codes = Matrix::new(matrix.format(), shape.rows, shape.cols, &without_minima).unwrap();
    let codes = expand(&codes);
    let blocks = x
        .chunks(256)
        .zip(weights.chunks(256).zip(codes.chunks(256)));
    blocks
        .map(|(x, (weights, codes))| {
            let largest = x.iter().fold(0.0f32, |most, x| most.max(x.abs()));
            // 16,319 to 32,639 steps are the largest.
            let half_step = f64::from(largest) / 2.0 / 16_319.0;
            let terms = x.iter().zip(weights.iter().zip(codes));
            terms
                .map(|(x, (w, code))| {
                    let (x, w, code) = (f64::from(*x), f64::from(*w), f64::from(*code));
                    half_step * w.abs() + SUM * x.abs() * (code.abs() + (code - w).abs())
                })
                .sum::<f64>()
        })
        .sum()
}

/// Every level against the twin, and every token on its own against all of them at once.
fn check(case: &Case, spoil: impl Fn(&mut [f32])) {
    let Case {
        rows, cols, tokens, ..
    } = *case;
    // Mapped files are aligned to nothing.
    let mut shifted = vec![0; 1];
    shifted.extend(case.weights());
    let matrix = Matrix::new(case.format, Rows(rows), Cols(cols), &shifted[1..]).unwrap();
    let mut x = case.x();
    spoil(&mut x);
    let mut want = vec![f32::NAN; tokens * rows];
    ops::matmul(&x, &matrix, &mut want).unwrap();
    for level in levels() {
        let what = format!("{level}, {}, {rows}×{cols}, {tokens} tokens", case.format);
        let mut got = vec![f32::NAN; tokens * rows];
        simd::matmul(level, &x, &matrix, &mut got).unwrap();
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            if got == want || got.is_nan() && want.is_nan() {
                continue;
            }
            let allowed = allowed(level, &matrix, i % rows, &x[i / rows * cols..][..cols]);
            let error = (f64::from(*got) - f64::from(*want)).abs();
            assert!(
                error <= allowed && allowed.is_finite(),
                "{what}: element {i} is {got}, the twin has {want}, allowed are {allowed:.1e}"
            );
        }
        for token in 0..tokens {
            let mut alone = vec![f32::NAN; rows];
            simd::matmul(level, &x[token * cols..][..cols], &matrix, &mut alone).unwrap();
            let bits = |y: &[f32]| y.iter().map(|y| y.to_bits()).collect::<Vec<_>>();
            let together = &got[token * rows..][..rows];
            let numbers = alone.iter().all(|y| !y.is_nan());
            assert!(
                !numbers || bits(&alone) == bits(together),
                "{what}: token {token} depends on the others"
            );
        }
    }
}

/// Formats, and how many blocks of columns; floats have ragged rows too.
fn cases() -> impl Strategy<Value = Case> {
    let format = prop::sample::select(&Format::ALL[..]);
    let tokens = prop_oneof![3 => Just(1usize), 2 => 2usize..14, 1 => 14usize..70];
    (
        format,
        1usize..200,
        1usize..600,
        tokens,
        -20i32..20,
        -15i32..15,
        any::<u64>(),
    )
        .prop_map(
            |(format, rows, cols, tokens, weight_size, x_size, seed)| Case {
                format,
                // As much work for each case.
                rows: rows.min(1 + 40_000 / (cols + 8 * tokens)),
                cols: match format.spec().block() {
                    1 => cols,
                    block => cols.next_multiple_of(block),
                },
                tokens,
                // F16 scales hold no more.
                factors: [
                    2.0f32.powi(weight_size.clamp(-12, 12)),
                    10.0f32.powi(x_size),
                ],
                seed,
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn random_shapes(case in cases()) {
        check(&case, |_| {});
    }

    /// What is not finite comes out as it does of the twin.
    #[test]
    fn not_finite(case in cases(), at in any::<prop::sample::Index>(), which in 0usize..4) {
        let value = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX][which];
        check(&case, |x| x[at.index(x.len())] = value);
    }
}

/// Every format at the sizes of layers: longer than a segment, shares for threads, all sizes of tiles.
#[test]
fn layers() {
    for format in Format::ALL {
        for (rows, cols, tokens) in [(67, 2304, 1), (130, 1280, 15), (40, 3072, 6)] {
            let case = Case {
                format,
                rows,
                cols,
                tokens,
                factors: [0.05, 1.0],
                seed: 7,
            };
            check(&case, |_| {});
        }
    }
    // Enough work for shares.
    let case = Case {
        format: Format::F16,
        rows: 1025,
        cols: 1027,
        tokens: 3,
        factors: [0.05, 1.0],
        seed: 7,
    };
    check(&case, |_| {});
}

/// Any bytes are weights: the same numbers expand of them, so that what is finite agrees.
#[test]
fn hostile_weights() {
    for format in Format::ALL {
        let (rows, cols) = (8, 512);
        let count = rows * format.row_bytes(cols).unwrap();
        let bytes: Vec<u8> = noise(3, count)
            .into_iter()
            .map(|x| (x * 128.0) as i8 as u8)
            .collect();
        let matrix = Matrix::new(format, Rows(rows), Cols(cols), &bytes).unwrap();
        for column in 0..cols {
            let mut x = vec![0.0; cols];
            x[column] = 1.0;
            let mut want = vec![0.0; rows];
            ops::matmul(&x, &matrix, &mut want).unwrap();
            for level in levels() {
                let mut got = vec![f32::NAN; rows];
                simd::matmul(level, &x, &matrix, &mut got).unwrap();
                for (got, want) in got.iter().zip(&want) {
                    assert!(
                        got == want || !want.is_finite(),
                        "{level}, {format}, column {column}: {got}, the twin has {want}"
                    );
                }
            }
        }
    }
}

/// Integers at their largest: x that is exact in 16 bits, blocks of the largest and smallest codes, scales and minima. No
/// sum may leave its register.
#[test]
fn largest_integers() {
    let (rows, cols) = (9, 768);
    let mut seeds = noise(11, rows * 1024).into_iter();
    let mut random = move || (seeds.next().unwrap_or(0.3) * 128.0) as i8 as u8;
    for format in Format::ALL {
        let Some((d, minimum)) = factors(format) else {
            continue;
        };
        let row_bytes = format.row_bytes(cols).unwrap();
        let mut bytes = vec![0u8; rows * row_bytes];
        for (row, bytes) in bytes.chunks_exact_mut(row_bytes).enumerate() {
            match row {
                0..4 => bytes.fill([0, 0xff, 0x80, 0x7f][row]),
                _ => bytes.fill_with(&mut random),
            }
            for block in bytes.chunks_exact_mut(format.spec().block_bytes()) {
                // The lowest codes with the lowest scales, and the highest.
                if row >= 7 && format == Format::Q6K {
                    block[..192].fill([0, 0xff][row - 7]);
                    block[192..208].fill(0x80);
                }
                for at in [Some(d), minimum].into_iter().flatten() {
                    block[at..at + 2].copy_from_slice(&[0, 0x3c]);
                }
            }
        }
        let matrix = Matrix::new(format, Rows(rows), Cols(cols), &bytes).unwrap();
        let most = 32_639.0f32;
        let mut x = vec![most; 4 * cols];
        x[cols..2 * cols].fill(-most);
        for (i, x) in x[2 * cols..].iter_mut().enumerate() {
            let sign = if i % 2 == 0 { 1.0 } else { -1.0 };
            *x = if i < cols {
                sign * most
            } else {
                sign * ((i % 256) as f32 * 128.0 - 1.0)
            };
        }
        let mut expanded = vec![0.0; cols];
        for level in levels() {
            let mut got = vec![f32::NAN; 4 * rows];
            simd::matmul(level, &x, &matrix, &mut got).unwrap();
            // One token takes another way, to the same bits.
            for (x, together) in x.chunks_exact(cols).zip(got.chunks_exact(rows)) {
                let mut alone = vec![f32::NAN; rows];
                simd::matmul(level, x, &matrix, &mut alone).unwrap();
                assert_eq!(alone, together, "{level}, {format}");
            }
            for (i, got) in got.iter().enumerate() {
                let x = &x[i / rows * cols..][..cols];
                matrix.expand_row(i % rows, &mut expanded);
                let terms = expanded.iter().zip(x);
                let want: f64 = terms.map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
                let parts: f64 = x.iter().map(|x| f64::from(x.abs()) * 8192.0).sum();
                assert!(
                    (f64::from(*got) - want).abs() <= 1e-6 * parts,
                    "{level}, {format}, row {}: {got}, exactly {want}",
                    i % rows
                );
            }
        }
    }
}

#[test]
fn wrong_sizes() {
    let bytes = vec![0; 4 * 8];
    let matrix = Matrix::new(Format::F16, Rows(2), Cols(8), &bytes).unwrap();
    for level in Simd::ALL {
        for (x, y) in [(7, 2), (8, 3), (16, 2), (8, 4), (0, 2)] {
            assert!(simd::matmul(level, &vec![0.0; x], &matrix, &mut vec![0.0; y]).is_err());
        }
        simd::matmul(level, &[], &matrix, &mut []).unwrap();
    }
}
