//! Each head's norm, the bonus, the gate and rounding in one dispatch.

use crate::{
    activation::{Activation, read},
    noise::{Noise, scale},
    setup::{cases, setups},
    tolerance::check_rms,
};
use half::f16;
use proptest::prelude::*;
use rwkv_kernels::{
    GpuVector,
    ops::{GatedHeadsHalves, HalfRows, bonus, multiply, norm},
};

/// Half a unit in the last of f16's 11 bits, relative to the row's RMS, and the sums before it.
const ROUNDED: f64 = 5e-4;

const EPSILON: f32 = 64e-5;

proptest! {
    #![proptest_config(cases(12))]

    #[test]
    fn rows(tokens in 1usize..20, heads in 1usize..9, head_size in prop::sample::select(vec![4usize, 20, 32, 64, 128, 200]),
            scale in scale(), seed: u64) {
        compare(tokens, heads, head_size, scale, seed);
    }
}

/// The widths of published models.
#[test]
fn wide_rows() {
    for (tokens, heads, head_size) in [(30, 12, 64), (1, 40, 64), (3, 64, 64)] {
        compare(tokens, heads, head_size, 1.0, 5);
    }
}

#[test]
fn what_suits() {
    for (width, head_size, suits) in [
        (8192, 64, true),
        (4, 4, true),
        (0, 64, false),
        (64, 0, false),
        (96, 64, false),
        (66, 33, false),
        (8256, 64, false),
    ] {
        assert_eq!(
            GatedHeadsHalves::suits(width, head_size),
            suits,
            "{width}, {head_size}"
        );
    }
}

fn compare(tokens: usize, heads: usize, head_size: usize, scale: f32, seed: u64) {
    let mut noise = Noise::new(seed);
    let width = heads * head_size;
    let [x, r, k, v, gate] = [scale, 1.0, 1.0, scale, 1.0].map(|s| noise.values(tokens * width, s));
    // In another order than the kernel names them, after one that it does not read.
    let vectors = noise.values(4 * width, 1.0);
    let row = |i: usize| &vectors[i * width..][..width];
    let rows = [2, 3, 1];
    let [r_k, weight, bias] = rows.map(row);
    let (mut normed, mut with_bonus, mut want) = (x.clone(), x.clone(), x.clone());
    norm(&x, head_size, weight, bias, EPSILON, &mut normed).unwrap();
    bonus(&normed, &r, &k, &v, r_k, head_size, &mut with_bonus).unwrap();
    multiply(&with_bonus, &gate, &mut want);

    for setup in setups() {
        let mut upload = setup.upload();
        let on_gpu = |values: &[f32]| Activation::new(setup, tokens, width, values);
        let [x, r, k, v, gate] = [&x, &r, &k, &v, &gate].map(|values| on_gpu(values));
        let vectors = GpuVector::new(setup.gpu(), "vectors", &vectors, &mut upload).unwrap();
        let halves = HalfRows::new(setup.gpu(), "halves", tokens, width).unwrap();
        let poison = vec![0xff; usize::try_from(halves.buffer().size()).unwrap()];
        setup.gpu().write(halves.buffer(), 0, &poison).unwrap();
        let op = GatedHeadsHalves {
            x: x.view(),
            r: r.view(),
            k: k.view(),
            v: v.view(),
            gate: gate.view(),
            vectors: &vectors,
            rows,
            head_size,
            epsilon: EPSILON,
            y: &halves,
        };
        setup.run([&setup.kernels.gated_heads_halves(&op).unwrap()]);
        let words = read(setup.gpu(), halves.buffer());
        let got: &[f16] = bytemuck::cast_slice(&words);
        let stride = HalfRows::stride(width);
        for (got, want) in got.chunks_exact(stride).zip(want.chunks_exact(width)) {
            let exponent = f32::from(got[stride - 4]).exp2();
            let values: Vec<f32> = got[..width]
                .iter()
                .map(|h| f32::from(*h) * exponent)
                .collect();
            check_rms(setup.name, &values, want, ROUNDED);
            let rest = &got[width..stride - 4];
            assert!(rest.iter().all(|h| h.to_bits() == 0), "{rest:?}");
        }
    }
}
