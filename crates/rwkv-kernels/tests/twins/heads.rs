//! RWKV-7's keys and bonus, head by head.

use crate::{
    activation::Activation,
    noise::{Noise, scale},
    setup::{cases, setups},
    tolerance::{self, check},
};
use proptest::prelude::*;
use rwkv_kernels::{
    GpuVector,
    ops::{Bonus, Function, Keys7, bonus, keys7},
};

proptest! {
    #![proptest_config(cases(32))]

    #[test]
    fn keys(rows in 1usize..12, heads in 1usize..7, head_size in 1usize..=140, scale in scale(), seed: u64) {
        let mut noise = Noise::new(seed);
        let width = heads * head_size;
        let mut k = noise.values(rows * width, scale);
        // A head of zeros has no direction, and its removal key is zero.
        k[..head_size].fill(0.0);
        let a: Vec<f32> = noise.values(rows * width, 30.0).iter().map(|x| Function::Sigmoid.apply(*x)).collect();
        let (k_k, k_a) = (noise.values(width, 1.0), noise.values(width, 1.0));
        let n = k.len();
        let mut want = vec![0.0; 2 * n];
        let (replacement, removal) = want.split_at_mut(n);
        keys7(&k, &a, &k_k, &k_a, head_size, replacement, removal).unwrap();
        let terms = |i: usize| if i < n {
            // (a − 1) k_a may be multiplied out: Mesa does.
            f64::from(k[i].abs() * (1.0 + (a[i] + 1.0) * k_a[i % width].abs())) * tolerance::FEW
        } else {
            f64::from(want[i].abs()) * tolerance::SUM
        };
        for setup in setups() {
            let mut upload = setup.upload();
            let [k_k, k_a] = [&k_k, &k_a].map(|v| GpuVector::new(setup.gpu(), "key", v, &mut upload).unwrap());
            let [k, a] = [&k, &a].map(|v| Activation::new(setup, rows, width, v));
            let y = Activation::poisoned(setup, rows, width, 2);
            let op = Keys7 { k: k.view(), a: a.view(), k_k: &k_k, k_a: &k_a, head_size, y: y.view() };
            setup.run([&setup.kernels.keys7(&op).unwrap()]);
            check(setup.name, &y.read(), &want, terms);
        }
    }

    #[test]
    fn bonuses(rows in 1usize..12, heads in 1usize..7, head_size in 1usize..=140, scale in scale(), seed: u64) {
        let mut noise = Noise::new(seed);
        let width = heads * head_size;
        let [x, r, k, v] = [1.0, scale, 1.0, 1.0].map(|scale| noise.values(rows * width, scale));
        let r_k = noise.values(width, 1.0);
        let mut want = vec![0.0; rows * width];
        bonus(&x, &r, &k, &v, &r_k, head_size, &mut want).unwrap();
        let terms = |i: usize| {
            let head = i / head_size * head_size..(i / head_size + 1) * head_size;
            let sum: f32 = head.map(|j| (r[j] * k[j] * r_k[j % width]).abs()).sum();
            f64::from(x[i].abs() + sum * v[i].abs())
        };
        for setup in setups() {
            let r_k = GpuVector::new(setup.gpu(), "r_k", &r_k, &mut setup.upload()).unwrap();
            let [x, r, k, v] = [&x, &r, &k, &v].map(|v| Activation::new(setup, rows, width, v));
            let y = Activation::poisoned(setup, rows, width, 1);
            let op = Bonus {
                x: x.view(), r: r.view(), k: k.view(), v: v.view(), r_k: &r_k, head_size, y: y.view(),
            };
            setup.run([&setup.kernels.bonus(&op).unwrap()]);
            check(setup.name, &y.read(), &want, |i| tolerance::SUM * terms(i));
        }
    }
}
