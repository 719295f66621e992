//! The same bits whatever instructions add them, and however many tokens there are.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use super::{
    avx512::Wide,
    instructions::Integers,
    product::{has, with_level},
};
use crate::{
    Format, Matrix,
    simd::{Simd, avx2::Avx2, avx512::Avx512},
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

/// The product of all tokens at once, and of each alone.
fn products<V: Integers>(v: V, x: &[f32], matrix: &Matrix<'_>) -> [Vec<f32>; 2] {
    let (rows, cols) = (matrix.shape().rows.0, matrix.shape().cols.0);
    let mut all = vec![f32::NAN; x.len() / cols * rows];
    let mut each = all.clone();
    assert!(with_level(v, x, matrix, &mut all));
    for (x, y) in x.chunks_exact(cols).zip(each.chunks_exact_mut(rows)) {
        assert!(with_level(v, x, matrix, y));
    }
    [all, each]
}

/// Where there is AVX2 alone, it is compared with itself: many tokens with one. Any more instructions are compared too.
#[test]
fn instructions_change_no_bits() {
    let avx2 = Avx2::new().expect("products in integers need AVX2: run this test where there is");
    let avx512 = Avx512::new();
    for format in Format::ALL.into_iter().filter(|f| has(Simd::Avx2, *f)) {
        let (rows, cols) = (37, 1280);
        let mut bytes = vec![0; rows * format.row_bytes(cols).unwrap_or(0)];
        format.spec().quantize(&noise(rows * cols), &mut bytes);
        let matrix = Matrix::new(format, Rows(rows), Cols(cols), &bytes).unwrap();
        for tokens in [1, 2, 3, 17] {
            let x = noise(tokens * cols);
            let [want, alone] = products(avx2, &x, &matrix);
            assert!(alone == want, "{format}, AVX2: {tokens} tokens, one by one");
            let plain = avx512.map(|v| products(Wide::<false>::new(v), &x, &matrix));
            let vnni = avx512.and_then(Wide::<true>::new);
            let vnni = vnni.map(|v| products(v, &x, &matrix));
            for (name, found) in [("AVX-512", plain), ("VNNI", vnni)] {
                for found in found.into_iter().flatten() {
                    assert!(found == want, "{format}, {name}: {tokens} tokens");
                }
            }
        }
    }
}
