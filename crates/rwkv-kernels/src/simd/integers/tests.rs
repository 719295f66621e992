//! The same bits with and without instructions that do two steps in one.

#![allow(clippy::unwrap_used, reason = "tests")]

use super::{
    avx512::Wide,
    product::{has, matmul, with_level},
};
use crate::{
    Format, Matrix,
    simd::{Simd, avx512::Avx512},
};
use rwkv_mem::{Cols, Rows};

/// Numbers in −1 … 1.
fn noise(count: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

#[test]
fn vnni_changes_no_bits() {
    let Some(v) = Avx512::new() else {
        return;
    };
    for format in Format::ALL.into_iter().filter(|f| has(Simd::Avx512, *f)) {
        let (rows, cols) = (37, 1280);
        let mut bytes = vec![0; rows * format.row_bytes(cols).unwrap_or(0)];
        format.spec().quantize(&noise(rows * cols), &mut bytes);
        let matrix = Matrix::new(format, Rows(rows), Cols(cols), &bytes).unwrap();
        for tokens in [1, 2, 3, 17] {
            let x = noise(tokens * cols);
            let (mut plain, mut found) = (vec![0.0; tokens * rows], vec![0.0; tokens * rows]);
            assert!(with_level(Wide::<false>::new(v), &x, &matrix, &mut plain));
            assert!(matmul(Simd::Avx512, &x, &matrix, &mut found));
            assert!(plain == found, "{format}, {tokens} tokens");
        }
    }
}
