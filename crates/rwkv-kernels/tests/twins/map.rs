//! Element by element.

use crate::{
    activation::Activation,
    linear::FUNCTIONS,
    noise::{Noise, scale},
    setup::{Setup, cases, setups},
    tolerance::{self, check},
};
use proptest::prelude::*;
use rwkv_kernels::{
    GpuVector,
    ops::{Function, Map, add, add_vector, lerp, lerp_vector, multiply},
};

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn all(rows in 1usize..20, width in 1usize..300, scale in scale(), seed: u64) {
        let mut noise = Noise::new(seed);
        let [a, b, t] = [scale, 1.0, 1.0].map(|scale| noise.values(rows * width, scale));
        let vector = noise.values(width, scale);
        // (b − a) t may be multiplied out.
        let largest = |i: usize| f64::from(a[i].abs() + (b[i].abs() + a[i].abs()) * t[i].abs());
        for setup in setups() {
            let [x, y, z] = [&a, &b, &t].map(|v| Activation::new(setup, rows, width, v));
            let row = GpuVector::new(setup.gpu(), "vector", &vector, &mut setup.upload()).unwrap();
            let run = |what: &str, op, twin: &dyn Fn(&mut [f32]), tolerance: &dyn Fn(usize, f32) -> f64| {
                let mut want = vec![0.0; rows * width];
                twin(&mut want);
                let got = on_gpu(setup, op, rows, width);
                check(&format!("{what}, {}", setup.name), &got, &want, |i| tolerance(i, want[i]));
            };
            // One operation, rounded correctly on both sides.
            run("add", Map::Add(x.view(), y.view()), &|out| add(&a, &b, out), &|_, _| 0.0);
            run("multiply", Map::Multiply(x.view(), y.view()), &|out| multiply(&a, &b, out), &|_, _| 0.0);
            run("add a vector", Map::AddVector(x.view(), &row), &|out| add_vector(&a, &vector, out), &|_, _| 0.0);
            let sum = |out: &mut [f32]| {
                let mut product = vec![0.0; out.len()];
                multiply(&a, &b, &mut product);
                add(&product, &t, out);
            };
            run("multiply and add", Map::MultiplyAdd(x.view(), y.view(), z.view()), &sum,
                &|i, _| tolerance::FEW * f64::from((a[i] * b[i]).abs() + t[i].abs()));
            run("lerp", Map::Lerp(x.view(), y.view(), z.view()), &|out| lerp(&a, &b, &t, out),
                &|i, _| tolerance::FEW * largest(i));
            run("lerp by a vector", Map::LerpVector(x.view(), y.view(), &row), &|out| lerp_vector(&a, &b, &vector, out),
                &|i, _| tolerance::FEW * f64::from(a[i].abs() + (b[i].abs() + a[i].abs()) * vector[i % width].abs()));
            for function in FUNCTIONS {
                let twin = |out: &mut [f32]| {
                    for (x, y) in a.iter().zip(out) {
                        *y = function.apply(*x);
                    }
                };
                // What is below f32's smallest normal number may be 0, also before SiLU multiplies it by x.
                let least = if function == Function::Silu { 2e-36 } else { 1e-37 };
                run(&format!("{function:?}"), Map::Apply(function, x.view()), &twin,
                    &|_, want| tolerance::function(function, f64::from(want)) + least);
            }
        }
    }
}

fn on_gpu(setup: &Setup, op: Map<'_>, rows: usize, width: usize) -> Vec<f32> {
    let y = Activation::poisoned(setup, rows, width, 1);
    setup.run([&setup.kernels.map(op, y.view()).unwrap()]);
    y.read()
}
