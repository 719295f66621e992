//! Layer norm and group norm.

use crate::{
    activation::Activation,
    noise::{Noise, scale},
    setup::{cases, setups},
    tolerance::{self, check},
};
use proptest::prelude::*;
use rwkv_kernels::{
    GpuVector,
    ops::{Norm, norm},
};

proptest! {
    #![proptest_config(cases(32))]

    #[test]
    fn layer(rows in 1usize..5, width in 1usize..1200, offset in prop::sample::select(vec![0.0f32, 3.0, -300.0]),
             scale in scale(), seed: u64) {
        compare(rows, width, width, offset, scale, seed);
    }

    #[test]
    fn groups(rows in 1usize..5, groups in 1usize..9, group in 1usize..300, scale in scale(), seed: u64) {
        compare(rows, groups * group, group, 0.0, scale, seed);
    }
}

/// More groups than the 65,535 workgroups of one dimension of a grid.
#[test]
fn a_folded_grid() {
    compare(1, 140_000, 2, 0.0, 1.0, 3);
}

fn compare(rows: usize, width: usize, group: usize, offset: f32, scale: f32, seed: u64) {
    let mut noise = Noise::new(seed);
    let mut x = noise.values(rows * width, scale);
    for x in &mut x {
        *x += offset;
    }
    let (weight, bias) = (noise.values(width, 1.0), noise.values(width, 1.0));
    let epsilon = 1e-5;
    let mut want = vec![0.0; x.len()];
    norm(&x, group, &weight, &bias, epsilon, &mut want).unwrap();

    // What rounding is relative to: |x| and |mean| through the scale, before they cancel.
    let mut tolerance = Vec::new();
    for (at, x) in x.chunks_exact(group).enumerate() {
        let channel = at * group % width;
        let n = group as f64;
        let mean = x.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
        let square = x
            .iter()
            .map(|x| (f64::from(*x) - mean).powi(2))
            .sum::<f64>();
        let scale = 1.0 / (square / n + f64::from(epsilon)).sqrt();
        let largest = x.iter().fold(0.0, |m: f64, x| m.max(f64::from(x.abs())));
        // The mean of equal numbers is off by their rounding, which the scale then multiplies for all of them.
        for i in channel..channel + group {
            let (w, b) = (f64::from(weight[i].abs()), f64::from(bias[i].abs()));
            tolerance
                .push(tolerance::SUM * (largest * scale * w * (1.0 + largest * scale * 1e-3) + b));
        }
    }
    for setup in setups() {
        let mut upload = setup.upload();
        let weight = GpuVector::new(setup.gpu(), "weight", &weight, &mut upload).unwrap();
        let bias = GpuVector::new(setup.gpu(), "bias", &bias, &mut upload).unwrap();
        let x = Activation::new(setup, rows, width, &x);
        let y = Activation::poisoned(setup, rows, width, 1);
        let op = Norm {
            x: x.view(),
            group,
            weight: &weight,
            bias: &bias,
            epsilon,
            y: y.view(),
        };
        setup.run([&setup.kernels.norm(&op).unwrap()]);
        check(setup.name, &y.read(), &want, |i| tolerance[i]);
    }
}
