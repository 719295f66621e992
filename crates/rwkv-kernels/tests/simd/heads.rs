//! Norms, bonus and keys.

use crate::{levels, near, noise};
use rwkv_kernels::{ops, simd};

/// Rounding of sums of a row.
const BOUND: f32 = 4e-6;

#[test]
fn shapes() {
    for (rows, heads, n) in [(1, 12, 64), (3, 1, 768), (7, 3, 5), (2, 1, 1), (5, 4, 33)] {
        let width = heads * n;
        let random = |seed| noise(seed, rows * width);
        let vector = |seed| noise(seed, width);
        let (w, b) = (vector(1), vector(2));
        // Far from zero: the variance is of differences.
        let x: Vec<f32> = random(3).iter().map(|x| x + 3.0).collect();
        let [r, k, v, a] = [4, 5, 6, 7].map(random);
        for level in levels() {
            let what = format!("{level}, {rows} rows of {heads} heads of {n}");
            let mut want = vec![0.0; rows * width];
            let mut got = want.clone();
            if n > 1 {
                ops::norm(&x, n, &w, &b, 1e-5, &mut want).unwrap();
                simd::norm(level, &x, n, &w, &b, 1e-5, &mut got).unwrap();
                near(&format!("norm, {what}"), &got, &want, BOUND);
            }
            ops::bonus(&x, &r, &k, &v, &w, n, &mut want).unwrap();
            simd::bonus(level, &x, &r, &k, &v, &w, n, &mut got).unwrap();
            near(&format!("bonus, {what}"), &got, &want, BOUND);
            let (mut want_removal, mut got_removal) = (want.clone(), want.clone());
            ops::keys7(&k, &a, &w, &b, n, &mut want, &mut want_removal).unwrap();
            simd::keys7(level, &k, &a, &w, &b, n, &mut got, &mut got_removal).unwrap();
            near(&format!("replacement, {what}"), &got, &want, BOUND);
            near(
                &format!("removal, {what}"),
                &got_removal,
                &want_removal,
                BOUND,
            );
        }
    }
}

#[test]
fn wrong_sizes() {
    let (x, mut y) = ([0.0; 12], [0.0; 12]);
    for level in levels() {
        for (width, n) in [(5, 5), (4, 3), (0, 1), (4, 0)] {
            let w = &x[..width];
            assert!(simd::norm(level, &x, n, w, w, 1e-5, &mut y).is_err());
            assert!(simd::bonus(level, &x, &x, &x, &x, w, n, &mut y).is_err());
            let mut z = y;
            assert!(simd::keys7(level, &x, &x, w, w, n, &mut y, &mut z).is_err());
        }
        assert!(simd::norm(level, &x, 4, &x[..4], &x[..3], 1e-5, &mut y).is_err());
        assert!(simd::bonus(level, &x, &x[..8], &x, &x, &x[..4], 4, &mut y).is_err());
    }
}
