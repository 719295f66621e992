//! Products with a matrix for each token.

use crate::{
    activation::Activation,
    noise::{Noise, scale},
    setup::{cases, setups},
    tolerance::{self, check},
};
use proptest::prelude::*;
use rwkv_kernels::ops::{TokenMatMul, token_matmul};

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn products(tokens in 1usize..40, rows in 1usize..50, cols in 1usize..50, scale in scale(), seed: u64) {
        compare(tokens, rows, cols, scale, seed);
    }
}

/// The shape of the published models.
#[test]
fn published() {
    compare(3, 32, 32, 1.0, 1);
    compare(300, 32, 32, 1.0, 2);
}

fn compare(tokens: usize, rows: usize, cols: usize, scale: f32, seed: u64) {
    let mut noise = Noise::new(seed);
    let x = noise.values(tokens * rows, scale);
    let e = noise.values(tokens * rows * cols, 1.0);
    let mut want = vec![0.0; tokens * cols];
    token_matmul(&x, &e, rows, cols, &mut want).unwrap();
    let absolute = |v: &[f32]| v.iter().map(|x| x.abs()).collect::<Vec<_>>();
    let mut terms = vec![0.0; tokens * cols];
    token_matmul(&absolute(&x), &absolute(&e), rows, cols, &mut terms).unwrap();
    for setup in setups() {
        let x = Activation::new(setup, tokens, rows, &x);
        let e = Activation::new(setup, tokens, rows * cols, &e);
        let y = Activation::poisoned(setup, tokens, cols, 1);
        let op = TokenMatMul {
            x: x.view(),
            e: e.view(),
            y: y.view(),
        };
        setup.run([&setup.kernels.token_matmul(&op).unwrap()]);
        check(setup.name, &y.read(), &want, |i| {
            tolerance::SUM * f64::from(terms[i])
        });
    }
}
