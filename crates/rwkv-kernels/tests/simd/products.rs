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
    let mut expanded = vec![0.0; cols];
    let mut sizes = vec![0.0; tokens * rows];
    for row in 0..rows {
        matrix.expand_row(row, &mut expanded);
        for token in 0..tokens {
            let x = &x[token * cols..][..cols];
            let terms = expanded.iter().zip(x);
            sizes[token * rows + row] = terms.map(|(w, x)| f64::from(w * x).abs()).sum();
        }
    }
    for level in levels() {
        let what = format!("{level}, {}, {rows}×{cols}, {tokens} tokens", case.format);
        let mut got = vec![f32::NAN; tokens * rows];
        simd::matmul(level, &x, &matrix, &mut got).unwrap();
        for (i, ((got, want), size)) in got.iter().zip(&want).zip(&sizes).enumerate() {
            let same = got == want || got.is_nan() && want.is_nan();
            let near = (f64::from(*got) - f64::from(*want)).abs() <= SUM * size;
            assert!(
                same || near && size.is_finite(),
                "{what}: element {i} is {got}, the twin has {want}, terms of {size}"
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
